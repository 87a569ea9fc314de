"""Texts as shards of token ids: the tokenizer, and the parts that `headway data prepare` writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headway.codecs import Codec, Kind, train_codec
from headway.data.corpus import Chunk, iter_chunks
from headway.data.input_files import File
from headway.data.packing import Spans
from headway.data.prepared.preparation import PartSamples
from headway.data.prepared.shard_files import write_shard
from headway.data.prepared.text_blocks import RemoteFile, Source, cut_blocks, exact_sources, source_size
from headway.data.shuffling import permute
from headway.data.splits import SPLITS
from headway.data.token_store import load_tokens, write_tokens
from headway.io.durable import remove
from headway.learn.token_shards import SharedCodecs

_SAMPLE_CHARACTERS = 1 << 26  # characters that the tokenizer is trained on
_BYTES_PER_CHARACTER = 4  # at most, in UTF-8
_MIN_SAMPLE = 1 << 16  # characters per file; of more files than fit, the first in random order are used


class TextKind:
    """Texts of `sources`, tokenised by a published `tokenizer`, or by a new one of this kind and size (codec, size)."""

    name = "texts"
    is_divisible = has_splits = True

    def __init__(
        self, sources: Sequence[Source], codec: Kind, size: int | None, tokenizer: str | None = None, seed: int = 0
    ) -> None:
        self.sources, self.size, self.tokenizer, self.seed = sources, size, tokenizer, seed
        self.codec_kind: Kind = codec
        self._blocks = cut_blocks(sources)
        self._shared: SharedCodecs | None = None

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    @property
    def unit_bytes(self) -> int:
        assert self._shared is not None  # loaded by begin
        return self._shared.dtype.itemsize

    def plan(self) -> dict[str, Any]:
        sources = []
        for source in self.sources:
            name = source.path.name if isinstance(source, File) else source.name
            detail = source.member if isinstance(source, File) else getattr(source, "content", None)
            sources.append([name, detail, source.named_split, source_size(source)])
        return {"codec": self.codec_kind, "size": self.size, "tokenizer": self.tokenizer, "sources": sources}

    def times(self) -> list[int]:
        return [source.path.stat().st_mtime_ns for source in self.sources if isinstance(source, File)]

    def begin(self, work: Path) -> None:
        """Load the tokenizer, or train it on the first characters of each file in an order that the seed determines."""

        def train() -> tuple[list[Codec], dict[str, Any]]:
            sample = _Sample(self.sources, self.seed, work / "sample")
            codec = train_codec(self.codec_kind, sample.chunks(), self.size, fewer=True)
            return [codec], {"sample": sample.facts()}

        self._shared = SharedCodecs(work / "codec", self.tokenizer, self.codec_kind, train)

    def write_part(self, folder: Path, block: int) -> None:
        assert self._shared is not None  # loaded by begin
        downloads = folder / "downloads"
        write_tokens(folder, exact_sources(self._blocks[block], downloads), self._shared.codecs[0])
        remove(downloads)

    def samples(self, folder: Path) -> PartSamples:
        cache = load_tokens(folder)
        spans = Spans(np.asarray(cache.offsets[:-1]), np.diff(cache.offsets))
        return PartSamples(np.asarray(cache.keys), np.asarray(cache.named_splits), spans)

    def text_bytes(self, folder: Path) -> int:
        return load_tokens(folder).text_bytes

    def cut_ends(self, folder: Path, training: np.ndarray, validation: float, test: float) -> dict[str, Spans]:
        spans, splits = load_tokens(folder).cut_documents(self.samples(folder).spans, training, validation, test)
        return {split: spans.select(splits[split]) for split in SPLITS}

    def write_shard(self, path: Path, pieces: Sequence[tuple[Path, Spans]]) -> str:
        ids = [
            tokens[start : start + length]
            for folder, spans in pieces
            for tokens in (load_tokens(folder).ids,)
            for start, length in zip(*map(np.ndarray.tolist, spans))
        ]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(part) for part in ids], out=offsets[1:])
        return write_shard(path, {"ids": np.concatenate(ids), "offsets": offsets})

    def finish(
        self, work: Path, out: Path, spans: Callable[[int], Mapping[str, Spans]]
    ) -> tuple[Mapping[str, tuple[int, str]], Mapping[str, Any]]:
        assert self._shared is not None  # loaded by begin
        first = load_tokens(next(iter(sorted((work / "parts").glob("*[0-9]")))))
        files, details = self._shared.publish(out)
        return files, {**details, "framing": list(first.framing)}


class _Sample:
    """The text that a tokenizer is trained on: the first characters of each file, equally many per file."""

    def __init__(self, sources: Sequence[Source], seed: int, downloads: Path) -> None:
        self._sources, self._seed, self._downloads = sources, seed, downloads
        self.limit = max(_MIN_SAMPLE, _SAMPLE_CHARACTERS // len(sources))
        self._files = self._characters = 0
        self._digest = hashlib.sha256()

    def chunks(self) -> Iterator[str]:
        for number in map(partial(permute, size=len(self._sources), seed=self._seed), range(len(self._sources))):
            if self._characters >= _SAMPLE_CHARACTERS:
                return
            self._files, left = self._files + 1, self.limit
            for chunk in self._chunks_of(self._sources[number]):
                text = chunk.text[:left]
                self._characters, left = self._characters + len(text), left - len(text)
                self._digest.update(text.encode())
                yield text
                if left <= 0:
                    break

    def _chunks_of(self, source: Source) -> Iterator[Chunk]:
        if not isinstance(source, RemoteFile):
            yield from iter_chunks(source)
            return
        remove(self._downloads)
        self._downloads.mkdir()
        for file in source.download(self._downloads, _BYTES_PER_CHARACTER * self.limit):
            yield from iter_chunks(file)
        remove(self._downloads)

    def facts(self) -> dict[str, Any]:
        """What the sample was, for the index."""
        return {
            "order": f"the files, permuted by the seed {self._seed}",
            "characters_per_file": self.limit,
            "files": self._files,
            "characters": self._characters,
            "sha256": self._digest.hexdigest(),
        }
