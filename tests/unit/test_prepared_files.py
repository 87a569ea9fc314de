"""Files of any kind as shards: what recipes read is the same as in the folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from prepared_data import contents, draw_texts
from prepared_data import prepare as prepare_texts

from headway.app.cli.main import main
from headway.data.prepared import packed_files, preparation
from headway.data.prepared.packed_files import PackedFiles, unpacked_paths
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.remote_sources import SourceFiles
from headway.data.prepared.shard_reader import PreparedData
from headway.domains import recipe
from headway.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of small files, an empty one, a large one and a hidden one."""
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png", "dog/same.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"3.png" * 300 if name in ("dog/3.png", "dog/same.png") else name.encode() * 200)
    (tmp_path / "pets" / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "pets" / "zebra.png").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "pets" / ".hidden").write_text("no")
    monkeypatch.setattr(packed_files, "_BLOCK_BYTES", 3000)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 2048)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "pets"


def prepare(paths: list[Path], out: Path, unique: bool = False) -> Path:
    Preparation(PackedFiles(SourceFiles(paths)), PrepareConfig(unique), out, lambda _: None).run()
    return out


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_files_come_back(folder: Path, tmp_path: Path) -> None:
    out = prepare([folder], tmp_path / "out")
    index = PreparedData(out).index
    assert len(index.splits["train"]) > 5
    assert not index.splits["validation"]
    assert index.counts["duplicates"] == 1
    (unpacked,) = unpacked_paths(out)
    assert unpacked.name == "pets"
    assert tree(unpacked) == tree(folder)
    assert unpacked_paths(folder) == [folder]
    assert contents(prepare([folder], tmp_path / "again")) == contents(out)


def test_duplicates_are_dropped(folder: Path, tmp_path: Path) -> None:
    (unpacked,) = unpacked_paths(prepare([folder], tmp_path / "out", unique=True))
    assert set(tree(folder)) - set(tree(unpacked)) == {"dog/same.png"}


def test_several_paths_keep_their_order(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "zebra.png", folder / "cat"]
    assert [path.name for path in unpacked_paths(prepare(paths, tmp_path / "out"))] == ["zebra.png", "cat"]
    with pytest.raises(UserError, match="two of the paths are named cat; rename one"):
        PackedFiles(SourceFiles([folder / "cat", folder / "cat"]))
    with pytest.raises(UserError, match="there is no file or folder"):
        PackedFiles(SourceFiles([folder / "none"]))


def test_names_stay_in_their_folder(folder: Path, tmp_path: Path) -> None:
    out = prepare([folder], tmp_path / "out")
    index = json.loads((out / "index.json").read_text())
    for entry in index["splits"]["train"]:
        content = (out / entry[0]).read_bytes().replace(b"pets/cat/1.png", b"../../../1.png")
        (out / entry[0]).write_bytes(content)
        entry[2] = hashlib.sha256(content).hexdigest()
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is not allowed; prepare it again"):
        unpacked_paths(out)
    assert not list(tmp_path.glob("*.png"))


def test_other_kinds_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = prepare_texts(draw_texts(tmp_path / "texts", monkeypatch), tmp_path / "shards")
    assert recipe("text").files([texts]) == [texts]
    with pytest.raises(UserError, match="prepared texts, but this recipe reads prepared images or files; pass such"):
        recipe("vision").files([texts])
    texts.rename(folder / "shards")
    with pytest.raises(UserError, match="pets/shards contains prepared data; use them as they are, or"):
        PackedFiles(SourceFiles([folder]))


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        ("sounds", "--pixels 8 8", "--pixels does not apply to --kind sounds; use images or image-text or caption, or"),
        ("caption", "--channels 1", "--channels does not apply to --kind caption; use images, or remove it"),
        ("texts", "--skip-bad", "--skip-bad does not apply to --kind texts; use images or"),
        ("images", "--tokenizer m", "--tokenizer does not apply to --kind images; use texts or"),
        ("transcripts", "--columns text=said", "--columns does not apply to --kind transcripts; use labelled-texts or"),
        ("image-text", "--unlabelled", "--unlabelled does not apply to --kind image-text; use images or sounds, or"),
        ("files", "--test 0.1", "files are split when you train; remove --validation and --test"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    kind: str, option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["data", "prepare", str(tmp_path), "--kind", kind, "--out", str(tmp_path / "out"), *option.split()]) == 2
    )
    assert message in capsys.readouterr().err
