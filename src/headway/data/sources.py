"""Stream documents and pairs from users' files in all supported formats."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from headway.data.columns import check_header, suggestion
from headway.data.delimited import tabbed
from headway.data.files import (
    ARCHIVES,
    File,
    HubSplit,
    blocks,
    check_file,
    find_files,
    find_hub,
    honoured,
    hub_texts,
    kind_of,
    lines,
    members,
    stated_side,
    text_blocks,
    unpacked,
)
from headway.data.parquet import check_table, index_of, open_parquet, rows_at_once
from headway.data.tables import objects, text_of
from headway.errors import UserError
from headway.received import check_expansion, place_of

_COLUMN = "text"
_ROWS = 1024


def parquet_texts(file: File) -> Iterator[str]:
    """The strings in the text column of a .parquet file, which may be compressed or in an archive."""
    row = given = 0
    with tempfile.TemporaryFile() as unpacked:
        whole: Any = file.path
        packed = file.path.stat().st_size
        if file.member is not None or file.path.suffix.lower() != ".parquet":
            # Parquet is read from its end, so a compressed file is expanded to disk (not to memory) first.
            for block in blocks(file):
                unpacked.write(block)
            whole, packed = unpacked, unpacked.tell()
        with _sound_parquet(file):
            table = open_parquet(whole, "data")
            _check_column(file, table.schema_arrow)
            index = index_of(whole)
            check_table(index, str(file), packed, [_COLUMN])
            repeated = open_parquet(whole, "data", [_COLUMN])
            for group in range(table.num_row_groups):
                rows = rows_at_once(index, repeated, group, _COLUMN, _ROWS)
                for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=[_COLUMN]):
                    texts = batch.column(0).to_pylist()
                    given += sum(len(text or "") for text in texts)
                    check_expansion(str(file), packed, given)
                    for text in texts:
                        row += 1
                        if text is None:
                            raise UserError(f"{file}, row {row} has no text; remove such rows")
                        yield text


@contextmanager
def _sound_parquet(file: File) -> Iterator[None]:
    """Turn pyarrow's exceptions for damaged files into UserErrors."""
    try:
        yield
    except (OSError, ValueError, MemoryError, NotImplementedError) as error:  # pyarrow's classes derive from these
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{file} is damaged or not a Parquet file ({reason}); download it again") from error


def _check_column(file: File, schema: Any) -> None:
    check_header(str(file), schema.names)
    if _COLUMN not in schema.names:
        raise UserError(f"{file} has no column {_COLUMN!r}; {suggestion(_COLUMN, schema.names)}")
    if str(schema.field(_COLUMN).type) not in ("string", "large_string", "string_view"):
        raise UserError(f"{file}: column {_COLUMN!r} has the type {schema.field(_COLUMN).type}; store strings")


TEXT_KINDS = (".txt", ".raw", ".jsonl", ".parquet", *ARCHIVES)
PAIR_KINDS = (".tsv", ".jsonl", ".zip", ".dict")
_NOT_LINES = (".csv", ".json", ".parquet", *ARCHIVES)

CHUNK = 1 << 16
"""Maximum characters of a document passed to a tokenizer at once (two more at a document's end)."""

_LONE_NEWLINE = re.compile(r"(?<=\S\n)(?=\S)")
_LAST_SPACE_NEXT = re.compile(r"(?<=\n)(?=\s\S)")

TextSource = File | HubSplit


class Chunk(NamedTuple):
    """A part of a document; `last` if the document ends with it."""

    text: str
    last: bool


class Pair(NamedTuple):
    source: str
    target: str


class Aligned(NamedTuple):
    """Two line-aligned files."""

    source: File
    target: File

    @property
    def side(self) -> str | None:
        return self.source.side


PairSource = File | Aligned


def documents(paths: Iterable[Path | str]) -> Iterator[str]:
    """Stream documents from .txt, .jsonl ("text") and .parquet ("text") files, compressed or not, from folders and
    archives of them, or from a Hugging Face dataset (`hf:owner/name` or `hf:owner/name:config`).

    A .txt is one document. Paths are checked immediately; text is read lazily.
    """
    return (text for source in text_sources(paths) for text in _joined(chunks(source)))


