"""`headway data prepare`: the same bytes for any number of processes, and trainings on the result."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from prepared_data import contents, documents, draw, draw_texts, prepare

from headway.app.cli.main import main
from headway.data import open_tokens
from headway.data.corpus import text_sources
from headway.data.prepared.preparation import PrepareConfig
from headway.data.prepared.shard_reader import PreparedData, is_prepared
from headway.data.prepared.text_blocks import cut_blocks, exact_sources
from headway.data.splits import SplitConfig
from headway.domains.text.text_shards import TextKind
from headway.errors import UserError


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return draw_texts(tmp_path / "texts", monkeypatch)


def test_blocks_are_cut_between_lines(texts: Path) -> None:
    sources = text_sources([texts])
    blocks = cut_blocks(sources)
    assert len(blocks) > 8
    for file in (texts / "rows.jsonl", texts / "2.txt"):
        spans = [s.span for block in blocks for s in exact_sources(block, texts) if s.path == file]  # type: ignore[union-attr]
        text = file.read_bytes()
        assert b"".join(text[start:stop] for start, stop in spans) == text  # type: ignore[misc]
        assert all(text[start - 1 : start] in (b"", b"\n") for start, _ in spans)  # type: ignore[misc]


def test_a_stopped_preparation_continues_with_the_same_bytes(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(prepare(texts, tmp_path / "whole"))
    assert {"index.json", "tokenizer.json", "train-00000.safetensors"} <= set(expected)
    for stopped, error in (("write_part", KeyboardInterrupt), ("write_shard", KeyboardInterrupt), ("finish", OSError)):
        out, calls = tmp_path / f"stopped-{stopped}", iter(range(3))
        original = getattr(TextKind, stopped)

        def fail(self, *arguments, original=original, calls=calls, error=error, stopped=stopped):
            if stopped == "finish" or next(calls, None) is None:
                raise error("stopped")
            return original(self, *arguments)

        monkeypatch.setattr(TextKind, stopped, fail)
        with pytest.raises(error):
            prepare(texts, out)
        with pytest.raises(UserError, match="is prepared only in part; run the same headway data prepare again"):
            is_prepared(out)
        monkeypatch.setattr(TextKind, stopped, original)
        assert not (out / "index.json").exists()
        assert contents(prepare(texts, out)) == expected


def test_processes_share_the_work(texts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headway", "data", "prepare", str(texts), "--size", "300", "--out"]
    subprocess.run([*command, str(tmp_path / "one")], check=True, capture_output=True)
    both = [subprocess.Popen([*command, str(tmp_path / "two")], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    subprocess.run([*command, str(tmp_path / "three"), "--processes", "2"], check=True, capture_output=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_hosts_without_a_shared_folder_write_parts(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    expected = contents(prepare(texts, tmp_path / "one"))
    command = ["data", "prepare", str(texts), "--size", "300", "--out"]
    for part in ("1/3", "3/3"):
        assert main([*command, str(tmp_path / "parts"), "--part", part]) == 0
    assert "part 3/3 is complete" in capsys.readouterr().out
    join = [*command, str(tmp_path / "out"), "--join", str(tmp_path / "parts")]
    assert main(join) == 2
    assert "part 2/3 in " in capsys.readouterr().err
    assert main([*command, str(tmp_path / "parts"), "--part", "2/3"]) == 0
    assert main([*join, "--unique"]) == 2
    assert "other files or with other settings" in capsys.readouterr().err
    assert main(join) == 0
    assert contents(tmp_path / "out") == expected
    assert main([*command, str(tmp_path / "parts"), "--part", "1/2"]) == 2
    assert "has parts of 3; remove them, or choose another --out" in capsys.readouterr().err
    with pytest.raises(UserError, match="has parts of prepared data; join them with headway data prepare --join"):
        is_prepared(tmp_path / "parts")
    (tmp_path / "parts/part-1-of-3").rename(tmp_path / "parts/part-1-of-2")
    assert main([*command, str(tmp_path / "other"), "--join", str(tmp_path / "parts")]) == 2
    assert "has parts of 2 and parts of 3; remove those of one" in capsys.readouterr().err
    assert main([*command, "s3://bucket/parts", "--part", "1/2"]) == 2
    assert "--part writes to a local folder" in capsys.readouterr().err


def test_a_tokenizer_of_bytes_needs_no_size(texts: Path, tmp_path: Path) -> None:
    assert main(["data", "prepare", str(texts), "--codec", "byte", "--out", str(tmp_path / "out")]) == 0


def test_splits_are_those_of_a_local_folder(texts: Path, tmp_path: Path) -> None:
    out = prepare(texts, tmp_path / "out", PrepareConfig(validation=0.1, test=0.1))
    index = PreparedData(out).index
    from headway.codecs import load_codec

    cache = open_tokens([texts / "rows.jsonl"], load_codec(out))
    spans, splits = cache.split(SplitConfig(0.1, 0.1))
    for split in ("validation", "test"):
        local = spans.select(splits.rows(split))
        lines = [cache.ids[a : a + n].tolist() for a, n in zip(*local)]
        joined = [token for ids in documents(out, split) for token in ids]
        assert all(",".join(map(str, line)) in ",".join(map(str, joined)) for line in lines)
    assert index.counts["units"] == sum(shard.units for shards in index.splits.values() for shard in shards)
    assert {len(shards) > 1 for shards in index.splits.values()} == {True}


def test_named_splits_and_duplicates(tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    same = [json.dumps({"text": draw(n, 30)}) for n in range(10)]
    (folder / "train.jsonl").write_text("\n".join(same + [json.dumps({"text": draw(n, 30)}) for n in range(5, 200)]))
    (folder / "valid.jsonl").write_text("\n".join(same[:3]))
    counted = PreparedData(prepare(folder, tmp_path / "counted")).index
    dropped = PreparedData(prepare(folder, tmp_path / "dropped", PrepareConfig(unique=True))).index
    assert counted.counts["duplicates"] == dropped.counts["duplicates"] == 8
    assert (counted.counts["removed"], dropped.counts["removed"]) == (0, 8)
    assert dropped.counts["samples"] == counted.counts["samples"] - 8 == 200
    assert len(documents(tmp_path / "dropped", "validation")) == 3  # the copies in train are dropped
    rows = documents(tmp_path / "dropped", "train") + documents(tmp_path / "dropped", "test")
    assert len({tuple(row) for row in rows}) == len(rows) == 197


def test_few_documents_are_cut(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(draw(1, 5000))
    out = prepare(tmp_path / "book.txt", tmp_path / "out")
    sizes = {split: sum(map(len, documents(out, split))) for split in ("train", "validation", "test")}
    assert 0.04 < sizes["validation"] / sum(sizes.values()) < 0.06
    assert 0.88 < sizes["train"] / sum(sizes.values()) < 0.92


def test_other_data_and_settings_are_refused(texts: Path, tmp_path: Path) -> None:
    out = prepare(texts, tmp_path / "out")
    before = contents(out)
    (out / ".work" / "parts").mkdir(parents=True)  # of a process that was killed after it wrote the index
    assert contents(prepare(texts, out)) == before
    with pytest.raises(UserError, match="already has data prepared from other files or with other settings"):
        prepare(texts, out, PrepareConfig(unique=True))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("a")
    with pytest.raises(UserError, match="is not empty; choose another --out"):
        prepare(texts, tmp_path / "full")


def test_damage_is_one_line(texts: Path, tmp_path: Path) -> None:
    out = prepare(texts, tmp_path / "out")
    index = (out / "index.json").read_text()
    shard = out / PreparedData(out).index.splits["train"][0].name
    content = shard.read_bytes()
    for damaged, reason in (
        (content[:-1], "bytes, but the index states"),
        (content[:-2] + b"xx", "its digest is not that in the index; restore it from a copy"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=reason):
            documents(out, "train")
    shard.unlink()
    with pytest.raises(UserError, match="is missing; restore it from a copy, or prepare the data again"):
        documents(out, "train")
    for text_of, reason in (
        (index[: len(index) // 2], r"is not JSON: .*; restore it from a copy, or prepare the data again"),
        (index.replace("train-00000", "../train-00000"), "is not a valid name"),
        (index.replace('"version": 1', '"version": 2'), "has version 2, but headway reads 1"),
        (index.replace('"counts": {"samples": ', '"counts": {"samples": -'), "is not a count"),
        ("[]", "is not an index of prepared data"),
    ):
        (out / "index.json").write_text(text_of)
        with pytest.raises(UserError, match=reason):
            PreparedData(out)
    (out / "index.json").write_text(index[: len(index) // 2])
    with pytest.raises(UserError, match=r"index.json is not JSON: .*; choose another --out, or remove the files in"):
        prepare(texts, out)


def test_a_full_disk_loses_nothing(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = TextKind.write_part, iter(range(3))

    def write(self: TextKind, folder: Path, block: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder, block)

    monkeypatch.setattr(TextKind, "write_part", write)
    with pytest.raises(UserError, match=r"could not be written: No space left on device \(.* free there\); free space"):
        prepare(texts, tmp_path / "out")
    assert len(list((tmp_path / "out" / ".work" / "parts").glob("*[0-9]"))) == 3
    monkeypatch.setattr(TextKind, "write_part", original)
    (texts / "0.txt").touch()
    with pytest.raises(UserError, match="unfinished preparation of other or older files, or settings"):
        prepare(texts, tmp_path / "out")
