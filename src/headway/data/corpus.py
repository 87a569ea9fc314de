"""Stream documents and pairs from users' files in all supported formats."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from headway.data.delimited import read_delimited, read_tab_separated
from headway.data.input_files import (
    ARCHIVES,
    File,
    HubSplit,
    archive_members,
    check_file,
    expand_archives,
    file_kind,
    find_files,
    find_hub_splits,
    read_blocks,
    read_hub_texts,
    read_lines,
    read_text_blocks,
    resolve_named_splits,
    split_from_filename,
)
from headway.data.table_files import check_column_names, check_text, read_json_lines, suggest_column
from headway.errors import UserError
from headway.io.files import check_expansion, damage_errors, user_path

_TEXT_COLUMN = "text"
_ROWS_AT_ONCE = 1024


def read_parquet_texts(file: File) -> Iterator[str]:
    """The strings in the text column of a .parquet file, which may be compressed or in an archive."""
    from headway.data.parquet import check_table, max_rows_at_once, open_parquet, read_index

    row = text_size = 0
    with tempfile.TemporaryFile() as expanded:
        source: Any = file.path
        packed_size = file.path.stat().st_size
        if file.member is not None or file.path.suffix.lower() != ".parquet":
            # Parquet is read from its end, so a compressed file is expanded to disk (not to memory) first.
            for block in read_blocks(file):
                expanded.write(block)
            source, packed_size = expanded, expanded.tell()
        with damage_errors(file, "a Parquet file", "download it again"):
            table = open_parquet(source, "data")
            schema = table.schema_arrow
            check_column_names(str(file), schema.names)
            if _TEXT_COLUMN not in schema.names:
                raise UserError(f"{file} has no column {_TEXT_COLUMN!r}; {suggest_column(_TEXT_COLUMN, schema.names)}")
            kind = str(schema.field(_TEXT_COLUMN).type)
            if kind not in ("string", "large_string", "string_view"):
                raise UserError(f"{file}: column {_TEXT_COLUMN!r} has the type {kind}; store strings")
            index = read_index(source)
            check_table(index, str(file), packed_size, [_TEXT_COLUMN])
            repeated = open_parquet(source, "data", [_TEXT_COLUMN])
            for group in range(table.num_row_groups):
                rows = max_rows_at_once(index, repeated, group, _TEXT_COLUMN, _ROWS_AT_ONCE)
                for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=[_TEXT_COLUMN]):
                    strings = batch.column(0).to_pylist()
                    text_size += sum(len(text or "") for text in strings)
                    check_expansion(str(file), packed_size, text_size)
                    for text in strings:
                        row += 1
                        if text is None:
                            raise UserError(f"{file}, row {row} has no text; remove such rows")
                        yield text


TEXT_KINDS = (".txt", ".raw", ".jsonl", ".parquet", *ARCHIVES)
PAIR_KINDS = (".tsv", ".csv", ".jsonl", ".zip", ".dict")
PAIR_COLUMNS = (("source", "target"), ("text", "summary"), ("document", "summary"), ("article", "highlights"))
_NON_TEXT_KINDS = (".csv", ".json", ".parquet", *ARCHIVES)

CHUNK_SIZE = 1 << 16
"""Maximum characters of a document passed to a tokenizer at once (two more at a document's end)."""

_LONE_NEWLINE = re.compile(r"(?<=\S\n)(?=\S)")
_NEWLINE_BEFORE_SPACE = re.compile(r"(?<=\n)(?=\s\S)")

TextSource = File | HubSplit


class Chunk(NamedTuple):
    """A part of a document; `last` if the document ends with it."""

    text: str
    is_last: bool


class Pair(NamedTuple):
    source: str
    target: str


class AlignedFiles(NamedTuple):
    """Two line-aligned files."""

    source: File
    target: File

    @property
    def named_split(self) -> str | None:
        return self.source.named_split


PairSource = File | AlignedFiles


def iter_documents(paths: Iterable[Path | str]) -> Iterator[str]:
    """Stream documents from .txt, .jsonl ("text") and .parquet ("text") files, compressed or not, from folders and
    archives of them, or from a Hugging Face dataset (`hf:owner/name` or `hf:owner/name:config`).

    A .txt is one document. Paths are checked immediately; text is read lazily.
    """
    sources = text_sources(paths)

    def documents() -> Iterator[str]:
        texts: list[str] = []
        for text, is_last in (chunk for source in sources for chunk in iter_chunks(source)):
            texts.append(text)
            if is_last:
                yield "".join(texts)
                texts = []

    return documents()


def iter_pairs(paths: Iterable[Path | str]) -> Iterator[Pair]:
    """Stream pairs from two line-aligned files (or four: train and validation, ...), .tsv, .csv or .jsonl with two of
    `PAIR_COLUMNS`, a .zip of one of these, or a pronouncing dictionary (.dict)."""
    return (pair for source in pair_sources(paths) for pair in read_pairs(source))


def text_sources(paths: Iterable[Path | str]) -> list[TextSource]:
    """The files that `iter_documents` reads, with the split that their names state."""
    files: list[File] = []
    hub_splits: list[HubSplit] = []
    for path in _user_paths(paths, "text"):
        if path.exists() or file_kind(path.name) in TEXT_KINDS:
            files.extend(expand_archives(find_files(path, TEXT_KINDS), TEXT_KINDS))
        else:
            hub_splits.extend(find_hub_splits(str(path)))
    return [*resolve_named_splits(files), *hub_splits]


def pair_sources(paths: Iterable[Path | str]) -> list[PairSource]:
    """The files that `iter_pairs` reads, with the split that their names state."""
    sources: list[PairSource] = []
    line_files: list[File] = []
    for path in _user_paths(paths, "pair"):
        if path.is_dir() or file_kind(path.name) in PAIR_KINDS:
            for file in find_files(path, PAIR_KINDS):
                sources.extend(_zip_sources(file) if file.kind == ".zip" else [file])
        else:
            check_file(path)
            if file_kind(path.name) in _NON_TEXT_KINDS:
                raise UserError(
                    f"{path} has the extension {file_kind(path.name)!r}, which is not line-based text; "
                    f"use two line-aligned files, or {', '.join(PAIR_KINDS)}"
                )
            line_files.append(File(path, named_split=split_from_filename(path.name)))
    if len(line_files) % 2:
        raise UserError(
            f"{line_files[-1]} has no matching translation; pass one after it, or use {', '.join(PAIR_KINDS)}"
        )
    sources.extend(AlignedFiles(*file_pair) for file_pair in zip(line_files[::2], line_files[1::2]))
    if any(source.named_split == "train" for source in sources):
        return sources
    return [
        AlignedFiles(replace(source.source, named_split=None), source.target)
        if isinstance(source, AlignedFiles)
        else replace(source, named_split=None)
        for source in sources
    ]


def iter_chunks(source: TextSource) -> Iterator[Chunk]:
    """A source's documents in chunks small enough for a tokenizer. The cuts depend on the text alone."""
    if isinstance(source, HubSplit):
        return (chunk for text in read_hub_texts(source) for chunk in split_chunks([text]))
    if source.kind == ".jsonl":
        return (chunk for row in _read_fields(source, ("text",)) for chunk in split_chunks(row))
    if source.kind == ".parquet":
        return (chunk for text in read_parquet_texts(source) for chunk in split_chunks([text]))
    return split_chunks(read_text_blocks(source))


def count_characters(paths: Sequence[Path | str], limit: int) -> int:
    """Count the characters of all sources, up to `limit`. Raises the errors of text_sources."""
    size = 0
    for source in text_sources(paths):
        for chunk in iter_chunks(source):
            size += len(chunk.text)
            if size >= limit:
                return size
    return size


def split_chunks(blocks: Iterable[str], size: int = CHUNK_SIZE) -> Iterator[Chunk]:
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
            end = _find_cut(text, start, size)
            yield Chunk(text[start:end], False)
            start = end
    yield Chunk(text[start:], True)


def _find_cut(text: str, start: int, size: int) -> int:
    low, high = start + size // 2, start + size
    for pattern in (_LONE_NEWLINE, _NEWLINE_BEFORE_SPACE):
        # The search window extends two characters further, to include the text after the newline.
        cuts = [match.start() for match in pattern.finditer(text, low, high + 2)]
        if cuts := [cut for cut in cuts if cut <= high]:
            return cuts[-1]
    newline = text.rfind("\n", low, high)
    if newline >= 0:
        return newline + 1
    space = text.rfind(" ", low, high)
    return space if space >= 0 else high


def read_pairs(source: PairSource) -> Iterator[Pair]:
    """The pairs of one source."""
    if isinstance(source, AlignedFiles):
        return _read_aligned(source)
    if source.kind == ".jsonl":
        rows = (
            (number, row, _pair_columns(f"{source}, line {number}", row)) for number, row in read_json_lines(source)
        )
        return (Pair(*(check_text(source, number, key, row[key]) for key in keys)) for number, row, keys in rows)
    if source.kind == ".csv":
        return _read_table(source)
    if source.kind == ".dict":
        return (
            Pair(word, pronunciation) for word, variants in read_pronunciations(source) for pronunciation in variants
        )
    return _read_tabbed(source)


def read_pronunciations(source: File) -> Iterator[tuple[str, list[str]]]:
    """The words of a pronouncing dictionary, each with all its pronunciations: space-separated phonemes without stress
    marks. Variants that differ only in stress are merged; blank lines are skipped."""
    by_word: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(source), 1):
        entry, *phonemes = line.split("#")[0].split() or [""]
        if not entry:
            continue
        if not phonemes:
            raise UserError(f"{source}, line {number}: {line!r} has no phonemes; write a word, a space and phonemes")
        word = re.sub(r"\(\d+\)$", "", entry)
        pronunciation = " ".join(phoneme.rstrip("012") for phoneme in phonemes)
        if pronunciation not in by_word.setdefault(word, []):
            by_word[word].append(pronunciation)
    yield from by_word.items()


