"""Looks at images and forecasts of tables over HTTP: what a client gets is what the model computes here."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import file_models
import numpy as np
import pytest
from PIL import Image
from serving import server
from starlette.testclient import TestClient

import headway as hw
from headway.app.cli.main import main
from headway.errors import UserError
from headway.serve import verbs
from headway.serve.app import create_app
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("forecast") / "models"
    place.mkdir()
    return file_models.folder(place)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    models = ServedModels([], [folder], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    models = ServedModels([], [folder], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with server(models, ServerSettings(log=False)) as url:
        yield url


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return path


def refused(client: TestClient, path: str, **body: Any) -> str:
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert "\n" not in message
    assert "/tmp" not in message
    return message


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_models_state_their_limits_and_languages(client: TestClient) -> None:
    answer = client.get("/v1/models").json()
    assert answer["limits"] == {"body_bytes": 8 << 20, "form_bytes": 64 << 20}
    known = {model["id"]: model for model in answer["data"]}
    assert known["hear"]["languages"] == ["de", "en"]
    assert known["sort"]["languages"] == []
    assert "look" in known["sort"]["verbs"]
    assert "forecast" in known["forecast"]["verbs"]


def test_a_look_is_that_of_the_model_here(url: str, folder: Path, tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{seed}.png", seed) for seed in range(2)]
    here, remote = hw.load(folder / "sort", backend="torch"), hw.connect(url, model="sort")
    for found, wanted in zip(remote.look(files), here.look(files), strict=True):
        assert (found.pixels == wanted.pixels).all()
        assert (found.weights == wanted.weights).all()
        assert (found.picture() == wanted.picture()).all()
    assert (remote.look(files[0]).weights == here.look(files[0]).weights).all()
    with pytest.raises(UserError, match="match is an image-text embedding model, which cannot show its att"):
        hw.connect(url, model="match").look(files[0])


def test_the_command_look(url: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(picture(tmp_path / f"{seed}.png", seed)) for seed in range(2)]
    one, several = tmp_path / "one.png", tmp_path / "looks"
    assert main(["look", str(folder / "sort"), files[0], "--out", str(one)]) == 0
    assert capsys.readouterr().out == f"picture: {one}\n"
    wanted = hw.load(folder / "sort", backend="torch").look(files[0]).side_by_side(["0.png"])
    assert (np.asarray(Image.open(one)) == wanted).all()
    assert main(["look", "sort", *files, "--out", str(several), "--server", url, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [Path(entry["picture"]).name for entry in result["pictures"]] == ["1-0.png", "2-1.png"]
    assert (np.asarray(Image.open(several / "1-0.png")) == wanted).all()
    for words, message in (
        ((*files, "--out", str(one)), "is one picture, but there are 2 images"),
        ((files[0], "--out", str(tmp_path / "none" / "a.png")), "cannot be written as a picture"),
        ((str(tmp_path / "nothing.png"), "--out", str(one)), "is not a file"),
    ):
        assert main(["look", str(folder / "sort"), *words]) == 2
        assert message in capsys.readouterr().err


def test_a_forecast_is_that_of_the_model_here(url: str, folder: Path, tmp_path: Path) -> None:
    here, remote = hw.load(folder / "forecast"), hw.connect(url, model="forecast")
    assert remote.forecast() == here.forecast()
    one = file_models.daily(tmp_path / "one.csv", 80, a=lambda n: n % 7)
    header, *lines = one.read_text().splitlines()
    parts = [tmp_path / "first.csv", tmp_path / "second.csv"]
    for part, rows_of_part in zip(parts, (lines[:30], lines[30:])):
        part.write_text("\n".join((header, *rows_of_part)))
    assert remote.forecast(str(one), 3) == here.forecast(str(one), 3)
    assert remote.forecast(parts, 3) == here.forecast(one, 3)
    rows = [{"date": f"2024-{1 + n // 28:02}-{1 + n % 28:02}", "v": n} for n in range(28)]
    with pytest.raises(UserError, match="has 28 values, but the model needs"):
        remote.forecast(rows)
    packed = tmp_path / "one.csv.gz"
    packed.write_bytes(gzip.compress(one.read_bytes()))
    assert remote.forecast(packed, 2) == here.forecast(one, 2)


def test_tables_come_in_every_form(client: TestClient, folder: Path, tmp_path: Path) -> None:
    path = file_models.daily(tmp_path / "t.csv", 80)
    lines = path.read_text().splitlines()
    wanted = verbs.plain(hw.load(folder / "forecast").forecast(path, 2))
    rows = [dict(zip(("date", "sales"), line.split(","))) for line in lines[1:]]
    tabs, objects = path.read_text().replace(",", "\t"), "\n".join(map(json.dumps, rows))
    import openpyxl

    book = openpyxl.Workbook()
    for line in lines:
        book.active.append(line.split(","))  # type: ignore[union-attr]
    book.save(tmp_path / "t.xlsx")
    sheet = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    for data in (
        path.read_text(),
        tabs,
        path.read_text().replace(",", ";"),
        objects,
        data_url("text/csv", path.read_bytes()),
        data_url("text/tab-separated-values", tabs.encode()),
        data_url("application/jsonl", objects.encode()),
        data_url(sheet, (tmp_path / "t.xlsx").read_bytes()),
    ):
        answer = client.post("/v1/forecast", json={"model": "forecast", "data": data, "steps": 2})
        assert answer.json() == {"result": wanted, "model": "forecast"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"data": ""}, "the table is empty"),
        ({"data": []}, "data has 0 items"),
        ({"data": "a,b\n1"}, "the table, line 2 has 1 columns but the header has 2"),
        ({"data": ["date,a\n2024-01-01,1", "date,a\n2024-01-01,x"]}, "table 2, line 2: 'a' is 'x'"),
        ({"data": data_url("image/png", b"x")}, "the table has the media type 'image/png', which is not that of a"),
        ({"data": "data:;base64,AAAA"}, "the table has the media type ''"),
        ({"data": "data:text/csv;base64,A"}, "the table is not base64"),
        ({"data": "data:text/csv,a"}, "send data:text/csv;base64,..."),
        ({"data": "/etc/passwd"}, "the table: there are no rows"),
        ({"data": "date,\ud800"}, "the body is not JSON"),
        ({"data": None, "steps": 0}, "steps"),
        ({"data": None, "steps": 10_001}, "steps"),
        ({"data": None, "model": "sort"}, "cannot forecast time series"),
    ],
)
def test_tables_that_cannot_be(client: TestClient, body: dict[str, Any], message: str) -> None:
    assert message in refused(client, "/v1/forecast", **{"model": "forecast", **body})


def test_a_forecast_has_a_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_MAX_FORECASTS", 20)
    assert client.post("/v1/forecast", json={"model": "forecast", "steps": 20}).status_code == 200
    message = refused(client, "/v1/forecast", model="forecast", steps=21)
    assert message == "1 series with 21 steps are more than 20 values; send fewer series, or ask for fewer steps"


def test_data_that_have_moved_are_not_named(client: TestClient, folder: Path) -> None:
    data = folder.parent / "daily.csv"
    data.rename(folder.parent / "moved.csv")
    try:
        message = refused(client, "/v1/forecast", model="forecast")
    finally:
        (folder.parent / "moved.csv").rename(data)
    assert message == "the server cannot read the data that this model was trained on; send data"


def test_the_command_forecast_asks_a_server(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = file_models.daily(tmp_path / "one.csv", 80, a=lambda n: n % 7)
    assert main(["forecast", "forecast", "--data", str(table), "--steps", "2", "--server", url]) == 0
    assert capsys.readouterr().out.split()[:5] == ["series", "time", "q0.1", "q0.5", "q0.9"]
