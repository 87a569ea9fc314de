"""Data of all kinds prepared from an address: the bytes of the folder."""

from __future__ import annotations

import json
import zipfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sound_files
from object_storage import Storage, connect, upload
from prepared_data import contents, draw
from vision_data import Image, tiny

from headway.app.cli.main import main
from headway.config import override
from headway.data.prepared import packed_files, preparation, sample_shards
from headway.data.prepared.prepared_samples import StringColumn
from headway.data.prepared.sample_shards import TABLE_FILE
from headway.data.prepared.shard_files import map_shard
from headway.data.prepared.shard_index import ShardFile
from headway.data.prepared.shard_reader import is_index
from headway.data.prepared.text_blocks import text_files
from headway.domains import recipe as find_recipe
from headway.domains.vision.unlabelled_images import read_images, read_unlabelled
from headway.errors import UserError
from headway.io import remote
from headway.learn import token_shards
from headway.learn.recipe import open_task


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for module in (sample_shards, token_shards):
        monkeypatch.setattr(module, "_MIN_BLOCK", 8192)
    monkeypatch.setattr(packed_files, "_BLOCK_BYTES", 3000)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 8192)
    monkeypatch.setattr(remote, "_MAX_ANSWER", 2000)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    return connect(monkeypatch)


def prepare(paths: list[str], out: Path, *options: str) -> int:
    return main(["data", "prepare", *paths, "--out", str(out), *options])


def described(out: Path) -> tuple[dict[str, Any], list[str]]:
    """What prepared data contain apart from the names of files, and these names."""
    index, files, names = json.loads((out / "index.json").read_text()), contents(out), []
    if TABLE_FILE in index["codec"]:
        table = map_shard(out / TABLE_FILE, ShardFile(TABLE_FILE, *index["codec"].pop(TABLE_FILE).values(), 0, 0))
        names = list(StringColumn(table["name_text"], table["name_offsets"]))
        for column, array in table.items():
            files[column] = str(array.tolist())
        for column in ("name_text", "name_offsets", TABLE_FILE):
            del files[column]
    del index["details"]["plan"], files["index.json"]
    return {"index": index, **files}, names


def photos(folder: Path, seed: int = 0) -> Path:
    """Ten images in folders of two classes, and a table of captions and labels that names them."""
    rng, lines = np.random.default_rng(seed), ["path,caption,label"]
    for number in range(10):
        name = f"more/{'ab'[number % 2]}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(folder / name)
        lines.append(f"more/../{name},picture {number},{number % 2}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


def pixels(kind: str) -> list[str]:
    return ["--kind", kind, "--pixels", "16", "16"]


def check_address(storage: Storage, folder: Path, names: list[str], options: list[str]) -> None:
    """From an address that fails now and then, files below a folder, or the folder, are prepared as from the disk."""
    upload(storage, folder, f"/bucket/{folder.name}")
    local, out = folder.parent / "local", folder.parent / "out"
    assert prepare([str(folder / name) for name in names], local, *options) == 0
    storage.faults = [OSError("500"), 10, TimeoutError()]
    assert prepare([f"s3://bucket/{folder.name}/{name}".rstrip("/") for name in names], out, *options) == 0
    assert not storage.faults
    (expected, files), (found, addresses) = described(local), described(out)
    assert found == expected
    assert addresses == [name.replace(str(folder), f"s3://bucket/{folder.name}") for name in files]
    assert not list((folder.parent / "cache").glob("sources-*"))


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["more"], ["--kind", "images"]),
        (["photos.csv"], pixels("images")),
        (["photos.csv"], ["--kind", "image-text"]),
        ([""], pixels("caption")),
        (["more"], [*pixels("images"), "--unlabelled"]),
        (["more", "photos.csv"], ["--kind", "files"]),
    ],
)
def test_images_in_folders_and_tables(names: list[str], options: list[str], tmp_path: Path, storage: Storage) -> None:
    check_address(storage, photos(tmp_path / "photos"), names, options)