def _user_paths(paths: Iterable[Path | str], noun: str) -> Sequence[Path]:
    resolved = [user_path(path) for path in paths]
    if not resolved:
        raise UserError(f"no {noun} files; pass at least one")
    return resolved


def _read_aligned(source: AlignedFiles) -> Iterator[Pair]:
    source_lines, target_lines = read_lines(source.source), read_lines(source.target)
    for number, (source_line, target_line) in enumerate(zip_longest(source_lines, target_lines)):
        if source_line is None or target_line is None:
            source_count = number + (source_line is not None) + sum(1 for _ in source_lines)
            target_count = number + (target_line is not None) + sum(1 for _ in target_lines)
            raise UserError(
                f"{source.source} has {source_count:,} lines but {source.target} has {target_count:,}; "
                "use files whose lines correspond one to one"
            )
        yield Pair(source_line, target_line)


def _pair_columns(location: str, names: Iterable[str]) -> tuple[str, str]:
    """The names of a pair's columns. UserError if there are none."""
    present = list(names)
    known = next((keys for keys in PAIR_COLUMNS if set(keys) <= set(present)), None)
    if known is None:
        key = next(key for key in PAIR_COLUMNS[0] if key not in present)
        raise UserError(f"{location} has no key {key!r}; {suggest_column(key, present)}")
    return known


