"""Rows of tables, pairs and conversations as shards of token ids, in a random order, and the tokenizer of prepared
data, which processes share.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from headway.codecs import FILE, Codec, Kind, load_codecs
from headway.codecs.published_tokenizers import SOURCE_FILE
from headway.data.array_store import ColumnWriter, read_column, write_info
from headway.data.input_files import File
from headway.data.packing import Spans
from headway.data.prepared.preparation import PartSamples, file_digest_of
from headway.data.prepared.sample_shards import TABLE_FILE, EncodedSample, SampleShards, SampleStrings
from headway.data.prepared.text_blocks import source_size
from headway.data.shuffling import permute
from headway.data.splits import split_code, text_key
from headway.data.token_store import ids_dtype
from headway.io.durable import atomic_write, read_json, write_json
from headway.io.hub import named_folder

_MAX_BLOCK, _MIN_BLOCK, _MIN_BLOCKS = 1 << 25, 1 << 18, 64  # bytes of sources
_SAMPLE_CHARACTERS = 1 << 26  # characters that a tokenizer is trained on
_ROWS_AT_ONCE = 1024  # rows that are tokenised together
KEY_BYTES = 8
_STRINGS = "strings.json"
_FACTS = "facts.json"


class SharedCodecs:
    """The tokenizers of the data to prepare, in a `folder` that the processes share: at most `count` of a published
    `tokenizer`, or those of a `kind` that `train` returns with facts for the index. Of two, one is for the first part
    of samples and one for the second.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: str | None,
        kind: Kind,
        train: Callable[[], tuple[Sequence[Codec], Mapping[str, Any]]],
        count: int = 1,
    ) -> None:
        self._folder, self._kind = folder, kind if tokenizer is None else FILE
        if not folder.exists():
            with atomic_write(folder) as draft:
                facts: Mapping[str, Any] = {"tokenizer": tokenizer}
                if tokenizer is not None:
                    self.codecs = load_codecs(named_folder(tokenizer))[-count:]
                else:
                    self.codecs, facts = train()
                self.codecs[-1].save(draft)
                for codec in self.codecs[:-1]:
                    codec.save(draft / SOURCE_FILE)
                write_json(draft / _FACTS, facts)
        self.codecs: Sequence[Codec] = load_codecs(folder)
        self.dtype = shared_dtype(self.codecs)

    def publish(self, out: Path) -> tuple[dict[str, tuple[int, str]], dict[str, Any]]:
        """Write the tokenizers next to the shards: the digests of their files, and what the index states about them."""
        names = sorted(path.name for path in self._folder.iterdir() if path.name != _FACTS)
        for name in names:
            shutil.copyfile(self._folder / name, out / name)
        details = {
            "dtype": self.dtype.name,
            "vocab_size": self.codecs[-1].vocab_size,
            "fingerprint": shared_fingerprint(self.codecs),
            "codec": self._kind,
            **read_json(self._folder / _FACTS),
        }
        return {name: file_digest_of(out / name) for name in names}, details


def shared_dtype(codecs: Sequence[Codec]) -> np.dtype:
    """The type of the token ids of samples."""
    return ids_dtype(max(codec.vocab_size for codec in codecs))


def shared_fingerprint(codecs: Sequence[Codec]) -> str:
    """The fingerprint in the index."""
    return " ".join(codec.fingerprint() for codec in codecs)


class SourceRow(NamedTuple):
    """A row of the sources: what is tokenised, as JSON; its label; the code of the split that its file is named after;
    and its location, for messages.
    """

    content: Any
    label: str
    named_split: int
    location: str


class RowReader(Protocol):
    """How a kind of rows is read and tokenised. A sample has `parts`, whose numbers of tokens the table states, and
    `num_sums`. There are at most as many tokenizers as `vocabularies`. `settings` are everything that samples depend on
    in addition to files and tokenizers, as JSON; the index states them.
    """

    name: str
    parts: int
    num_sums: int
    vocabularies: int
    codec: Kind  # kind of the tokenizer to train

    files: Sequence[File]
    settings: Mapping[str, Any]

    def rows(self) -> Iterator[SourceRow]:
        """All rows, in the order of the sources. UserError for one that cannot be read."""
        ...

    def texts(self, content: Any) -> Sequence[str]:
        """The texts of a row that tokenizers are trained on; of several tokenizers, one text for each."""
        ...

    def train(self, texts: Iterable[str]) -> Codec: ...
    def encode(self, rows: Sequence[SourceRow], codecs: Sequence[Codec]) -> Iterable[EncodedSample]: ...


