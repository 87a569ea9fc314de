"""Caches: whole or not there, whoever builds them and however that ends; and known sets from a server."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.codecs import TokenizerCodec, train_codec
from headway.data import (
    SPLITS,
    Pair,
    SplitConfig,
    find_set,
    get_set,
    is_present,
    iter_documents,
    iter_pairs,
    known_set,
    known_sets,
    open_pairs,
    open_tokens,
    split_pairs,
)
from headway.data import array_store as store_module
from headway.data.array_store import ColumnWriter, build_deadline, open_or_build
from headway.data.registry import KnownFile, KnownSet, download
from headway.errors import UserError
from processes import Program


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HEADWAY_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def codec(data_dir: Path) -> TokenizerCodec:
    return train_codec("bpe", iter_documents([data_dir / "lm/tinyshakespeare.txt"]), 600)


@pytest.fixture(scope="module")
def play(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first tenth of Shakespeare's plays."""
    path = tmp_path_factory.mktemp("play") / "play.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text()[:110_000])
    return path


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_tokens_are_those_of_the_codec_and_are_made_once(
    data_dir: Path, codec: TokenizerCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (data_dir / "lm/tinyshakespeare.txt").read_text()
    scenes = [scene + "\n" for scene in text.split("\n\n")[:500]]
    path = tmp_path / "scenes.txt"
    path.write_text(text)
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number, scene in enumerate(scenes):
        (folder / f"{number:04}.txt").write_text(scene)
    done: list[tuple[int, int]] = []
    cache = open_tokens([path, folder], codec, lambda *progress: done.append(progress))
    assert done[-1] == (cache.text_bytes, cache.text_bytes)
    assert cache.ids.dtype == np.uint16
    assert cache.documents == 501
    wanted = [[codec.bos_id, *codec.encode(document), codec.eos_id] for document in [text, *scenes]]
    assert cache.ids.tolist() == [i for ids in wanted for i in ids]
    assert np.diff(cache.offsets).tolist() == [len(ids) for ids in wanted]
    monkeypatch.setattr(TokenizerCodec, "encode_batch", None)
    os.utime(path, (1, 1))
    assert open_tokens([path, folder], codec).directory == cache.directory


def test_another_text_or_codec_is_another_cache(data_dir: Path, codec: TokenizerCodec, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((data_dir / "lm/tinyshakespeare.txt").read_bytes()[:5000])
    first = open_tokens([path], codec).directory
    other = train_codec("char", iter_documents([path]))
    assert open_tokens([path], other).directory != first
    time_before = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"First", b"Fifth"))
    os.utime(path, ns=(time_before, time_before))
    assert open_tokens([path], codec).directory != first


def test_one_book_is_cut_at_its_end_as_nanogpt_cuts_it(data_dir: Path) -> None:
    path = data_dir / "lm/tinyshakespeare.txt"
    codec = train_codec("char", iter_documents([path]), special=())
    cache = open_tokens([path], codec)
    assert len(cache.ids) == 1_115_394
    config = SplitConfig(validation=0.1, test=0)
    spans, splits = cache.split(config)
    train, validation = (spans.select(splits.rows(side)) for side in ("train", "validation"))
    assert (train.starts.tolist(), train.lengths.tolist()) == ([0], [1_003_854])
    assert (validation.starts.tolist(), validation.lengths.tolist()) == ([1_003_854], [111_540])
    with pytest.raises(UserError, match="the test split of 1 documents is empty"):
        splits.rows("test")
    with pytest.raises(UserError, match="did you mean 'validation'"):
        splits.rows("valid")


def test_named_files_and_few_documents_go_together(data_dir: Path, codec: TokenizerCodec, tmp_path: Path) -> None:
    text = (data_dir / "lm/tinyshakespeare.txt").read_text()
    for name, part in (("train", text[:500_000]), ("val", text[500_000:600_000])):
        (tmp_path / f"{name}.txt").write_text(part)
    cache = open_tokens([tmp_path], codec)
    spans, splits = cache.split(SplitConfig(test=0.25))
    lengths = {side: spans.select(splits.rows(side)).lengths.tolist() for side in SPLITS}
    whole = np.diff(cache.offsets).tolist()
    assert lengths["validation"] == whole[1:]
    assert lengths["train"][0] + lengths["test"][0] == whole[0]
    assert lengths["test"][0] == pytest.approx(whole[0] / 4, abs=2)


