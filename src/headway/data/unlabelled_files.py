"""Samples without labels: in files of their own, in files of several, or prepared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from jaxtyping import Int

from headway.data.labelled_files import LabelledFiles
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_index import INDEX_FILE, kind_title
from headway.data.prepared.shard_reader import PreparedData, is_index
from headway.errors import UserError
from headway.io.files import DATA_ROOT_VARIABLE, file_of_row
from headway.io.remote import remote_url


class UnlabelledPart(NamedTuple):
    """The `rows` that are `samples` of prepared data, or in other files (None)."""

    rows: Int[np.ndarray, "M"]
    samples: PreparedSamples | None


_MAX_DIGITS = 15  # of an index in a table


@dataclass(frozen=True)
class UnlabelledFiles:
    """The file of each sample, and its index in this file; None for a file of one. The file of prepared samples, which
    must be of one `kind`, is their index.json.
    """

    kind: ClassVar[str]

    files: list[Path] = field(default_factory=list)
    indices: list[int | None] = field(default_factory=list)
    prepared: dict[Path, PreparedSamples] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def add(self, file: Path, index: int | None = None) -> None:
        self.files.append(file)
        self.indices.append(index)

    def add_numbered(self, file: Path, count: int, index: str | None, location: str) -> None:
        """Add all samples of a file of `count`, or the one with an `index`. UserError for an invalid index."""
        if index is not None and (not index.isdecimal() or len(index) > _MAX_DIGITS or int(index) >= count):
            raise UserError(f"{location}: {file} has no sample {index[:60]!r}; use an index from 0 to {count - 1:,}")
        for number in range(count) if index is None else (int(index),):
            self.add(file, number)

    def add_prepared(self, samples: PreparedSamples, rows: Int[np.ndarray, "M"]) -> None:
        """Add rows of prepared samples, which may be a selection of them."""
        file = samples.data.folder / INDEX_FILE
        row_at = np.argsort(self.samples_of(file).positions)
        for index in row_at[samples.positions[rows]].tolist():
            self.add(file, index)

    def samples_of(self, file: Path) -> PreparedSamples:
        """The prepared samples of an index.json, opened once."""
        if file not in self.prepared:
            data = PreparedData(file.parent)
            if data.index.kind != self.kind:
                raise UserError(
                    f"{data.name} contains prepared {kind_title(data.index.kind)}, not {self.kind}; pass prepared "
                    f"{self.kind}, or the original files"
                )
            self.prepared[file] = self.open_prepared(file.parent)
        return self.prepared[file]

    def open_prepared(self, folder: Path) -> PreparedSamples:
        """The prepared samples of this kind at a path. UserError for others."""
        raise NotImplementedError

    def file_of_row(self, table: Path, name: str, location: str) -> Path:
        """The file that a row of a table names: one relative to the table's folder, or the index of prepared samples at
        an address. UserError if there is no such file, and for an address where a table may not name all files.
        """
        url = remote_url(name)
        if url is not None and not os.environ.get(DATA_ROOT_VARIABLE) and is_index(Path(url)):
            return Path(url)
        file = file_of_row(table, name, location)
        if not file.is_file():
            raise UserError(f"{location}: there is no file {name}; correct or remove the line")
        return file

    def select(self, rows: Sequence[int]) -> Self:
        """The samples of `rows`, in this order."""
        return replace(self, files=[self.files[row] for row in rows], indices=[self.indices[row] for row in rows])

    def parts(self) -> list[UnlabelledPart]:
        """The rows of each prepared folder, then those of all other files."""
        numbers = {file: number for number, file in enumerate(self.prepared)}
        owners = np.array([numbers.get(file, len(numbers)) for file in self.files], np.int64)
        parts = []
        for number, samples in enumerate((*self.prepared.values(), None)):
            rows = np.flatnonzero(owners == number)
            if samples is not None:
                samples = samples.select(np.array([self.indices[row] for row in rows.tolist()], np.int64))
            parts += [UnlabelledPart(rows, samples)] if len(rows) else []
        return parts

    def decided_splits(self) -> Int[np.ndarray, "N"]:
        """The split codes of samples whose splits were decided when they were prepared; 0 for others."""
        codes = np.zeros(len(self), np.uint8)
        for rows, samples in self.parts():
            if samples is not None and samples.details.get("has_splits") is True:
                codes[rows] = samples.named_splits
        return codes

    def rows(self, column: str) -> Iterator[dict[str, Any]]:
        """The rows of a table of these samples: the file as `path`, and the index in this column."""
        for file, index in zip(self.files, self.indices):
            yield {"path": str(file), column: str(index or 0)}


def label_free(samples: UnlabelledFiles) -> LabelledFiles:
    """Files whose labels are empty, with the index of a sample in a file of several. UserError for prepared samples."""
    if file := next(iter(samples.prepared), None):
        raise UserError(f"{file.parent} contains prepared data; use them as they are, or pass the original files")
    rows = list(zip(samples.files, samples.indices))
    locations = [str(file) if index is None else f"{file}, sample {index}" for file, index in rows]
    codes = np.zeros(len(rows), np.uint8)
    return LabelledFiles(list(samples.files), [""] * len(rows), codes, locations, indices=samples.indices)
