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
from headway.app.uploads import (
    DiskFullError,
    TrainingFileLimits,
    UploadRemovedError,
    Uploads,
    UploadTooLargeError,
    safe_name,
)
from headway.data.labelled_files import read_labelled_files
from headway.domains.audio.sound_files import read_transcripts
from headway.domains.image_text.captioned_images import read_captions
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
    return asyncio.run(folder.receive(upload, name, parts(), size))


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
    for name in ("photos/cat/2.png", "photos/dog/1.png"):
        put(client, upload, name, b"x")
    answer = client.delete(f"/v1/uploads/{upload}/files/photos/cat")
    assert [file["name"] for file in answer.json()["files"]] == ["a.txt", "photos/dog/1.png"]
    for name in ("photos/cat", "photos/%2e%2e/a.txt", "%2e%2e/files"):
        assert client.delete(f"/v1/uploads/{upload}/files/{name}").status_code in (400, 404)
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
    (tmp_path / "outside/b").touch()
    assert client.delete(f"/v1/uploads/{upload}/files/x/b").status_code == 404
    (tmp_path / "outside/b").unlink()
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
    assert "No space left on device); free space" in answer.json()["error"]["message"]

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", broken)
    message = put(client, upload, "other", b"x").json()["error"]["message"]
    assert "Input/output error); check the server's folder" in message


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


def test_files_that_a_run_uses_are_not_replaced(client: TestClient, tmp_path: Path) -> None:
    upload = created(client)
    put(client, upload, "a.csv", b"text,label\na,b\n")
    (tmp_path / "runs/run").mkdir()
    recipe = {"data": [str(tmp_path / "runs/.uploads" / upload / "files/a.csv")]}
    (tmp_path / "runs/run/recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    (tmp_path / "runs/.uploads" / upload / "used").touch()  # as the start of a run does
    for answer in (put(client, upload, "a.csv", b"x"), put(client, upload, "b.csv", b"x")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "upload_used")
    assert client.delete(f"/v1/uploads/{upload}/files/a.csv").status_code == 409
    assert client.delete(f"/v1/uploads/{upload}").status_code == 409
    files = tmp_path / "runs/.uploads" / upload / "files"
    assert [path.read_bytes() for path in files.iterdir()] == [b"text,label\na,b\n"]
    shutil.rmtree(tmp_path / "runs/run")
    assert put(client, upload, "a.csv", b"x").status_code == 200


def test_an_upload_that_is_removed_while_a_file_arrives(tmp_path: Path) -> None:
    folder = Uploads(tmp_path)
    upload = folder.create()

    async def parts() -> AsyncIterator[bytes]:
        yield b"x"
        folder.remove(upload)
        yield b"x"

    with pytest.raises(UploadRemovedError, match="was removed before a/b was stored; send the files again"):
        asyncio.run(folder.receive(upload, "a/b", parts(), None))
    assert list((tmp_path / uploads.FOLDER).iterdir()) == []


def test_files_that_arrive_at_once_count_together(tmp_path: Path) -> None:
    folder = Uploads(tmp_path, TrainingFileLimits(file_bytes=10, upload_bytes=15, files=2, reserve=0))
    upload = folder.create()

    async def parts(*pauses: float) -> AsyncIterator[bytes]:
        for pause in pauses:
            yield b"xxxx"
            await asyncio.sleep(pause)

    async def together() -> list[Any]:
        stated = [folder.receive(upload, name, parts(0.01, 0), 8) for name in ("a", "b")]
        results = await asyncio.gather(*stated, return_exceptions=True)
        unstated = [folder.receive(upload, name, parts(0.01), None) for name in ("c", "d")]
        return results + await asyncio.gather(*unstated, return_exceptions=True)

    first, second, third, fourth = asyncio.run(together())
    assert (first, third) == (("a", 8), ("c", 4))
    assert "more than 15 bytes" in str(second)
    assert "2 files" in str(fourth)
    assert upload.listing() == [("a", 8), ("c", 4)]


def test_two_servers_on_one_folder_see_the_same_files(tmp_path: Path) -> None:
    first, second = Uploads(tmp_path), Uploads(tmp_path)
    upload = first.create()
    second.find(upload.id)
    for folder, other, name in ((first, second, "a/b"), (second, first, "a/c"), (first, second, "a/b")):
        send(folder, name, b"xy")
        assert folder.find(upload.id).listing() == other.find(upload.id).listing()
        assert (name, 2) in other.find(upload.id).listing()


@pytest.mark.parametrize(
    "name", ["{outside}", "../outside.png", "~/outside.png", "link.png", "~nobody-has-this-name/x"]
)
def test_rows_cannot_name_files_outside_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files, outside = tmp_path / "files", tmp_path / "outside.png"
    files.mkdir()
    for path in (outside, files / "a.png"):
        path.write_bytes(b"x")
    (files / "link.png").symlink_to(outside)
    table, name = files / "a.tsv", name.format(outside=outside)
    table.write_text(f"path\tlabel\ttext\tcaption\na.png\tx\tx\tx\n{name}\tx\tx\tx\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    readers: list[Any] = [
        lambda: read_labelled_files([table], {".png"}, "image"),
        lambda: read_transcripts([table]),
        lambda: read_captions([table]),
    ]
    is_user = name.startswith("~n")
    for read in readers:
        monkeypatch.delenv("HEADWAY_DATA_ROOT", raising=False)
        if not is_user:
            read()  # a table of one's own may name any file
        monkeypatch.setenv("HEADWAY_DATA_ROOT", str(files))
        with pytest.raises(UserError, match="line 3: .*" + ("is not the name" if is_user else "is outside")):
            read()


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