class RowKind(SampleShards):
    """Rows, tokenised by a published `tokenizer` or by a new one. One process reads all rows and deals them to blocks
    at random, so that each shard, and each window of shards, has rows of all sources and classes.
    """

    key_bytes = KEY_BYTES

    def __init__(self, reader: RowReader, tokenizer: str | None, seed: int = 0, has_splits: bool = False) -> None:
        self.reader, self.tokenizer, self.seed, self.has_splits = reader, tokenizer, seed, has_splits
        self.name, self.parts, self.num_sums = reader.name, reader.parts, reader.num_sums
        total = sum(map(source_size, reader.files))
        self._count = max(1, -(-total // int(np.clip(total // _MIN_BLOCKS, _MIN_BLOCK, _MAX_BLOCK))))
        self._shared: SharedCodecs | None = None

    @property
    def blocks(self) -> int:
        return self._count

    def plan(self) -> dict[str, Any]:
        sources = [[file.name, file.member, file.named_split, source_size(file)] for file in self.reader.files]
        settings = {"tokenizer": self.tokenizer, "seed": self.seed, "has_splits": self.has_splits}
        return {**self.reader.settings, **settings, "sources": sources}

    def times(self) -> list[int]:
        return [file.path.stat().st_mtime_ns for file in self.reader.files]

    def begin(self, work: Path) -> None:
        """Deal the rows to blocks, and load the tokenizers or train them on the first rows of the random order."""
        folder = work / "rows"
        if not folder.exists():
            with atomic_write(folder) as draft:
                draft.mkdir()
                self._deal(draft)
        self._shared = SharedCodecs(
            work / "codec",
            self.tokenizer,
            self.reader.codec,
            lambda: self._train(folder),
            self.reader.vocabularies,
        )

    def _deal(self, folder: Path) -> None:
        rng, size = random.Random(self.seed), 0
        pending: list[list[str]] = [[] for _ in range(self._count)]

        def write() -> None:
            for block, lines in enumerate(pending):
                with open(folder / _block_name(block), "a") as file:
                    file.writelines(lines)
                lines.clear()

        for number, row in enumerate(self.reader.rows()):
            line = json.dumps([number, *row]) + "\n"
            pending[rng.randrange(self._count)].append(line)
            size += len(line)
            if size >= _MAX_BLOCK:
                write()
                size = 0
        write()

    def _rows(self, folder: Path, block: int) -> list[tuple[int, SourceRow]]:
        """The rows of a block with their numbers in the sources, in random order."""
        with open(folder / _block_name(block)) as file:
            lines = file.readlines()
        order = permute(np.arange(len(lines)), len(lines), self.seed).tolist()
        return [(number, SourceRow(*row)) for number, *row in (json.loads(lines[index]) for index in order)]

    def _train(self, folder: Path) -> tuple[list[Codec], dict[str, Any]]:
        digest, counts, count = hashlib.sha256(), {"rows": 0, "characters": 0}, self.reader.vocabularies

        def texts(number: int) -> Iterator[str]:
            limit = counts["characters"] + _SAMPLE_CHARACTERS
            rows = (row for block in range(self._count) for _, row in self._rows(folder, block))
            for row in (row for row in rows if row.named_split <= split_code("train")):
                if counts["characters"] >= limit:
                    return
                counts["rows"] += number == 0
                for text in self.reader.texts(row.content)[number::count]:
                    counts["characters"] += len(text)
                    digest.update(text.encode())
                    yield text

        codecs = [self.reader.train(texts(number)) for number in range(count)]
        order = f"rows in a random order, without those of held-out files, by the seed {self.seed}"
        return codecs, {"sample": {"order": order, **counts, "sha256": digest.hexdigest()}}

    def write_part(self, folder: Path, block: int) -> None:
        assert self._shared is not None  # loaded by begin
        rows, codecs = self._rows(folder.parent.parent / "rows", block), self._shared.codecs
        encoded = (
            sample
            for first in range(0, len(rows), _ROWS_AT_ONCE)
            for sample in self.reader.encode([row for _, row in rows[first : first + _ROWS_AT_ONCE]], codecs)
        )
        numbered = (
            (number, sample._replace(identity=json.dumps([row.content, row.label])))
            for (number, row), sample in zip(rows, encoded, strict=True)
        )
        count = self.write_samples(folder, numbered)
        with ColumnWriter(folder, {"named": np.uint8}) as columns:
            columns.append("named", [row.named_split for _, row in rows])
        strings = {"labels": [row.label for _, row in rows], "names": [row.location for _, row in rows]}
        write_json(folder / _STRINGS, strings)
        write_info(folder, {"samples": count})

    def samples(self, folder: Path) -> PartSamples:
        samples, keys = super().samples(folder), self.columns(folder, "keys")["keys"]
        return samples._replace(keys=keys.view("<u8")[:, 0], hashes=samples.keys)

    def named_splits(self, folder: Path, numbers: np.ndarray) -> np.ndarray:
        return np.asarray(read_column(folder, "named", np.uint8, len(numbers)))

    def strings(self, folder: Path, numbers: np.ndarray) -> SampleStrings:
        strings = read_json(folder / _STRINGS)
        return SampleStrings(*(np.array(strings[name], object) for name in ("labels", "names")))

    def finish(
        self, work: Path, out: Path, spans: Callable[[int], Mapping[str, Spans]]
    ) -> tuple[Mapping[str, tuple[int, str]], Mapping[str, Any]]:
        assert self._shared is not None  # loaded by begin
        table = self.write_table(work, out, spans)
        files, details = self._shared.publish(out)
        return {TABLE_FILE: table, **files}, {**self.reader.settings, **details, "has_splits": self.has_splits}


def _block_name(block: int) -> str:
    return f"{block:07d}.jsonl"


def encode_columns(contents: Iterable[Sequence[str]], codecs: Sequence[Codec]) -> Iterator[EncodedSample]:
    """Rows of one or more texts as token ids, one text after the other. Equal first texts are in the same split."""
    dtype = shared_dtype(codecs)
    columns = [codec.encode_batch(list(texts)) for codec, texts in zip(cycle(codecs), zip(*contents))]
    for texts, rows in zip(contents, zip(*columns)):
        content = np.array([token for ids in rows for token in ids], dtype).tobytes()
        key = text_key(texts[0]).to_bytes(KEY_BYTES, "little")
        yield EncodedSample(content, key, tuple(map(len, rows)))
