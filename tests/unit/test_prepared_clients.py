"""Prepared data behind hf:// and https://: the client of the hub with a server on loopback, and the web."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import fsspec
import huggingface_hub
import pytest
from object_storage import Storage, connect, upload
from prepared_data import contents, draw_texts, prepare

from headway.app.cli.main import main
from headway.data.prepared.shard_reader import PreparedData, ShardReader
from headway.errors import UserError
from headway.io import remote
from headway.io.remote import RemoteFolder

_SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """The hub with the data set owner/name, whose files are below a folder."""

    faults: ClassVar[list[int | str]] = []  # of the next downloads: a status, or "cut"

    def __init__(self, folder: Path, *args: Any) -> None:
        self.folder = folder
        super().__init__(*args)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def answer(self, content: bytes, status: int = 200, sent: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content[:sent])

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if tree := re.fullmatch(rf"/api/datasets/owner/name/tree/(?:main|{_SHA})/?(.*)", path):
            inner = sorted((self.folder / tree[1]).glob("*"))
            entries = [
                {
                    "type": "directory" if entry.is_dir() else "file",
                    "path": str(entry.relative_to(self.folder)),
                    "size": entry.stat().st_size,
                    "oid": _SHA,
                }
                for entry in inner
            ]
            self.answer(json.dumps(entries or {}).encode(), 200 if inner else 404, X_Error_Code="EntryNotFound")
        elif re.match("/api/datasets/owner/name", path):
            self.answer(json.dumps({"id": "owner/name", "sha": _SHA}).encode())
        elif file := re.fullmatch(rf"/datasets/owner/name/resolve/(?:main|{_SHA})/(.*)", path):
            fault = self.faults.pop(0) if self.faults else None
            content = (self.folder / file[1]).read_bytes()
            if isinstance(fault, int):
                self.answer(b"", fault)
            else:
                self.answer(content, sent=len(content) // 2 if fault else None)
        else:
            self.answer(b"", 401, X_Error_Code="RepoNotFound")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the data set."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder)) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        files = huggingface_hub.HfFileSystem(endpoint=f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (files, url.removeprefix("hf://")))
        monkeypatch.setattr(Hub, "faults", [])
        monkeypatch.setattr(remote, "_FIRST_WAIT", 0)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        yield folder
        server.shutdown()


def test_data_sets_of_the_hub(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = draw_texts(hub / "texts", monkeypatch)
    expected = contents(prepare(texts, tmp_path / "local"))
    Hub.faults = ["cut", "cut"]
    out = prepare("hf://datasets/owner/name/texts", hub / "out")
    assert {name for name, digest in contents(out).items() if digest != expected[name]} <= {"index.json"}
    Hub.faults = ["cut"]
    data = PreparedData("hf://datasets/owner/name/out")
    Hub.faults = ["cut", "cut"]
    assert len(ShardReader(data, "train", 1).arrays(0)["ids"]) == data.index.splits["train"][0].units
    assert not Hub.faults
    with pytest.raises(UserError, match=r"there is no file or folder hf://datasets/owner/name/none; check the address"):
        RemoteFolder("hf://datasets/owner/name/none").entries()
    with pytest.raises(UserError, match=r"hf://datasets/owner/none cannot be accessed \(401.*; check the credentials"):
        RemoteFolder("hf://datasets/owner/none").entries()
    Hub.faults = [403]
    with pytest.raises(UserError, match=r"out/index.json cannot be accessed \(.*403.*\); check the credentials and"):
        PreparedData("hf://datasets/owner/name/out")


class StatusError(Exception):
    """As that of aiohttp, the client of https://."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Web(Storage):
    """A client of https://: it lists quoted names without sizes, and reports any failure as a missing file."""

    has_ranges: ClassVar[bool] = True
    has_sizes: ClassVar[bool] = True

    def find(self, path: str, **options: Any) -> dict[str, Any]:
        if "on_error" not in options and self.faults:
            return {}
        found = super().find(path, detail=True)
        return {name.replace(" ", "%20"): {"name": name, "size": None, "type": "file"} for name in found}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if self.faults:
            raise FileNotFoundError(path) from self.faults.pop(0)  # type: ignore[misc]
        entry = super().info(unquote(path))
        return {**entry, "size": entry["size"] if self.has_sizes else None}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return super().cat_file(unquote(path), *((start, end) if self.has_ranges else ()))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    connect(monkeypatch)
    files = Web()
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (files, url.removeprefix("https:/")))
    for name in ("one file.txt", "two.txt"):
        files.pipe_file(f"/host/data/{name}", name.encode())
    return files


def test_files_on_the_web(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder("https://host/data")
    web.faults = [StatusError(503), TimeoutError()]
    assert {name: entry.size for name, entry in folder.entries().items()} == {"one file.txt": 12, "two.txt": 7}
    folder.fetch("one file.txt", 12, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"one file.txt"
    monkeypatch.setattr(remote, "_MAX_ANSWER", 5)
    folder.fetch("one file.txt", 12, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"one file.txt"
    monkeypatch.setattr(Web, "has_ranges", False)
    with pytest.raises(UserError, match=r"one file.txt is on a server that sends whole files only; download it first"):
        folder.fetch("one file.txt", 12, tmp_path / "file")
    web.faults = [StatusError(503)] * 12  # of two files
    with pytest.raises(UserError, match=r"could not be transferred in 6 attempts \(status 503\); check the connection"):
        folder.entries()
    web.faults = [StatusError(404)]
    with pytest.raises(UserError, match=r"there is no file https://host/data/.*; check the address"):
        folder.entries()
    web.faults = [StatusError(403)]
    with pytest.raises(UserError, match=r"cannot be accessed \(status 403\); check the credentials and their rights"):
        folder.entries()
    with pytest.raises(UserError, match=r"there is no file or folder https://host/none; check the address"):
        RemoteFolder("https://host/none").entries()
    monkeypatch.setattr(Web, "has_sizes", False)
    with pytest.raises(UserError, match=r"the server does not state the size of https://host/data/one file.txt; down"):
        folder.entries()


def test_an_output_must_be_writable_and_readable(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one two")
    assert main(["data", "prepare", str(tmp_path / "a.txt"), "--out", "https://host/out"]) == 2
    assert (
        "https://host/out cannot be written; pass a folder, or an address with s3:// or gs://"
        in capsys.readouterr().err
    )
    storage = connect(monkeypatch)
    upload(storage, tmp_path, "/bucket/out")
    monkeypatch.setattr(Storage, "info", lambda *_: (_ for _ in ()).throw(OSError("Forbidden: b/bucket/o")))
    assert main(["data", "prepare", str(tmp_path / "a.txt"), "--out", "s3://bucket/out"]) == 2
    assert "out/index.json cannot be accessed (Forbidden: b/bucket/o); check the cred" in capsys.readouterr().err