def test_documents_are_split_by_their_text(data_dir: Path, codec: TokenizerCodec, tmp_path: Path) -> None:
    text = (data_dir / "lm/tinyshakespeare.txt").read_text()
    scenes = text.split("\n\n")[:400]
    for number, scene in enumerate([*scenes, *scenes]):
        (tmp_path / f"{number:04}.txt").write_text(scene)
    cache = open_tokens([tmp_path], codec)
    spans, splits = cache.split(SplitConfig(validation=0.2, test=0.1))
    sides = {side: spans.select(splits.rows(side)) for side in SPLITS}
    assert sum(spans.tokens for spans in sides.values()) == len(cache.ids)
    texts = {
        side: {codec.decode(cache.ids[s : s + n].tolist()) for s, n in zip(*spans)} for side, spans in sides.items()
    }
    assert len(set.union(*texts.values())) == sum(map(len, texts.values()))
    assert 0.1 < len(sides["validation"].starts) / 800 < 0.3


def test_named_files_are_the_split_they_name(data_dir: Path, codec: TokenizerCodec) -> None:
    files = [
        data_dir / f"translation/multi30k-{split}.{language}.gz"
        for split in ("train", "val", "test_2016_flickr")
        for language in ("en", "de")
    ]
    cache = open_pairs(files, codec, codec)
    split = cache.splits(SplitConfig()).indices
    assert {side: len(found) for side, found in split.items()} == {"train": 29000, "validation": 1014, "test": 1000}
    read = list(iter_pairs(files[2:4]))
    assert list(split_pairs(files, "validation", SplitConfig())) == read
    one = split["validation"][7]
    assert Pair(codec.decode(cache.source[one].tolist()), codec.decode(cache.target[one].tolist())) == read[7]
    assert cache.source.lengths[one] == len(codec.encode(read[7].source))


def test_texts_of_a_split_are_its_pairs(data_dir: Path, codec: TokenizerCodec, tmp_path: Path) -> None:
    """Of 9,000 pairs in an archive as Tatoeba's."""
    path = tmp_path / "tatoeba-deu-eng.zip"
    with zipfile.ZipFile(data_dir / "translation" / path.name) as whole, zipfile.ZipFile(path, "w") as some:
        for name in whole.namelist():
            some.writestr(name, b"".join(whole.read(name).splitlines(keepends=True)[:9000]))
    cache = open_pairs([path], codec, codec)
    found = cache.splits(SplitConfig()).rows("validation")
    texts = list(split_pairs([path], "validation", SplitConfig()))
    assert len(found) == len(texts)
    for place in (0, len(found) // 2, len(found) - 1):
        assert codec.decode(cache.target[found[place]].tolist()) == texts[place].target


def test_long_and_empty_pairs_are_counted_or_refused(data_dir: Path, codec: TokenizerCodec, tmp_path: Path) -> None:
    found = list(iter_pairs(data_dir / f"translation/multi30k-val.{language}.gz" for language in ("en", "de")))
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(pair) for pair in found) + "\nEmpty.\t\n")
    cache = open_pairs([tmp_path / "a.tsv"], codec, codec)
    everything = np.arange(len(cache))
    short = cache.within_limits(everything, 30, 30, drop_long=True)
    assert len(short.pairs) + short.too_long + short.empty == 1015
    assert short.empty == 1
    assert cache.source.lengths[short.pairs].max() <= 30
    with pytest.raises(UserError, match=rf"{short.too_long} of 1,015 pairs are too long: pair \d+ has \d+ source"):
        cache.within_limits(everything, 30, 30, drop_long=False)
    with pytest.raises(UserError, match="1 have an empty side; raise the limit"):
        cache.within_limits(everything, 1, 1, drop_long=True)


