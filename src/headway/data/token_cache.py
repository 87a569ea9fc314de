"""Documents tokenised once, into memory-mapped token ids that many processes can read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.content_hash import Encoder, fingerprint
from headway.data.corpus import Chunk, TextSource, iter_chunks, text_sources
from headway.data.input_files import File
from headway.data.packing import Spans
from headway.data.splits import SPLITS, SplitConfig, Splits, assign_splits, held_out_shares, split_code
from headway.errors import UserError

FEW_DOCUMENTS = 100
"""With fewer documents, held-out shares are cut off the ends of documents instead of holding out whole documents."""

_FORMAT = 1
_BATCH = 1 << 20  # characters tokenised at once: at worst about 150 MB of tokenizer and Python objects

Progress = Callable[[int, int], None]
"""Called with the bytes of text done and the total bytes, or 0 if the total is unknown."""


def ids_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype for the ids of a vocabulary of `vocab_size` tokens."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


@dataclass(frozen=True)
class TokenCache:
    """A corpus as token ids: concatenated documents, each between the codec's begin and end tokens if it has them.

    `ids` uint16 or uint32 [tokens]; `offsets` int64 [documents + 1]; `keys` uint64 [documents], text hashes;
    `named_splits` uint8 [documents], the split in the file's name (0: none). `framing` is the number of tokens
    (begin, end) added around each document. Arrays are memory-mapped and read-only.
    """

    directory: Path
    ids: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    named_splits: np.ndarray
    framing: tuple[int, int]
    text_bytes: int

    @property
    def documents(self) -> int:
        return len(self.keys)

    def split(self, config: SplitConfig, min_tokens: int = 1) -> tuple[Spans, Splits]:
        """The spans of all documents followed by parts of documents, and the spans of each split with at least
        `min_tokens` tokens.

        Without named splits, documents are assigned by the hash of their text, so identical documents are never in
        two splits. With fewer than a hundred documents this could leave a split empty or lopsided, so each document is
        cut instead: its end is test, the part before that validation. Equal documents are cut at equal positions, so
        this does not leak either.
        """
        named_splits, all_indices = np.asarray(self.named_splits), np.arange(self.documents)
        document_spans = Spans(np.asarray(self.offsets[:-1]), np.diff(self.offsets))
        present = frozenset(np.unique(named_splits).tolist())
        training, shares = np.flatnonzero(named_splits <= split_code("train")), held_out_shares(present, config)
        if len(training) < FEW_DOCUMENTS and any(shares):
            spans, splits = self._cut_documents(document_spans, training, *shares)
        else:
            split_codes = assign_splits(np.asarray(self.keys), named_splits, present, config)
            spans, splits = (
                document_spans,
                {split: np.flatnonzero(split_codes == split_code(split)) for split in SPLITS},
            )
        long_enough = {split: indices[spans.lengths[indices] >= min_tokens] for split, indices in splits.items()}
        return spans, Splits(long_enough, all_indices, "documents", "more text, a file or folder")

    def _cut_documents(
        self, document_spans: Spans, training: np.ndarray, validation: float, test: float
    ) -> tuple[Spans, dict[str, np.ndarray]]:
        """The spans of documents and of the parts of training documents, and the span indices of each split."""
        starts, lengths = document_spans.select(training)
        bos_count, eos_count = self.framing
        text_lengths = lengths - bos_count - eos_count
        # A share of 0 gives that split nothing from a document, not even its end token.
        test_starts = bos_count + (text_lengths * (1 - test)).astype(np.int64) if test else lengths
        validation_starts = (
            bos_count + (text_lengths * (1 - validation - test)).astype(np.int64) if validation else test_starts
        )
        edges = (np.zeros_like(validation_starts), validation_starts, test_starts, lengths)
        splits = {}
        for position, split in enumerate(SPLITS):
            part_indices = len(document_spans.starts) + position * len(training) + np.arange(len(training))
            named_indices = np.flatnonzero(self.named_splits == split_code(split)) if split != "train" else training[:0]
            splits[split] = np.concatenate([part_indices, named_indices])
        return Spans(
            np.concatenate([document_spans.starts, *(starts + low for low in edges[:-1])]),
            np.concatenate([document_spans.lengths, *(high - low for low, high in pairwise(edges))]),
        ), splits


def open_tokens(paths: Iterable[Path | str], codec: Encoder, progress: Progress | None = None) -> TokenCache:
    """The token ids of documents, from the cache if this codec has tokenised these contents before."""
    sources = text_sources(paths)
    key = cache_key("tokens", _FORMAT, fingerprint(sources), codec.fingerprint())
    return load_tokens(open_or_build(cache_root() / key, lambda part: _build(part, sources, codec, progress)))


def load_tokens(folder: Path) -> TokenCache:
    """A token cache from its folder."""
    info = read_info(folder)
    count = info["documents"]
    return TokenCache(
        directory=folder,
        ids=read_column(folder, "ids", info["type"], info["tokens"]),
        offsets=read_column(folder, "offsets", np.int64, count + 1),
        keys=read_column(folder, "keys", np.uint64, count),
        named_splits=read_column(folder, "named", np.uint8, count),
        framing=(info["begin"], info["end"]),
        text_bytes=info["text_bytes"],
    )


def _build(part: Path, sources: Sequence[TextSource], codec: Encoder, progress: Progress | None) -> None:
    dtypes = {"ids": ids_dtype(codec.vocab_size), "offsets": np.int64, "keys": np.uint64, "named": np.uint8}
    total = _plain_bytes(sources)
    with ColumnWriter(part, dtypes) as columns:
        columns.append("offsets", [0])
        writer = _Writer(columns, codec)
        for batch in _batches(sources):
            writer.add(batch)
            if progress is not None:
                progress(writer.text_bytes, total)
    if writer.documents == 0:
        raise UserError(f"{', '.join(map(str, sources[:3]))}: all documents are empty; add some text")
    info = {"documents": writer.documents, "tokens": writer.tokens, "text_bytes": writer.text_bytes}
    framing = {"begin": int(codec.bos_id is not None), "end": int(codec.eos_id is not None)}
    write_info(part, {**info, **framing, "type": dtypes["ids"].name})


class _Writer:
    """Appends tokenised chunks to a cache, and a document's key and end after its last chunk."""

    def __init__(self, columns: ColumnWriter, codec: Encoder) -> None:
        self.documents = self.tokens = self.text_bytes = 0
        self._columns, self._codec = columns, codec
        self._digest = hashlib.blake2b(digest_size=8)
        self._in_document = False

    def add(self, batch: Sequence[tuple[Chunk, int]]) -> None:
        rows: list[Sequence[int]] = []
        offsets, keys, split_codes = [], [], []
        encoded = self._codec.encode_batch([chunk.text for chunk, _ in batch])
        for (chunk, code), ids in zip(batch, encoded):
            text = chunk.text.encode()
            self._digest.update(text)
            self.text_bytes += len(text)
            if not self._in_document and self._codec.bos_id is not None:
                ids = [self._codec.bos_id, *ids]
            if chunk.is_last and self._codec.eos_id is not None:
                ids = [*ids, self._codec.eos_id]
            rows.append(ids)
            self.tokens += len(ids)
            self._in_document = not chunk.is_last
            if chunk.is_last:
                offsets.append(self.tokens)
                keys.append(int.from_bytes(self._digest.digest(), "little"))
                split_codes.append(code)
                self._digest = hashlib.blake2b(digest_size=8)
        count = sum(map(len, rows))
        self._columns.append("ids", np.fromiter(chain.from_iterable(rows), np.uint32, count))
        for name, values in (("offsets", offsets), ("keys", keys), ("named", split_codes)):
            self._columns.append(name, np.array(values, dtype=np.uint64))
        self.documents += len(keys)


def _batches(sources: Iterable[TextSource]) -> Iterator[list[tuple[Chunk, int]]]:
    """Chunks with the code of their named split, about a million characters at a time, without empty documents."""
    batch: list[tuple[Chunk, int]] = []
    characters = 0
    for source in sources:
        code = 0 if source.named_split is None else split_code(source.named_split)
        for chunk in iter_chunks(source):
            if not chunk.text:
                continue
            batch.append((chunk, code))
            characters += len(chunk.text)
            if characters >= _BATCH:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def _plain_bytes(sources: Iterable[TextSource]) -> int:
    """The bytes of text in sources if all are plain text files on disk; otherwise 0."""
    total = 0
    for source in sources:
        if not isinstance(source, File) or source.member is not None or source.path.suffix.lower() != ".txt":
            return 0
        total += source.path.stat().st_size
    return total
