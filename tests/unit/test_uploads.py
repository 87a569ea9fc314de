"""Uploads: files that a client sends to train on, within limits and one by one."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from serve_models import asking
from served import Resident
from serving import server
from starlette.testclient import TestClient

from headway.app import uploads
from headway.app.uploads import DiskFullError, TrainingFileLimits, Uploads, UploadTooLargeError, safe_name
from headway.errors import UserError
from headway.serve.interfaces import ApiKey, ServerSettings

RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with asking(runs=tmp_path / "runs") as client:
        yield client


def created(client: TestClient) -> str:
    return client.post("/v1/uploads", json={}).json()["id"]


def put(client: TestClient, upload: str, name: str, content: bytes) -> Any:
    return client.put(f"/v1/uploads/{upload}/files/{quote(name)}", content=content, headers=RAW)


def send(folder: Uploads, name: str, *chunks: bytes, size: int | None = None) -> Any:
    async def parts() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    upload = folder.find(next(iter(folder._open)))
    return asyncio.run(upload.receive(name, parts(), size))


def test_files_arrive_with_their_folders_and_can_be_listed_and_removed(client: TestClient, tmp_path: Path) -> None:
    upload = created(client)
    assert put(client, upload, "photos/cat/1 ä.png", b"abc").json() == {"name": "photos/cat/1 ä.png", "size": 3}
    put(client, upload, "a.txt", b"")
    put(client, upload, "a.txt", b"x" * 200_000)  # replaces the first
    known = {file["name"]: file["size"] for file in client.get(f"/v1/uploads/{upload}").json()["files"]}
    assert known == {"a.txt": 200_000, "photos/cat/1 ä.png": 3}
    folder = tmp_path / "runs/.uploads" / upload
    assert (folder / "files/photos/cat/1 ä.png").read_bytes() == b"abc"
    assert [path.name for path in folder.iterdir()] == ["files"]  # no drafts
    assert client.delete(f"/v1/uploads/{upload}").json() == {"id": upload}
    assert not folder.exists()
    assert client.get(f"/v1/uploads/{upload}").status_code == 404


@pytest.mark.parametrize(
    "name", ["../a", "a/../b", "/etc/passwd", "a//b", ".hidden", "a/.git/config", " ", "a/", "b" * 300, "a/" * 20 + "b"]
)
def test_names_that_are_refused(client: TestClient, tmp_path: Path, name: str) -> None:
    answer = client.put(f"/v1/uploads/{created(client)}/files/{quote(name, safe='')}", content=b"x", headers=RAW)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_control_characters_and_backslashes_are_replaced() -> None:
    assert safe_name("a\n\x1b[1m\\b\u202e.txt") == "a__[1m_b_.txt"
    assert safe_name("<b>&.txt") == "<b>&.txt"


def test_files_and_folders_of_one_name_exclude_each_other(client: TestClient) -> None:
    upload = created(client)
    put(client, upload, "a", b"1")
    put(client, upload, "b/c", b"1")
    assert "is a file" in put(client, upload, "a/b", b"1").json()["error"]["message"]
    assert "is a folder" in put(client, upload, "b", b"1").json()["error"]["message"]


def test_links_are_not_followed(client: TestClient, tmp_path: Path) -> None:
    upload = created(client)
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs/.uploads" / upload / "files/x").symlink_to(tmp_path / "outside")
    assert put(client, upload, "x/a", b"1").status_code == 400
    assert list((tmp_path / "outside").iterdir()) == []


def test_limits_of_files_bytes_and_counts(tmp_path: Path) -> None:
    folder = Uploads(tmp_path, TrainingFileLimits(file_bytes=10, upload_bytes=15, files=3, reserve=0))
    folder.create()
    with pytest.raises(UploadTooLargeError, match="more than 10 bytes"):
        send(folder, "a", b"x" * 11)
    with pytest.raises(UploadTooLargeError, match="more than 10 bytes"):
        send(folder, "a", size=11)  # before any byte arrives
    send(folder, "a", b"x" * 10)
    with pytest.raises(UploadTooLargeError, match="more than 15 bytes"):
        send(folder, "b", b"x" * 3, b"x" * 3)
    send(folder, "b", b"x")
    send(folder, "c", b"x")
    with pytest.raises(UploadTooLargeError, match="3 files"):
        send(folder, "d", b"x")
    send(folder, "a", b"y")  # replacing one is possible


def test_a_hundred_thousand_files_are_the_limit(tmp_path: Path) -> None:
    folder = Uploads(tmp_path)
    upload = folder.create()
    upload._sizes = {str(number): 0 for number in range(100_000)}
    with pytest.raises(UploadTooLargeError, match="100,000 files"):
        send(folder, "one-more", b"x")


def test_a_full_disk_is_one_line_and_leaves_no_draft(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    upload = created(client)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage((1 << 30) + 5))
    assert put(client, upload, "small", b"x" * 5).status_code == 200
    answer = put(client, upload, "large", b"x" * 6)
    assert answer.status_code == 507
    assert "must stay free" in answer.json()["error"]["message"]
    assert [path.name for path in (tmp_path / "runs/.uploads" / upload).rglob("*")] == ["files", "small"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    answer = put(client, upload, "other", b"x")
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]["message"]


def test_fewer_bytes_than_stated_are_refused(tmp_path: Path) -> None:
    folder = Uploads(tmp_path)
    folder.create()
    with pytest.raises(UserError, match="3 of 5 bytes"):
        send(folder, "a", b"abc", size=5)


def test_a_lost_connection_leaves_nothing_and_the_upload_continues(tmp_path: Path) -> None:
    with server(Resident(()), ServerSettings(runs=tmp_path, log=False)) as url:
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        connection.request("POST", "/v1/uploads", "{}", {"Content-Type": "application/json"})
        upload = json.loads(connection.getresponse().read())["id"]
        connection.putrequest("PUT", f"/v1/uploads/{upload}/files/a.bin")
        for name, value in {**RAW, "Content-Length": "1000000"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(b"x" * 300_000)
        folder = tmp_path / ".uploads" / upload
        wait_until(lambda: len(list(folder.iterdir())) == 2)
        connection.close()
        wait_until(lambda: [path.name for path in folder.iterdir()] == ["files"])
        connection = http.client.HTTPConnection(host)
        connection.request("GET", f"/v1/uploads/{upload}")
        assert json.loads(connection.getresponse().read())["files"] == []
        connection.request("PUT", f"/v1/uploads/{upload}/files/a.bin", b"x" * 1_000_000, RAW)
        assert json.loads(connection.getresponse().read())["size"] == 1_000_000
        connection.close()


def test_each_part_of_a_stream_must_arrive_in_time_but_the_body_may_take_longer(tmp_path: Path) -> None:
    settings = ServerSettings(runs=tmp_path, log=False, receive_seconds=0.4, request_seconds=0.5)
    with server(Resident(()), settings) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("POST", "/v1/uploads", "{}", {"Content-Type": "application/json"})
        upload = json.loads(connection.getresponse().read())["id"]

        def slowly() -> Iterator[bytes]:
            for _ in range(5):
                time.sleep(0.15)
                yield b"x"

        connection.request("PUT", f"/v1/uploads/{upload}/files/slow", slowly(), {**RAW, "Content-Length": "5"})
        assert connection.getresponse().read() == b'{"name":"slow","size":5}'
        connection.putrequest("PUT", f"/v1/uploads/{upload}/files/never")
        for name, value in {**RAW, "Content-Length": "5"}.items():
            connection.putheader(name, value)
        connection.endheaders(b"x")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (408, "body_timeout")
        connection.close()


def wait_until(holds: Any) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_unused_uploads_are_removed_after_a_day_and_used_ones_stay(tmp_path: Path) -> None:
    folder = Uploads(tmp_path)
    used, deleted, unused = (folder.create() for _ in range(3))
    for name, upload in (("run", used), (".deleted/run", deleted)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "recipe.json").write_text(json.dumps({"data": [str(upload.files)]}), encoding="utf-8")
    for upload in (used, deleted, unused):
        os.utime(tmp_path / uploads.FOLDER / upload.id, (0, 0))
    folder.create()
    assert used.files.is_dir()
    assert deleted.files.is_dir()
    assert not unused.files.exists()
    with pytest.raises(UserError, match="the run run uses these files"):
        folder.remove(used)


def test_what_has_arrived_is_known_after_a_restart(tmp_path: Path) -> None:
    folder = Uploads(tmp_path)
    upload = folder.create()
    send(folder, "x/y", b"abc")
    assert Uploads(tmp_path).find(upload.id).listing() == [("x/y", 3)]
    with pytest.raises(KeyError):
        folder.find("../../etc")


def test_who_may_not_train_and_a_server_without_runs(tmp_path: Path) -> None:
    with asking(runs=tmp_path, keys=(ApiKey("reads"), ApiKey("trains", may_train=True))) as client:
        for key, status in (("reads", 403), ("trains", 200)):
            answer = client.post("/v1/uploads", json={}, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status
        refused = client.get("/v1/uploads", headers={"Authorization": "Bearer reads"}).json()["error"]
        assert refused["code"] == "may_not_train"
    with asking() as client:
        assert client.get("/v1/uploads").json()["error"]["code"] == "no_runs"
        assert put(client, "0" * 20, "a", b"").status_code == 404


def test_other_bodies_are_refused(client: TestClient) -> None:
    upload = created(client)
    answer = client.put(f"/v1/uploads/{upload}/files/a", content=b"x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert client.get("/openapi.json").json()["paths"]["/v1/uploads/{upload}/files/{path}"]["put"]["requestBody"]


def test_a_disk_that_refuses_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(DiskFullError, match="cannot be created"):
        Uploads(tmp_path / "runs").create()