@pytest.mark.parametrize("options", [["transcripts"], ["sounds", "--unlabelled"]])
def test_recordings(options: list[str], tmp_path: Path, storage: Storage) -> None:
    check_address(storage, sound_files.prompts(tmp_path / "prompts"), [""], ["--kind", *options])


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train.en", "train.de"], "translations"),
        (["rows.csv"], "labelled-texts"),
        ([""], "conversations"),
        ([""], "files"),
    ],
)
def test_rows_and_files(names: list[str], kind: str, tmp_path: Path, storage: Storage) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [draw(seed, 8).replace("\n", " ") for seed in range(150)]
    (folder / "train.en").write_text("\n".join(lines) + "\n")
    (folder / "train.de").write_text("\n".join(lines).upper() + "\n")
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{line},{line[:1]}\n" for line in lines))
    chats = [[{"role": role, "content": line} for role in ("user", "assistant")] for line in lines]
    with zipfile.ZipFile(folder / "chats.zip", "w") as archive:
        archive.writestr("chats.jsonl", "".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    check_address(storage, folder, names, ["--kind", kind, *([] if kind == "files" else ["--size", "300"])])
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


def test_files_that_are_not_texts_are_counted(
    tmp_path: Path, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("a.txt", "b.md", "c.md", "d.rst", ".e.md"):
        (folder / name).write_text(draw(1, 50))
    upload(storage, folder, "/bucket/books")
    for path in (str(folder), "s3://bucket/books"):
        caplog.clear()
        assert [source.name for source in text_files([Path(path)])] == ["a.txt"]
        assert caplog.messages == [f"{path}: skipped 3 files that are not texts (2 .md, 1 .rst)"]


def test_images_are_pretrained_on_an_address(tmp_path: Path, storage: Storage) -> None:
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    assert prepare([str(folder / "more" / "a")], out, *pixels("images"), "--unlabelled", "--channels", "3") == 0
    upload(storage, out, "/bucket/out")
    task = tiny().task.open(tiny(), [photos(tmp_path / "labelled", seed=1) / "more"], tmp_path)
    rows = read_unlabelled(tiny(), task, [Path("s3://bucket/out")]).rows
    table = tmp_path / "rows.csv"
    table.write_text("path,image\n" + "".join(f"{row['path']},{row['image']}\n" for row in rows))
    assert sum(is_index(file) for file in read_images([table]).files) == 5
    size = {"model.embed.size": [16, 16], "model.embed.patch": [4, 4], "train.batch_size": 4}
    stage = open_task(override(find_recipe("masked-images"), size), tmp_path, table)
    assert next(iter(stage.batches("train"))).inputs[0].shape[1:] == (3, 16, 16)
    table.write_text("path,image\ns3://bucket/photos/0.png,0\n")
    with pytest.raises(UserError, match=r"line 2: there is no file s3://bucket/photos/0.png; correct or remove"):
        read_images([table])


def test_preparations_from_an_address_continue_and_join(
    tmp_path: Path, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, options = photos(tmp_path / "photos"), pixels("images")
    (folder / "more" / "a" / ".hidden.png").write_bytes(b"no image")
    (folder / "more" / "a" / "bad.png").write_bytes(b"no image")
    upload(storage, folder, "/bucket/photos")
    command = ["s3://bucket/photos/more"]
    assert prepare(command, tmp_path / "out", *options) == 2
    assert "s3://bucket/photos/more/a/bad.png is not a supported image" in capsys.readouterr().err
    assert prepare(command, tmp_path / "skipped", *options, "--skip-bad") == 0
    storage.rm("/bucket/photos/more/a/bad.png")
    storage.pipe_file("/bucket/photos/more/a/bad.png", (folder / "more" / "b" / "1.png").read_bytes())
    assert prepare(command, tmp_path / "out", *options) == 2
    assert "contains an unfinished preparation of other or older files" in capsys.readouterr().err
    storage.rm("/bucket/photos/more/a/bad.png")
    for part in ("1/2", "2/2"):
        assert prepare(command, tmp_path / "parts", *options, "--part", part) == 0
    assert prepare(command, tmp_path / "joined", *options, "--join", str(tmp_path / "parts")) == 0
    storage.faults = [*[None] * 14, PermissionError("Access Denied")]
    assert prepare(command, tmp_path / "one", *options) == 2
    assert "Access Denied" in capsys.readouterr().err
    assert prepare(command, tmp_path / "one", *options) == 0
    assert contents(tmp_path / "joined") == contents(tmp_path / "one")
    assert {name for name in contents(tmp_path / "one") if "-0" in name} == {
        name for name in contents(tmp_path / "skipped") if "-0" in name
    }


def test_errors_of_sources_are_one_line(tmp_path: Path, storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    folder, numbers = photos(tmp_path / "photos"), count()
    upload(storage, folder, "/bucket/photos")

    def check(message: str, paths: list[str], *options: str) -> None:
        assert prepare(paths, tmp_path / str(next(numbers)), "--kind", "images", *options) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert str(tmp_path / "cache") not in error
        storage.faults = []

    check("there is no file or folder s3://bucket/none; check", ["s3://bucket/none"])
    check(f"{folder} is a local path next to a URL; prepare", ["s3://bucket/photos/more", str(folder)])
    check("s3://bucket/photos/more/a contains no folders; put the images", ["s3://bucket/photos/more/a"])
    storage.faults = [PermissionError("Access Denied")]
    check("photos.csv cannot be accessed (Access Denied); check the credentials", ["s3://bucket/photos/photos.csv"])
    storage.faults = [PermissionError("Access Denied")]  # in the survey of sizes, which skips unreadable images
    check("cannot be accessed (Access Denied); check the credentials", ["s3://bucket/photos/more"])
    storage.faults = [*[None] * 10, PermissionError("Access Denied")]  # after the survey
    check("cannot be accessed (Access Denied); check the credentials", ["s3://bucket/photos/more"], "--skip-bad")
    (tmp_path / "secret.png").write_bytes((folder / "more" / "a" / "0.png").read_bytes())
    storage.pipe_file("/bucket/photos/local.csv", f"path,label\n{tmp_path / 'secret.png'},x\n".encode())
    check("secret.png is not at the address that names it; upload it", ["s3://bucket/photos/local.csv"])
    storage.pipe_file("/bucket/names/../x.png", b"x")
    check("s3://bucket/names/../x.png cannot be a local file; rename it", ["s3://bucket/names"])
    storage.pipe_file(f"/bucket/long/{'x' * 300}.png", b"x")
    check("cannot be a local file (File name too long); rename it", ["s3://bucket/long"])