def test_a_long_document_never_goes_whole_through_the_tokenizer(
    data_dir: Path, codec: TokenizerCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text() * 2)
    given: list[int] = []
    encode = TokenizerCodec.encode_batch

    def watched(self: TokenizerCodec, texts: Sequence[str]) -> list[list[int]]:
        given.append(sum(map(len, texts)))
        return encode(self, texts)

    monkeypatch.setattr(TokenizerCodec, "encode_batch", watched)
    cache = open_tokens([path], codec)
    assert cache.documents == 1
    assert sum(given) == 2 * 1_115_394
    assert max(given) < 1_200_000


def test_a_full_disk_leaves_nothing(
    data_dir: Path, codec: TokenizerCodec, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: ColumnWriter, name: str, values: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ColumnWriter, "append", full)
    with pytest.raises(UserError, match=r"the disk is full at .*; free some space, or set HEADWAY_CACHE"):
        open_tokens([data_dir / "lm/tinyshakespeare.txt"], codec)
    assert left(cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_met_when_files_are_closed(tmp_path: Path) -> None:
    (tmp_path / "ids.bin").symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match="the disk is full"),
        store_module.cache_errors(tmp_path),
        ColumnWriter(tmp_path, {"ids": np.uint16}) as columns,
    ):
        columns.append("ids", [1, 2, 3])


def test_bad_text_leaves_nothing(codec: TokenizerCodec, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text " * 300_000 + b"\xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 1500000"):
        open_tokens([tmp_path / "a.txt"], codec)
    assert left(cache) == []
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="all documents are empty"):
        open_tokens([tmp_path / "a.jsonl"], codec)
    assert left(cache) == []


def test_a_place_that_cannot_be_a_folder(
    data_dir: Path, codec: TokenizerCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"is not writable .*; set HEADWAY_CACHE"):
        open_tokens([data_dir / "lm/tinyshakespeare.txt"], codec)


def test_a_damaged_cache_is_said(play: Path, codec: TokenizerCodec) -> None:
    folder = open_tokens([play], codec).directory
    with open(folder / "ids.bin", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"has 1,000 bytes, not .*; remove .* to rebuild it"):
        open_tokens([play], codec)


BUILD = """
import sys, time
from headway.codecs import load_codec
from headway.data import open_tokens, token_store
build = token_store.write_tokens
def slow(*arguments):
    print("building", flush=True)
    build(*arguments)
    time.sleep(float(sys.argv[3]))
token_store.write_tokens = slow
print(len(open_tokens([sys.argv[1]], load_codec(sys.argv[2])).ids), flush=True)
"""


def build(play: Path, codec_folder: Path, wait: float) -> Program:
    return Program(codec_folder, BUILD, str(play), str(codec_folder), str(wait))


def test_of_several_processes_one_builds(play: Path, codec: TokenizerCodec, cache: Path, tmp_path: Path) -> None:
    codec.save(tmp_path)
    outputs = [program.wait()[0] for program in [build(play, tmp_path, 0.5) for _ in range(3)]]
    assert "".join(outputs).count("building") == 1
    assert len({output.split()[-1] for output in outputs}) == 1
    assert len(left(cache)) == 1


def test_a_killed_build_leaves_nothing_that_counts(
    play: Path, codec: TokenizerCodec, cache: Path, tmp_path: Path
) -> None:
    codec.save(tmp_path)
    program = build(play, tmp_path, 60)
    while "building" not in program.out or not any((cache / name / "info.json").exists() for name in left(cache)):
        assert program.returncode is None, program.wait()
        time.sleep(0.01)
    program.signal(signal.SIGKILL)
    assert program.wait()[0] == "building\n"
    (half_made,) = left(cache)
    assert half_made.endswith(".part")
    found = open_tokens([play], codec)
    assert left(cache) == [found.directory.name]


def test_known_sets_are_found_in_their_folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    files = {"banking77": 2, "multi30k": 6, "tatoeba-deu-eng": 1, "tinyshakespeare": 1, "wikitext-2": 1, "emoji": 2}
    assert {name: len(find_set(name)) for name in files} == files  # the others come with packages
    assert all(known.licence and known.url and known.counts for known in known_sets())
    (path,) = find_set("tinyshakespeare")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known_set("tinyshakespeare").files[0].sha256
    assert get_set("tinyshakespeare") == [path]


