"""Labelled samples in shards: a table is all that a training reads at its start, and samples are read by offset."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int, UInt8

from headway.data.labelled_files import LabelledFiles, file_groups
from headway.data.prepared.sample_shards import TABLE_FILE
from headway.data.prepared.shard_files import REMEDY, map_shard
from headway.data.prepared.shard_index import ShardFile
from headway.data.prepared.shard_reader import MappedShards, PreparedData
from headway.data.splits import SPLITS
from headway.errors import ConfigError, UserError

_MAX_SHUFFLED = 1 << 28  # bytes of samples up to which an epoch is one shuffle; more are shuffled in windows of shards


class StringColumn(Sequence[str]):
    """Strings in a table, decoded when they are used."""

    def __init__(self, text: np.ndarray, offsets: np.ndarray, rows: np.ndarray | None = None) -> None:
        self._text, self._offsets, self._rows = text, offsets, rows

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = range(len(self))[index] if self._rows is None else self._rows[index]
        start, stop = self._offsets[row : row + 2].tolist()
        return self._text[start:stop].tobytes().decode("utf-8", "replace")

    def select(self, rows: np.ndarray) -> StringColumn:
        """The strings of these rows, in this order."""
        return StringColumn(self._text, self._offsets, rows if self._rows is None else self._rows[rows])


@dataclass(frozen=True)
class PreparedSamples:
    """The samples of prepared data of one kind, in the order of their files.

    labels: of each; named_splits: uint8 [N], as in file names or decided when the data were prepared; keys: uint8 [N,
    K], of which equal ones are in the same split; names: of their files; lengths: int64 [N], or [N, P] for samples of P
    parts; flags: uint8 [N]; sums: uint64 [N, S], of their values; details: of the index.
    """

    data: PreparedData
    labels: list[str]
    named_splits: np.ndarray
    keys: np.ndarray
    names: StringColumn
    lengths: np.ndarray
    flags: np.ndarray
    sums: np.ndarray
    details: Mapping[str, Any]
    positions: np.ndarray  # int64 [N] in the concatenated shards
    checksums: np.ndarray  # uint32 [N]
    starts: np.ndarray  # int64 [M + 1]: the first byte of each position, in the concatenated data of the shards
    shards: MappedShards

    @staticmethod
    def open(paths: Sequence[Path], kind: str, parts: int = 1) -> PreparedSamples:
        """The samples, of some `parts`, at the path of prepared data. UserError for several paths, and for a damaged
        table.
        """
        if len(paths) > 1:
            raise UserError(f"{paths[0]} contains prepared {kind}, which cannot be mixed; prepare all folders together")
        data = PreparedData(paths[0])
        shards = [shard for split in SPLITS for shard in data.index.splits[split]]
        if TABLE_FILE not in data.index.codec:
            raise UserError(f"the index of {data.name} does not list {TABLE_FILE}; prepare the data again")
        size, digest = data.index.codec[TABLE_FILE]
        arrays = map_shard(data.companion_folder() / TABLE_FILE, ShardFile(TABLE_FILE, size, digest, 0, 0))
        count = sum(shard.samples for shard in shards)
        try:
            table = _checked(arrays, count, parts)
            starts = np.zeros(count + 1, np.int64)
            starts[1 + table["positions"]] = table["sizes"]
            np.cumsum(starts, out=starts)
            ends = np.cumsum([shard.samples for shard in shards])
            if (starts[ends] != np.cumsum([shard.units for shard in shards])).any():
                raise ValueError("its sizes are not those of the shards")
        except (LookupError, TypeError, ValueError) as error:  # numbers of a wrong type cannot be counted
            raise UserError(f"{TABLE_FILE} of {data.name} is inconsistent ({error}); prepare the data again") from None
        labels = list(StringColumn(table["label_text"], table["label_offsets"]))
        return PreparedSamples(
            data,
            [labels[code] for code in table["labels"].tolist()],
            table["splits"],
            table["keys"],
            StringColumn(table["name_text"], table["name_offsets"]),
            table["lengths"],
            table["flags"],
            table["sums"],
            data.index.details,
            table["positions"],
            table["checksums"],
            starts,
            MappedShards(data, shards),
        )

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, rows: np.ndarray) -> PreparedSamples:
        """The samples of these rows, in this order."""
        columns = ("named_splits", "keys", "lengths", "flags", "sums", "positions", "checksums")
        return replace(
            self,
            labels=[self.labels[row] for row in rows.tolist()],
            names=self.names.select(rows),
            **{name: getattr(self, name)[rows] for name in columns},
        )

    @property
    def sizes(self) -> np.ndarray:
        """The bytes of each sample, int64 [N]."""
        return self.starts[self.positions + 1] - self.starts[self.positions]

    @property
    def from_folders(self) -> bool:
        """Whether all labels are folder names."""
        return self.details.get("from_folders") is True

    def check_labels(self) -> None:
        """Raise UserError if no sample has a label."""
        if not any(self.labels):
            kind = self.data.index.kind
            raise UserError(
                f"{self.data.name} contains {kind} without labels; pass it with --pretrain, or train masked-{kind}"
            )

    def hex_keys(self) -> list[str]:
        """The key of each sample."""
        width, text = 2 * self.keys.shape[1], self.keys.tobytes().hex()
        return [text[start : start + width] for start in range(0, len(text), width)]

    def groups(self, setting: str | None) -> list[str] | None:
        """The group of each sample by `task.group`, which can only be a regular expression for file names."""
        if setting is None:
            return None
        if "(" not in setting:
            raise ConfigError(
                f"task.group={setting!r} is a column, which prepared data do not have; use a regular expression for "
                "file names with one group in parentheses, such as '_(.*)_'"
            )
        return file_groups([Path(name) for name in self.names], setting, self.names)

    def labelled_files(self, setting: str | None) -> LabelledFiles:
        """The names of the files, which do not exist, with labels, splits and groups."""
        names = list(self.names)
        files = [Path(name) for name in names]
        return LabelledFiles(files, self.labels, self.named_splits, names, self.from_folders, self.groups(setting))

    @cached_property
    def _first(self) -> np.ndarray:
        return np.cumsum([0, *(shard.samples for shard in self.shards.shards)])

    def shards_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the shard of each row, int64 [M]."""
        return np.searchsorted(self._first, self.positions[rows], side="right") - 1

    def by_shard(self, rows: np.ndarray) -> list[np.ndarray]:
        """For each shard, the indices of those of the rows that are in it."""
        shards = self.shards_of(rows)
        ends = np.cumsum(np.bincount(shards, minlength=len(self.shards.shards)))
        return np.split(np.argsort(shards, kind="stable"), ends[:-1])

    def in_one_shard(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that are in the first shard with any."""
        shards = self.shards_of(rows)
        return rows[shards == shards.min()]

    def contents(self, rows: np.ndarray) -> Iterator[memoryview]:
        """The bytes of samples. UserError for one that has changed since it was prepared."""
        positions = self.positions[rows]
        shards = self.shards_of(rows)
        starts, stops = self.starts[positions], self.starts[positions + 1]
        checksums, firsts = self.checksums[rows].tolist(), self.starts[self._first[shards]]
        spans = zip(shards.tolist(), (starts - firsts).tolist(), (stops - starts).tolist(), checksums)
        for shard, start, size, checksum in spans:
            content = self.shards.read(shard, start, size)
            if zlib.crc32(content) != checksum:
                raise UserError(f"{self.shards.path(shard)} has changed since it was prepared; {REMEDY}")
            yield content

    @property
    def is_windowed(self) -> bool:
        """Whether an epoch is shuffled in windows of shards, because there are too many bytes for one shuffle."""
        return int(self.starts[-1]) > _MAX_SHUFFLED


def _checked(arrays: Mapping[str, np.ndarray], count: int, parts: int) -> dict[str, np.ndarray]:
    """The columns of a table of `count` samples. ValueError for a table that contradicts itself."""
    table = {name: arrays[name] for name in ("keys", "label_text", "label_offsets", "name_text", "name_offsets")}
    for name in ("labels", "splits", "lengths", "flags", "positions", "checksums", "sizes"):
        table[name] = arrays[name]
        if table[name].shape != ((count, parts) if name == "lengths" and parts > 1 else (count,)):
            raise ValueError(f"{name} does not have {count:,} entries")
    table["sums"] = arrays["sums"]
    for name in ("keys", "sums"):
        if table[name].ndim != 2 or len(table[name]) != count or not count:
            raise ValueError(f"its {name} have another number")
    for name, strings in (("name", count), ("label", int(table["labels"].max()) + 1)):
        offsets, text = table[f"{name}_offsets"], table[f"{name}_text"]
        if len(offsets) < strings + 1 or offsets[0] or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
            raise ValueError(f"its column of {name}s is damaged")
    positions = table["positions"]
    if not ((positions >= 0) & (positions < count)).all() or (np.bincount(positions, minlength=count) != 1).any():
        raise ValueError("its positions are not a permutation")
    if table["splits"].max() > len(SPLITS) or min(int(table[n].min()) for n in ("labels", "sizes", "lengths")) < 0:
        raise ValueError("it has an unknown split, or a negative number")
    return table


class SampleArrays:
    """Samples of one shape, uint8, read like the rows of an array."""

    def __init__(self, samples: PreparedSamples, shape: tuple[int, ...]) -> None:
        self._samples, self.shape = samples, (len(samples), *shape)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        rows = np.atleast_1d(np.asarray(index))
        content = np.frombuffer(bytearray().join(self._samples.contents(rows)), np.uint8).reshape(
            len(rows), *self.shape[1:]
        )
        return content if np.ndim(index) else content[0]


class JoinedArrays(SampleArrays):
    """The rows of several arrays of one shape: those of `arrays[n]` are the rows `rows[n]` of all."""

    def __init__(
        self, arrays: Sequence[UInt8[np.ndarray, "..."] | SampleArrays], rows: Sequence[Int[np.ndarray, "N"]]
    ) -> None:
        self.shape, self._arrays = (sum(map(len, rows)), *arrays[0].shape[1:]), arrays
        self._owners, self._numbers = np.zeros(self.shape[0], np.int64), np.zeros(self.shape[0], np.int64)
        for owner, part in enumerate(rows):
            self._owners[part], self._numbers[part] = owner, np.arange(len(part))

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "..."]:
        rows = np.atleast_1d(np.asarray(index))
        content = np.zeros((len(rows), *self.shape[1:]), np.uint8)
        for owner, array in enumerate(self._arrays):
            inside = np.flatnonzero(self._owners[rows] == owner)
            if len(inside):
                content[inside] = array[self._numbers[rows[inside]]]
        return content if np.ndim(index) else content[0]