def pairs(paths: Iterable[Path | str]) -> Iterator[Pair]:
    """Stream pairs from two line-aligned files (or four: train and validation, ...), .tsv, .jsonl with "source" and
    "target", a .zip of one of these, or a pronouncing dictionary (.dict)."""
    return (pair for source in pair_sources(paths) for pair in read_pairs(source))


def text_sources(paths: Iterable[Path | str]) -> list[TextSource]:
    """The files that `iter_documents` reads, with the split that their names state."""
    files: list[File] = []
    hub: list[HubSplit] = []
    for path in _given(paths, "text"):
        if path.exists() or kind_of(path.name) in TEXT_KINDS:
            files.extend(unpacked(find_files(path, TEXT_KINDS), TEXT_KINDS))
        else:
            hub.extend(find_hub(str(path)))
    return [*honoured(files), *hub]


def pair_sources(paths: Iterable[Path | str]) -> list[PairSource]:
    """The files that `iter_pairs` reads, with the split that their names state."""
    found: list[PairSource] = []
    single: list[File] = []
    for path in _given(paths, "pairs"):
        if path.is_dir() or kind_of(path.name) in PAIR_KINDS:
            for file in find_files(path, PAIR_KINDS):
                found.extend(_zipped(file) if file.kind == ".zip" else [file])
        else:
            single.append(_line_file(path))
    if len(single) % 2:
        raise UserError(
            f"{single[-1]} is a single file of lines; add its translation after it, or use {', '.join(PAIR_KINDS)}"
        )
    found.extend(Aligned(*two) for two in zip(single[::2], single[1::2]))
    return found if any(source.side == "train" for source in found) else [_nameless(source) for source in found]


def chunks(source: TextSource) -> Iterator[Chunk]:
    """A source's documents in chunks small enough for a tokenizer. The cuts depend on the text alone."""
    if isinstance(source, HubSplit):
        return (chunk for text in hub_texts(source) for chunk in chunked([text]))
    if source.kind == ".jsonl":
        return (chunk for row in _rows(source, ("text",)) for chunk in chunked(row))
    if source.kind == ".parquet":
        return (chunk for text in parquet_texts(source) for chunk in chunked([text]))
    return chunked(text_blocks(source))


def characters(paths: Sequence[Path | str], most: int) -> int:
    """Count the characters of all sources, up to `limit`. Raises the errors of text_sources."""
    size = 0
    for source in text_sources(paths):
        for chunk in chunks(source):
            size += len(chunk.text)
            if size >= most:
                return size
    return size


def chunked(blocks: Iterable[str], size: int = CHUNK) -> Iterator[Chunk]:
    """Cut a document, passed in blocks of any size, into chunks of at most about `size` characters.

    A chunk ends after a single newline between two lines of text: there the pre-tokenizers of byte-level BPE,
    WordPiece and words start a new word anyway, so the ids equal those of the uncut document. If the second half of a
    chunk has no such newline, it ends after a newline that one space follows (equally safe with GPT-2's rule),
    otherwise after any newline, before a space, or at `size`, where the ids of a word may differ.
    """
    text, start = "", 0
    for block in blocks:
        text, start = text[start:] + block, 0
        while len(text) - start > size + 2:
            end = _cut(text, start, size)
            yield Chunk(text[start:end], False)
            start = end
    yield Chunk(text[start:], True)


def _cut(text: str, start: int, size: int) -> int:
    low, high = start + size // 2, start + size
    for safe in (_LONE_NEWLINE, _LAST_SPACE_NEXT):
        # The search window extends two characters further, to include the text after the newline.
        places = [match.start() for match in safe.finditer(text, low, high + 2)]
        if places := [place for place in places if place <= high]:
            return places[-1]
    newline = text.rfind("\n", low, high)
    if newline >= 0:
        return newline + 1
    space = text.rfind(" ", low, high)
    return space if space >= 0 else high