def _read_objects(source: File) -> Iterator[Pair]:
    """The pairs of a .jsonl."""
    for number, row in read_json_lines(source):
        keys = _pair_columns(f"{source}, line {number}", row)
        yield Pair(*(check_text(source, number, key, row[key]) for key in keys))


def _read_table(source: File) -> Iterator[Pair]:
    """The pairs of a .csv with a header."""
    rows = read_delimited(source)
    _, header = next(rows, (1, []))
    first, second = map(header.index, _pair_columns(str(source), header))
    for number, cells in rows:
        if len(cells) <= max(first, second):
            raise UserError(f"{source}, line {number} has {len(cells)} columns; write {len(header)}, as in the header")
        yield Pair(cells[first], cells[second])


def _read_tabbed(source: File) -> Iterator[Pair]:
    """Source TAB target; a header, further columns (Tatoeba's attribution) and blank lines are skipped."""
    text = read_lines(source)
    for number, columns in read_tab_separated(next(text, ""), text):
        if number == 1 and tuple(columns[:2]) in PAIR_COLUMNS:
            continue
        if len(columns) >= 2:
            yield Pair(columns[0], columns[1])
        elif columns[0].strip():
            raise UserError(f"{source}, line {number} has no TAB; write the source, a TAB and the target")


def _zip_sources(source: File) -> list[PairSource]:
    """The sources in a .zip of pairs: .tsv, .csv or .jsonl, two files of lines, or one .txt with TABs (Tatoeba)."""
    files = archive_members(source.path)
    if files and all(file.kind in (".tsv", ".csv", ".jsonl") for file in files):
        return list(files)
    if len(files) == 1 and files[0].kind == ".txt":
        return list(files)
    if len(files) == 2 and all(file.kind not in _NON_TEXT_KINDS for file in files):
        return [AlignedFiles(*files)]
    names = ", ".join(file.name for file in files[:4]) or "nothing"
    raise UserError(f"{source} contains {names}; pack one .tsv or .jsonl, or two line-aligned files, source first")


def _read_fields(source: File, keys: Sequence[str]) -> Iterator[list[str]]:
    """The values of `keys` in each line of a .jsonl."""
    for number, row in read_json_lines(source):
        for key in keys:
            if key not in row:
                raise UserError(f"{source}, line {number} has no key {key!r}; {suggest_column(key, list(row))}")
        yield [check_text(source, number, key, row[key]) for key in keys]
