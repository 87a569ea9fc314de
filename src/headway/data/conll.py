"""CoNLL columns: a word a line, its tag in the last column, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.files import File, find_files, honoured, lines
from headway.data.splits import side_number
from headway.errors import UserError

CONLL_KINDS = (".conll", ".txt", ".tsv", ".bio", ".iob", ".train", ".dev", ".test", ".testa", ".testb")
_SIDES = {".testa": "validation", ".testb": "test"}  # as the files of CoNLL-2003 are called
_DOCUMENT = "-DOCSTART-"
_COMMENT = re.compile(r"# ?\w+ ?= ")  # of CoNLL-U: "# text = ..."


class Tagged(NamedTuple):
    """A sentence: its words, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class TaggedText(NamedTuple):
    """Sentences, and the split that each one's file names, uint8 [N]."""

    sentences: list[Tagged]
    named: np.ndarray


def read_conll(paths: Sequence[Path | str]) -> TaggedText:
    """The sentences of all files. UserErrors: a line of one column, what is not UTF-8, no sentences at all.

    Columns stand between TABs or, without any, between spaces. Lines that start a document (-DOCSTART-) and comments of
    CoNLL-U are passed over.
    """
    if not paths:
        raise UserError("no files of tagged text are given; name at least one")
    found = [file for path in paths for file in find_files(Path(path).expanduser(), CONLL_KINDS)]
    files = honoured([replace(file, side=file.side or _SIDES.get(file.kind)) for file in found])
    sentences: list[Tagged] = []
    named: list[int] = []
    for file in files:
        for sentence in _sentences(file):
            sentences.append(sentence)
            named.append(0 if file.side is None else side_number(file.side))
    if not sentences:
        raise UserError(f"{', '.join(map(str, files[:3]))}: there are no sentences; write a word and its tag a line")
    return TaggedText(sentences, np.array(named, np.uint8))


def _sentences(file: File) -> Iterator[Tagged]:
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(lines(file), 1):
        if _COMMENT.match(line):
            continue
        if line.strip() and not line.startswith(_DOCUMENT):
            rows.append(_columns(file, number, line))
        elif rows:
            yield Tagged(*map(tuple, zip(*rows)))
            rows = []
    if rows:
        yield Tagged(*map(tuple, zip(*rows)))


def _columns(file: File, number: int, line: str) -> tuple[str, str]:
    parts = line.split("\t") if "\t" in line else line.split()
    word, tag = parts[0].strip(), parts[-1].strip()
    if len(parts) < 2 or not word or not tag:
        raise UserError(
            f"{file}, line {number}: {line!r} is not a word with a tag; write: word, space or TAB, ..., tag"
        )
    return word, tag
