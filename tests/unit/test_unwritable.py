"""Where nothing can be written, that is said in one line before the work, and nothing half made stays. What can be
neither made nor written below is a file, which holds for a user of all rights too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tiny_runs import play_file, publish

from headway.app.cli.main import USER_ERROR, main
from headway.codecs import train_codec
from headway.data.array_store import check_output_path
from headway.errors import UserError
from headway.io import durable


@pytest.fixture(scope="module")
def place(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    publish(play_file(data_dir, folder), folder / "model", "llama-135m", width=24, heads=3)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "train shakespeare --data play.txt --run play.txt/run",
        "import model play.txt/out",
        "export model play.txt/out",
        "quantize model play.txt/out --weights int8",
        "tokenizer train --kind byte --size 270 --data play.txt --out play.txt/out.json",
        "compare shakespeare --data play.txt --set model.depth=1,2 --tokens 99 --run play.txt/run",
        "attention model play.txt/out.png --text abc",
        "claims vanishing-gradients --out play.txt/out",
    ],
)
def test_a_command_that_cannot_write_says_where(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main(line.split()) == USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("headway: ")
    assert said.count("\n") == 1
    assert "play.txt" in said
    assert sorted(place.rglob("*")) == before


def test_a_cache_that_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_CACHE", str(place / "play.txt"))
    run = place / "run"
    assert main(["train", "shakespeare", "--data", str(place / "play.txt"), "--run", str(run)]) == USER_ERROR
    assert "set HEADWAY_CACHE to a writable folder" in capsys.readouterr().err
    assert not run.exists()


def test_a_place_is_tried_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("headway.codecs.train_codec", lambda *_, **__: pytest.fail("worked"))
    line = ["tokenizer", "train", "--kind", "byte", "--size", "270", "--data", str(tmp_path / "file"), "--out"]
    assert main([*line, str(tmp_path / "file" / "a.json")]) == USER_ERROR
    check_output_path(tmp_path / "new" / "a.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == []


def test_what_is_written_is_synced_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a lost power could leave a name without its content; then the folder is, which holds the name."""
    told: list[object] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: told.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(os, "replace", lambda *places: (told.append("renamed"), replace(*places)))
    durable.write_text(tmp_path / "a.json", "1")
    with durable.atomic_write(tmp_path / "folder") as draft:
        draft.mkdir()
        (draft / "b.json").write_text("2")
    inner, outer = tmp_path / "folder", tmp_path.stat().st_ino
    written = [(inner / "b.json").stat().st_ino, inner.stat().st_ino]
    assert told == [(tmp_path / "a.json").stat().st_ino, "renamed", outer, *written, "renamed", outer]


def test_where_a_draft_can_be_neither_written_nor_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a file system that was mounted read-only meanwhile."""
    train_codec("byte", ["a"]).save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "x")

    monkeypatch.setattr(durable, "remove", refuse)
    with pytest.raises(
        UserError, match=r"tokenizer.json could not be written: Read-only file system; .*another folder"
    ):
        durable.write_text(tmp_path / "tokenizer.json", "new")
    assert (tmp_path / "tokenizer.json").read_bytes() == whole


def test_a_folder_that_became_read_only_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a run is being trained: the space that is free there is beside the point."""
    whole = tmp_path / "a.json"
    durable.write_json(whole, 1)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="Read-only file system; let this user write there, or choose another folder"):
        durable.write_json(whole, 2)
    assert whole.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [whole]