def _joined(parts: Iterable[Chunk]) -> Iterator[str]:
    texts: list[str] = []
    for text, last in parts:
        texts.append(text)
        if last:
            yield "".join(texts)
            texts = []


def read_pairs(source: PairSource) -> Iterator[Pair]:
    """The pairs of one source."""
    if isinstance(source, Aligned):
        return _aligned(source)
    if source.kind == ".jsonl":
        return (Pair(*row) for row in _rows(source, ("source", "target")))
    if source.kind == ".dict":
        return (Pair(word, said) for word, sounds in pronunciations(source) for said in sounds)
    return _tabbed(source)


def pronunciations(source: File) -> Iterator[tuple[str, list[str]]]:
    """The words of a pronouncing dictionary, each with all its pronunciations: space-separated phonemes without stress
    marks. Variants that differ only in stress are merged; blank lines are skipped."""
    known: dict[str, list[str]] = {}
    for number, line in enumerate(lines(source), 1):
        entry, *sounds = line.split("#")[0].split() or [""]
        if not entry:
            continue
        if not sounds:
            raise UserError(f"{source}, line {number}: {line!r} has no phonemes; write a word, a space and phonemes")
        word = re.sub(r"\(\d+\)$", "", entry)
        said = " ".join(sound.rstrip("012") for sound in sounds)
        if said not in known.setdefault(word, []):
            known[word].append(said)
    yield from known.items()


def _given(paths: Iterable[Path | str], what: str) -> Sequence[Path]:
    found = [place_of(path) for path in paths]
    if not found:
        raise UserError(f"no files of {what}; pass at least one")
    return found


def _line_file(path: Path) -> File:
    check_file(path)
    if kind_of(path.name) in _NOT_LINES:
        raise UserError(
            f"{path} has the extension {kind_of(path.name)!r}, which is not a text file of lines; "
            f"use two line-aligned files, or {', '.join(PAIR_KINDS)}"
        )
    return File(path, side=stated_side(path.name))


def _nameless(source: PairSource) -> PairSource:
    if isinstance(source, Aligned):
        return Aligned(replace(source.source, side=None), source.target)
    return replace(source, side=None)


def _aligned(source: Aligned) -> Iterator[Pair]:
    left, right = lines(source.source), lines(source.target)
    for number, (one, other) in enumerate(zip_longest(left, right)):
        if one is None or other is None:
            ones = number + (one is not None) + sum(1 for _ in left)
            others = number + (other is not None) + sum(1 for _ in right)
            raise UserError(
                f"{source.source} has {ones:,} lines but {source.target} has {others:,}; "
                "use files whose lines correspond one to one"
            )
        yield Pair(one, other)


def _tabbed(source: File) -> Iterator[Pair]:
    """Source TAB target; further columns (Tatoeba's attribution) and blank lines are skipped."""
    text = lines(source)
    for number, columns in tabbed(next(text, ""), text):
        if len(columns) >= 2:
            yield Pair(columns[0], columns[1])
        elif columns[0].strip():
            raise UserError(f"{source}, line {number} has no TAB; write the source, a TAB and the target")


def _zipped(source: File) -> list[PairSource]:
    """The sources in a .zip of pairs: .tsv or .jsonl files, two files of lines, or one .txt with TABs (Tatoeba)."""
    found = members(source.path)
    if found and all(file.kind in (".tsv", ".jsonl") for file in found):
        return list(found)
    if len(found) == 1 and found[0].kind == ".txt":
        return list(found)
    if len(found) == 2 and all(file.kind not in _NOT_LINES for file in found):
        return [Aligned(*found)]
    names = ", ".join(file.name for file in found[:4]) or "nothing"
    raise UserError(f"{source} contains {names}; pack one .tsv or .jsonl, or two line-aligned files, source first")


def _rows(source: File, keys: Sequence[str]) -> Iterator[list[str]]:
    """The values of `keys` in each line of a .jsonl."""
    return ([text_of(source, number, row, key) for key in keys] for number, row in objects(source))
