"""Samples as shards: images and sounds are decoded once, texts tokenised once, in a random order, next to a table from
which a training starts.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from headway.data.array_store import ColumnWriter, read_column, read_info, write_info
from headway.data.labelled_files import LabelledFiles
from headway.data.packing import Spans
from headway.data.prepared.preparation import PartSamples, file_digest_of
from headway.data.prepared.remote_sources import LOCAL, SourceFiles
from headway.data.prepared.shard_files import write_shard
from headway.data.shuffling import permute
from headway.data.splits import SPLITS, split_code, text_key
from headway.errors import UserError, logger
from headway.io.durable import atomic_write, read_json, write_json

TABLE_FILE = "samples.safetensors"
_LOG = logger(__name__)
_MAX_BLOCK, _MIN_BLOCK, _MIN_BLOCKS = 1 << 25, 1 << 18, 64  # bytes of files
_SETTINGS = "settings.json"
_COLUMNS = {
    "data": np.uint8,
    "keys": np.uint8,
    "hashes": np.uint64,
    "numbers": np.int64,
    "sizes": np.int64,
    "lengths": np.int64,
    "checksums": np.uint32,
    "flags": np.uint8,
    "sums": np.uint64,
}


class EncodedSample(NamedTuple):
    """A decoded sample: its bytes in a shard; its key, of which equal ones are in the same split; its length, or that
    of each part; a flag, 0 or 1; sums of its values, from which a training has means over any samples without reading
    them; and a string that equal samples share, if it is not the key.
    """

    content: bytes
    key: bytes
    length: int | tuple[int, ...] = 1
    flag: int = 0
    sums: Sequence[int] = ()
    identity: str = ""


class SampleStrings(NamedTuple):
    """The labels of samples, and their names for messages: arrays of strings, [N]."""

    labels: np.ndarray
    names: np.ndarray


class SampleEncoder(Protocol):
    """How a kind of sample is decoded. `name` is the kind, in the plural; keys have `key_bytes`. After `start`, a
    sample has `num_sums`.
    """

    name: str
    key_bytes: int
    num_sums: int

    def plan(self) -> dict[str, Any]:
        """Everything that samples depend on in addition to their files, as JSON."""
        ...

    def choose(self, labelled: LabelledFiles, local: Callable[[Path], Path]) -> dict[str, Any]:
        """Settings for all samples that depend on the files, as JSON; one process chooses them. `local` returns a file
        with the contents of one of them, which is valid until the next call.
        """
        ...

    def start(self, settings: Mapping[str, Any]) -> None:
        """Use these settings from now on."""
        ...

    def encode(self, path: Path, index: int | None = None) -> EncodedSample:
        """Decode a file, or the sample at an index in a file of several. UserError for one that cannot be read."""
        ...


class SampleShards:
    """The parts and shards of samples that are read by offset, and their table."""

    unit_bytes = 1
    is_divisible = False
    parts = 1  # whose lengths the table states
    name: str
    key_bytes: int
    num_sums = 0  # per sample
    has_splits: bool

    @property
    def blocks(self) -> int:
        raise NotImplementedError

    def named_splits(self, folder: Path, numbers: np.ndarray) -> np.ndarray:
        """The splits that files of samples of a part are named after, uint8 [N]."""
        raise NotImplementedError

    def strings(self, folder: Path, numbers: np.ndarray) -> SampleStrings:
        """The strings of the samples of a part."""
        raise NotImplementedError

    def write_samples(self, folder: Path, encoded: Iterable[tuple[int, EncodedSample]]) -> int:
        """Write the samples of a part, each with its number in the sources; return how many there are."""
        samples: list[EncodedSample] = []
        numbers: list[int] = []
        with ColumnWriter(folder, _COLUMNS) as columns:
            for number, sample in encoded:
                columns.append("data", np.frombuffer(sample.content, np.uint8))
                samples.append(sample._replace(content=b""))
                columns.append("sizes", [len(sample.content)])
                columns.append("checksums", [zlib.crc32(sample.content)])
                numbers.append(number)
            columns.append("numbers", numbers)
            columns.append("keys", np.frombuffer(b"".join(sample.key for sample in samples), np.uint8))
            hashes = [text_key(sample.identity or sample.key.hex()) for sample in samples]
            columns.append("hashes", np.array(hashes, np.uint64))
            columns.append("lengths", [sample.length for sample in samples])
            columns.append("flags", [sample.flag for sample in samples])
            columns.append("sums", np.array([sample.sums for sample in samples], np.uint64).reshape(-1))
        return len(samples)

    def samples(self, folder: Path) -> PartSamples:
        columns = self.columns(folder, "hashes", "numbers", "sizes")
        spans = Spans(np.arange(len(columns["sizes"])), columns["sizes"])
        return PartSamples(columns["hashes"], self.named_splits(folder, columns["numbers"]), spans)

    def columns(self, folder: Path, *names: str) -> dict[str, np.ndarray]:
        """Columns of a part, [N] or [N, ...]."""
        count = read_info(folder)["samples"]
        shapes: dict[str, tuple[int, ...]] = {"keys": (self.key_bytes,), "sums": (self.num_sums,)}
        if self.parts > 1:
            shapes["lengths"] = (self.parts,)
        return {
            name: np.asarray(
                read_column(folder, name, _COLUMNS[name], count * math.prod(shapes.get(name, ())))
            ).reshape(count, *shapes.get(name, ()))
            for name in names
        }

    def text_bytes(self, folder: Path) -> int:
        return int(self.columns(folder, "sizes")["sizes"].sum())

    def cut_ends(self, folder: Path, training: np.ndarray, validation: float, test: float) -> dict[str, Spans]:
        raise NotImplementedError

    def write_shard(self, path: Path, pieces: Sequence[tuple[Path, Spans]]) -> str:
        contents = [np.zeros(0, np.uint8)]
        for folder, spans in pieces:
            if not len(spans.starts):
                continue
            ends = np.cumsum(self.columns(folder, "sizes")["sizes"])
            data = read_column(folder, "data", np.uint8, int(ends[-1]))
            runs = np.split(spans.starts, np.flatnonzero(np.diff(spans.starts) != 1) + 1)
            contents += [data[ends[run[0] - 1] if run[0] else 0 : ends[run[-1]]] for run in runs]
        return write_shard(path, {"data": np.concatenate(contents)})

    def write_table(self, work: Path, out: Path, spans: Callable[[int], Mapping[str, Spans]]) -> tuple[int, str]:
        """Write the table of all samples, in the order of their sources; return its size and digest."""
        names = ("keys", "numbers", "sizes", "lengths", "checksums", "flags", "sums")
        parts: dict[str, list[dict[str, np.ndarray]]] = {split: [] for split in SPLITS}
        for block in range(self.blocks):
            folder = work / "parts" / f"{block:07d}"
            columns = self.columns(folder, *names)
            columns["splits"] = self.named_splits(folder, columns["numbers"])
            columns |= self.strings(folder, columns["numbers"])._asdict()
            for split, chosen in spans(block).items():
                parts[split].append({name: column[chosen.starts] for name, column in columns.items()})
        ordered = [part for split in SPLITS for part in parts[split]]  # as in the shards
        table = {name: np.concatenate([part[name] for part in ordered]) for name in ordered[0]}
        if self.has_splits:
            counts = [sum(len(part["sizes"]) for part in parts[split]) for split in SPLITS]
            table["splits"] = np.repeat(np.array([split_code(split) for split in SPLITS], np.uint8), counts)
        rank = np.argsort(table.pop("numbers"), kind="stable")
        table = {name: column[rank] for name, column in table.items()}
        table["positions"] = rank
        labels = table["labels"].tolist()
        codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
        table["labels"] = np.fromiter(map(codes.__getitem__, labels), np.uint32, len(labels))
        for name, strings in (("name", table.pop("names").tolist()), ("label", list(codes))):
            encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
            table[f"{name}_text"] = np.frombuffer(b"".join(encoded), np.uint8)
            table[f"{name}_offsets"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        with atomic_write(out / TABLE_FILE) as draft:
            write_shard(draft, table)
        return file_digest_of(out / TABLE_FILE)


class SampleKind(SampleShards):
    """Labelled files, decoded by an encoder. Blocks take files in a random order, so that each shard, and each window
    of shards, has samples of all classes. With `skip_bad`, files that cannot be read are left out and counted.
    """

    def __init__(
        self,
        encoder: SampleEncoder,
        labelled: LabelledFiles,
        seed: int,
        skip_bad: bool = False,
        has_splits: bool = False,
        sources: SourceFiles = LOCAL,
    ) -> None:
        self.encoder, self.labelled, self.skip_bad, self.sources = encoder, labelled, skip_bad, sources
        self.name, self.key_bytes, self.has_splits = encoder.name, encoder.key_bytes, has_splits
        counts = Counter(labelled.files)
        states = {path: path.stat() for path in counts}
        self._sizes = np.array([states[path].st_size // counts[path] for path in labelled.files], np.int64)
        self._times = np.array([state.st_mtime_ns for state in states.values()], np.int64)
        order = permute(np.arange(len(labelled)), len(labelled), seed)
        ends = np.cumsum(self._sizes[order])
        size = int(np.clip(ends[-1] // _MIN_BLOCKS, _MIN_BLOCK, _MAX_BLOCK))
        self._blocks = np.split(order, np.flatnonzero(np.diff(ends // size)) + 1)

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def plan(self) -> dict[str, Any]:
        digest = hashlib.blake2b(self._sizes.tobytes() + self.labelled.named_splits.tobytes(), digest_size=16)
        for column in (map(self.sources.name, self.labelled.locations), self.labelled.labels):
            digest.update("\0".join(column).encode("utf-8", "surrogateescape"))
        return {"encoder": self.encoder.plan(), "skip_bad": self.skip_bad, "sources": digest.hexdigest()}

    def times(self) -> list[int]:
        return [int.from_bytes(hashlib.blake2b(self._times.tobytes(), digest_size=6).digest(), "little")]

    def begin(self, work: Path) -> None:
        """Choose the settings of the encoder."""
        path = work / _SETTINGS
        if not path.exists():
            with self.sources.fetched_singly() as local:
                write_json(path, self.encoder.choose(self.labelled, local))
        self.encoder.start(read_json(path))
        self.num_sums = self.encoder.num_sums

    def write_part(self, folder: Path, block: int) -> None:
        errors: list[str] = []
        count = self.write_samples(folder, self._encoded(block, errors))
        write_info(folder, {"samples": count, "errors": errors})

    def _encoded(self, block: int, errors: list[str]) -> Iterator[tuple[int, EncodedSample]]:
        numbers = self._blocks[block].tolist()
        with self.sources.fetched([self.labelled.files[number] for number in numbers]) as files:
            for number, file in zip(numbers, files):
                try:
                    yield number, self.encoder.encode(file, self.labelled.index(number))
                except UserError as error:
                    reason = str(error).replace(str(file), self.sources.name(str(self.labelled.files[number])))
                    if not self.skip_bad:
                        raise UserError(f"{reason}; or leave such files out with --skip-bad and a new --out") from None
                    errors.append(reason)

    def named_splits(self, folder: Path, numbers: np.ndarray) -> np.ndarray:
        return self.labelled.named_splits[numbers]

    def strings(self, folder: Path, numbers: np.ndarray) -> SampleStrings:
        rows, labelled = numbers.tolist(), self.labelled
        names = [self.sources.name(str(labelled.files[row])) for row in rows]  # to which task.group applies
        return SampleStrings(np.array([labelled.labels[row] for row in rows], object), np.array(names, object))

    def finish(
        self, work: Path, out: Path, spans: Callable[[int], Mapping[str, Spans]]
    ) -> tuple[Mapping[str, tuple[int, str]], Mapping[str, Any]]:
        table = self.write_table(work, out, spans)
        folders = (work / "parts" / f"{block:07d}" for block in range(self.blocks))
        errors = [error for folder in folders for error in read_info(folder)["errors"]]
        if errors:
            _LOG.warning("left out files that cannot be read (%d): %s", len(errors), "; ".join(errors[:3]))
        details = {
            **read_json(work / _SETTINGS),
            "from_folders": self.labelled.from_folders,
            "left_out": len(errors),
            "has_splits": self.has_splits,
        }
        return {TABLE_FILE: table}, details
