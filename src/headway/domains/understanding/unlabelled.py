"""Unlabelled texts next to the training texts of a task: for pre-training, and to be labelled by the model itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch

from headway.data import iter_documents, read_table
from headway.data.corpus import TEXT_KINDS
from headway.data.input_files import file_kind, find_files
from headway.data.table_files import TABLE_KINDS
from headway.domains.understanding.task import EncodedTextDataset, RelatedTextDataset, TextDataset
from headway.errors import UserError
from headway.io.files import user_path
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, RngKey, RowSubset, spread_evenly
from headway.learn.pretraining import UnlabelledData
from headway.learn.token_rows import LengthLimit, frame_rows

_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+")  # single characters where no spaces separate
_SIMILAR = 0.25  # a word is similarly frequent if it has at least this share of the other frequency
_MAX_GUESSED = 20_000  # texts that a classifier labels itself: seconds
_WIDTH_QUANTILE = 0.9  # of the lengths of lines: the width to which they are wrapped, although some are longer
_BLANK_LINES = re.compile(r"\n\s*\n")


def read_unlabelled(recipe: Recipe, task: Task, paths: Sequence[Path]) -> UnlabelledData:
    """The texts at the paths without duplicates and held-out texts, followed by the training texts of the task. Raises
    UserError if none remains.
    """
    examples = cast(EncodedTextDataset | RelatedTextDataset, task.examples)
    labelled = dict.fromkeys(examples.texts_of("train"))
    unlabelled = new_texts(examples, paths, getattr(recipe.task, "text", "text"))
    words, others = (
        Counter(word for text in texts for word in _WORD.findall(text.lower())) for texts in (labelled, unlabelled)
    )
    total = words.total()
    least = _SIMILAR * others.total()
    alike = sum(n for word, n in words.items() if others[word] and others[word] * total >= least * n)
    similar = alike / total if total else None
    rows = [{"text": text} for text in (*unlabelled, *labelled)]
    measure = "of the words in the labelled texts are about as frequent in the unlabelled ones"
    difference = "which may be about other subjects or in another language"
    return UnlabelledData(rows, len(unlabelled), len(labelled), "texts", similar, measure, difference)


def new_texts(examples: EncodedTextDataset | RelatedTextDataset, paths: Sequence[Path], column: str) -> list[str]:
    """The texts at the paths without duplicates and without those that contain a text of the examples as a whole or on
    a line. Case and spaces do not matter. Raises UserError if none remains.
    """
    # Unlabelled documents are read in parts, so parts of the labelled ones are excluded, too.
    known = (text for split in ("train", "validation", "test") for text in examples.texts_of(split))
    excluded = {_comparable(part) for text in known for part in (text, *_parts(text))} - {""}
    found = {" ".join(part.split()) if is_part else part: part for part, is_part in _read_texts(paths, column)}
    unlabelled = [
        text for text, part in found.items() if excluded.isdisjoint(map(_comparable, (part, *part.splitlines())))
    ]
    if not unlabelled:
        names = ", ".join(map(str, paths[:3]))
        fact = f"all {len(found):,} texts are also in the labelled data" if found else "there are no texts"
        raise UserError(f"{names}: {fact}; pass other texts")
    return unlabelled


class UnlabelledTexts(EncodedTextDataset):
    """New texts at some paths as inputs of a classifier's model, or a part of them. Longer ones are truncated."""

    def __init__(self, examples: TextDataset, recipe: Recipe, paths: Sequence[Path], column: str) -> None:
        texts = new_texts(examples, paths, column)
        self.texts = [texts[row] for row in spread_evenly(np.arange(len(texts)), _MAX_GUESSED).tolist()]
        self.codec, limit = examples.codec, LengthLimit(recipe.model.context, truncate=True)
        self.rows = frame_rows(examples.frame(recipe.model), self.codec.encode_batch(self.texts), limit=limit)

    def contents(self) -> Contents:
        return {"texts": (self.texts,)}

    @property
    def all(self) -> RowSubset:
        return RowSubset(self, np.arange(len(self.rows)))

    def take(self, rows: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens; the targets are unknown, and 0."""
        inputs = self.rows.inputs(rows)
        return Batch(inputs, torch.zeros(len(rows), dtype=torch.int64), len(rows), inputs.computed)


def _read_texts(paths: Sequence[Path], column: str) -> Iterator[tuple[str, bool]]:
    """The rows of tables, and the parts of other files, also in folders; with whether they are parts."""
    tables = [kind for kind in TABLE_KINDS if kind != ".jsonl"]
    remedy = f"rename the column with texts to {column!r}, as in the labelled data"
    for path in map(user_path, paths):
        files = [file.path for file in find_files(path, (*TEXT_KINDS, *tables))] if path.is_dir() else [path]
        for file in files:
            if file_kind(file.name) in tables:
                table = read_table([file], {"text": column}, remedy=remedy)
                yield from ((text, False) for text in table.columns["text"])
        documents = [file for file in files if file_kind(file.name) not in tables]
        for document in iter_documents(documents) if documents else ():
            yield from ((part, True) for part in _parts(document))


def _parts(document: str) -> list[str]:
    """Lines of one sentence each are texts; hard-wrapped lines belong to a paragraph. Lines are hard-wrapped if most
    have no room for the first word of the next one.
    """
    blocks = [block.splitlines() for block in _BLANK_LINES.split(document.strip())]
    pairs = [(line.rstrip(), after.split()[0]) for block in blocks for line, after in pairwise(block)]
    width = np.quantile([len(line) for line, _ in pairs] or [0], _WIDTH_QUANTILE)
    full = sum(len(line) + len(word) >= width for line, word in pairs)
    is_wrapped = len(blocks) > 1 and 2 * full > len(pairs)
    parts = ["\n".join(block) for block in blocks] if is_wrapped else [line for block in blocks for line in block]
    return [part for part in parts if part.strip()]


def _comparable(text: str) -> str:
    """The text without spaces and case, which tokenised and other copies of a text have in common."""
    return "".join(text.split()).casefold()