def test_what_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWAY_DATA", raising=False)
    assert not is_present(known_set("multi30k"))
    with pytest.raises(UserError, match="headway data get multi30k"):
        find_set("multi30k")
    with pytest.raises(UserError, match="did you mean 'multi30k'"):
        find_set("multi30")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/short.txt":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Quiet(*arguments, directory=str(folder))
    ) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}", folder
        service.shutdown()
        thread.join()


def set_of(file: KnownFile) -> KnownSet:
    return KnownSet("mine", "", "", "", "", files=(file,))


def test_a_set_is_fetched_verified_and_found(data_dir: Path, server: tuple[str, Path], tmp_path: Path) -> None:
    url, served = server
    content = (data_dir / "translation/multi30k-val.en.gz").read_bytes()
    (served / "val.en.gz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    file = KnownFile("mine/val.en.gz", f"{url}/val.en.gz", 10**6, sha256=digest, lines=1014)
    done: list[tuple[int, int]] = []
    (path,) = download(set_of(file), tmp_path / "data", lambda *progress: done.append(progress))
    assert path.read_bytes() == content
    assert done[-1] == (len(content), len(content))
    (served / "val.en.gz").unlink()
    assert download(set_of(file), tmp_path / "data") == [path]  # nothing is fetched twice


def test_pairs_of_a_fetched_set_are_counted(data_dir: Path, server: tuple[str, Path], tmp_path: Path) -> None:
    url, served = server
    (served / "a.zip").write_bytes((data_dir / "translation/tatoeba-deu-eng.zip").read_bytes())
    file = KnownFile("a.zip", f"{url}/a.zip", 10**7, pairs=169_813)
    assert download(set_of(file), tmp_path / "data")[0].is_file()
    with pytest.raises(UserError, match="169,813 pairs, fewer than 169,814"):
        download(set_of(replace(file, pairs=169_814)), tmp_path / "other")


def test_sounds_of_a_fetched_set_are_counted(server: tuple[str, Path], tmp_path: Path) -> None:
    url, served = server
    with zipfile.ZipFile(served / "a.zip", "w") as archive:
        for name in ("README.md", "recordings/1_anna_0.wav", "recordings/1_anna_1.wav"):
            archive.writestr(f"set-master/{name}", "something")
    file = KnownFile("a.zip", f"{url}/a.zip", 10**4, sounds=2)
    assert download(set_of(file), tmp_path / "data")[0].is_file()
    with pytest.raises(UserError, match=r"2 \.wav files, not 3"):
        download(set_of(replace(file, sounds=3)), tmp_path / "other")


def test_a_bad_download_leaves_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    url, served = server
    (served / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    file = KnownFile("a.txt.gz", f"{url}/a.txt.gz", 1000)
    cases = {
        "has the SHA-256 .* not 00": replace(file, sha256="00"),
        "has 2 lines, not 3": replace(file, lines=3),
        "bytes or more, over the limit of 5": replace(file, limit=5),
        r"cannot be downloaded \(HTTP Error 404": replace(file, url=f"{url}/none"),
        "stopped after 5 of 1,000 bytes": replace(file, url=f"{url}/short.txt"),
        "cannot be downloaded": replace(file, url="http://127.0.0.1:9/none"),
    }
    for says, bad in cases.items():
        with pytest.raises(UserError, match=says):
            download(set_of(bad), tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []


def test_reading_ends_with_the_time_that_there_is(tmp_path: Path) -> None:
    """Data whose reading alone would take longer than the whole run are refused, and nothing half-read stays."""

    def endless(part: Path) -> None:
        with ColumnWriter(part, {"ids": np.uint16}) as columns:
            while True:
                columns.append("ids", [1])

    with build_deadline(0.05), pytest.raises(UserError, match="reading the data takes too long; raise --minutes"):
        open_or_build(tmp_path / "whole", endless)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("place", ["/proc/headway/cache", "~nobody-here/cache", "{}/file/cache"])
def test_a_cache_that_cannot_be_made_is_told(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADWAY_CACHE", place.format(tmp_path))
    with pytest.raises(UserError, match=r"set HEADWAY_CACHE to"):
        open_or_build(store_module.cache_root() / "a", lambda part: None)
