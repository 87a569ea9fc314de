"""Texts tokenised once, into memory-mapped token ids that many processes can read: documents, pairs, and conversations
with a loss mask for the assistant's tokens. A store is found by a hash of everything that its ids depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    column_digest,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.corpus import (
    AlignedFiles,
    Pair,
    PairSource,
    TextSource,
    iter_chunks,
    pair_sources,
    read_pairs,
    text_sources,
)
from headway.data.input_files import File, HubSplit
from headway.data.packing import Spans
from headway.data.splits import SPLITS, SplitConfig, Splits, assign_splits, held_out_shares, split_code, text_key
from headway.errors import UserError
from headway.io.files import open_file

T = TypeVar("T")
_STRINGS_AT_ONCE = 4096  # strings joined at once


class Encoder(Protocol):
    """The part of a codec that caching needs."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def fingerprint(self) -> str: ...


def fingerprint(sources: Iterable[File | HubSplit | AlignedFiles]) -> str:
    """A hash of the sources' contents in order, with the file types and splits in their names.

    All bytes are hashed (about 1 GB/s), because sizes and times are not reliable; a hub dataset is identified by its
    cache hash.
    """
    digest = hashlib.blake2b(digest_size=16)
    hashes: dict[Path, bytes] = {}
    for source in sources:
        for file in (source.source, source.target) if isinstance(source, AlignedFiles) else (source,):
            if isinstance(file, HubSplit):
                # The old repr of a HubSplit, which keeps caches valid.
                fields = f"name={file.name!r}, config={file.config!r}, split={file.split!r}, side={file.named_split!r}"
                digest.update(f"(HubSplit({fields}, content={file.content!r}), {file.named_split!r})".encode())
                continue
            if file.path not in hashes:
                with open_file(file.path) as content:
                    hashes[file.path] = hashlib.file_digest(content, "blake2b").digest()
            digest.update(repr((hashes[file.path], file.member, file.kind, file.named_split)).encode())
    return digest.hexdigest()


def content_digest(values: Iterable[np.ndarray | Sequence[str]]) -> str:
    """A hash of the contents of arrays and lists of strings, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in values:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            continue
        digest.update(f"{len(part)} strings".encode())
        for start in range(0, len(part), _STRINGS_AT_ONCE):
            chunk = part[start : start + _STRINGS_AT_ONCE]
            digest.update(np.fromiter(map(len, chunk), np.int64, len(chunk)).data)
            digest.update("".join(chunk).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


FEW_DOCUMENTS = 100
"""With fewer documents, held-out shares are cut off the ends of documents instead of holding out whole documents."""

_FORMAT = 1
_TEXT_BATCH = 1 << 20  # characters tokenised at once: at worst about 150 MB of tokenizer and Python objects

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
            spans, splits = self.cut_documents(document_spans, training, *shares)
        else:
            split_codes = assign_splits(np.asarray(self.keys), named_splits, present, config)
            spans, splits = (
                document_spans,
                {split: np.flatnonzero(split_codes == split_code(split)) for split in SPLITS},
            )
        long_enough = {split: indices[spans.lengths[indices] >= min_tokens] for split, indices in splits.items()}
        return spans, Splits(long_enough, all_indices, "documents", "more text, a file or folder")

    def cut_documents(
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

    def build(part: Path) -> None:
        if write_tokens(part, sources, codec, progress) == 0:
            raise UserError(f"{', '.join(map(str, sources[:3]))}: all documents are empty; add some text")

    return load_tokens(open_or_build(cache_root() / key, build))


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


class _SequenceWriter:
    """Appends sequences of ids to the columns `ids` and `offsets`, whose names start with `prefix`."""

    def __init__(self, columns: ColumnWriter, prefix: str = "") -> None:
        self.tokens = 0
        self._columns, self._prefix = columns, prefix
        columns.append(f"{prefix}offsets", [0])

    def append(self, rows: Sequence[Sequence[int]], is_last: Sequence[bool] | None = None) -> None:
        """Append parts of sequences; `is_last` is true for parts that end one (by default all)."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ends = self.tokens + np.cumsum(lengths)
        self._columns.append(
            f"{self._prefix}ids", np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum()))
        )
        self._columns.append(f"{self._prefix}offsets", ends if is_last is None else ends[np.array(is_last, bool)])
        self.tokens += int(lengths.sum())


def write_tokens(folder: Path, sources: Sequence[TextSource], codec: Encoder, progress: Progress | None = None) -> int:
    """Tokenise documents into a folder for `load_tokens`, and return their number."""
    dtypes = {"ids": ids_dtype(codec.vocab_size), "offsets": np.int64, "keys": np.uint64, "named": np.uint8}
    is_plain = all(isinstance(s, File) and s.member is None and s.path.suffix.lower() == ".txt" for s in sources)
    total = sum(source.path.stat().st_size for source in sources if isinstance(source, File)) if is_plain else 0
    begin, end = ([] if token is None else [token] for token in (codec.bos_id, codec.eos_id))
    documents = text_bytes = 0
    in_document, digest = False, hashlib.blake2b(digest_size=8)
    with ColumnWriter(folder, dtypes) as columns:
        writer = _SequenceWriter(columns)
        chunks = ((chunk, _split_code(source)) for source in sources for chunk in iter_chunks(source) if chunk.text)
        for batch in _batches(chunks, lambda item: len(item[0].text), _TEXT_BATCH):
            rows: list[Sequence[int]] = []
            keys, split_codes = [], []
            for (chunk, code), ids in zip(batch, codec.encode_batch([chunk.text for chunk, _ in batch])):
                text = chunk.text.encode()
                digest.update(text)
                text_bytes += len(text)
                rows.append([*([] if in_document else begin), *ids, *(end if chunk.is_last else [])])
                in_document = not chunk.is_last
                if chunk.is_last:
                    keys.append(int.from_bytes(digest.digest(), "little"))
                    split_codes.append(code)
                    digest = hashlib.blake2b(digest_size=8)
            writer.append(rows, [chunk.is_last for chunk, _ in batch])
            columns.append("keys", np.array(keys, np.uint64))
            columns.append("named", split_codes)
            documents += len(keys)
            if progress is not None:
                progress(text_bytes, total)
    framing = {"begin": len(begin), "end": len(end), "type": dtypes["ids"].name}
    write_info(folder, {"documents": documents, "tokens": writer.tokens, "text_bytes": text_bytes, **framing})
    return documents


def _batches(items: Iterable[T], characters: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Items in lists of about `limit` characters."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += characters(item)
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_PAIR_BATCH = 1 << 19  # source and target characters tokenised at once


class UsablePairs(NamedTuple):
    """Usable pairs, int64 [N], and how many were dropped because they are too long or have an empty side."""

    pairs: np.ndarray
    too_long: int
    empty: int


class TokenColumn(NamedTuple):
    """The sources or targets of all pairs: ids [tokens], and the start of each, int64 [pairs + 1]."""

    ids: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per entry, int64 [pairs]."""
        return np.diff(self.offsets)

    def __getitem__(self, pair: int) -> np.ndarray:
        return self.ids[self.offsets[pair] : self.offsets[pair + 1]]


@dataclass(frozen=True)
class PairCache:
    """Parallel text as token ids, without begin and end tokens.

    `keys` uint64 [pairs] hash the sources' text; `named_splits` uint8 [pairs] is the split in the file's name.
    Arrays are memory-mapped and read-only. Pairs keep their order in the files.
    """

    directory: Path
    source: TokenColumn
    target: TokenColumn
    keys: np.ndarray
    named_splits: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def splits(self, config: SplitConfig) -> Splits:
        """The pairs of each split; equal sources are always in the same split."""
        named_splits = np.asarray(self.named_splits)
        present = frozenset(np.unique(named_splits).tolist())
        split_codes = assign_splits(np.asarray(self.keys), named_splits, present, config)
        indices = {split: np.flatnonzero(split_codes == split_code(split)) for split in SPLITS}
        return Splits(indices, np.arange(len(self)), "pairs")

    def within_limits(self, pairs: np.ndarray, source_limit: int, target_limit: int, drop_long: bool) -> UsablePairs:
        """The `pairs` within the limits (tokens, without special tokens) and without an empty side.

        UserError if some are too long and `drop_long` is not set, or if no pair remains.
        """
        sources, targets = self.source.lengths[pairs], self.target.lengths[pairs]
        too_long = (sources > source_limit) | (targets > target_limit)
        empty = (sources == 0) | (targets == 0)
        if too_long.any() and not drop_long:
            worst = int(np.maximum(sources, targets).argmax())
            raise UserError(
                f"{int(too_long.sum()):,} of {len(pairs):,} pairs are too long: pair {pairs[worst]:,} has "
                f"{sources[worst]} source and {targets[worst]} target tokens, over {source_limit} and {target_limit}; "
                "raise the limit, or drop long pairs"
            )
        usable = pairs[~(too_long | empty)]
        if len(usable) == 0:
            raise UserError(
                f"no pairs remain: of {len(pairs):,}, {int(too_long.sum()):,} are longer than {source_limit} source or "
                f"{target_limit} target tokens and {int(empty.sum()):,} have an empty side; raise the limit or use "
                "other pairs"
            )
        return UsablePairs(usable, int(too_long.sum()), int((empty & ~too_long).sum()))


def split_pairs(paths: Iterable[Path | str], split: str, config: SplitConfig) -> Iterator[Pair]:
    """Stream the text of a split's pairs, in the order of `PairCache.splits`."""
    sources = pair_sources(paths)
    present = frozenset(_split_code(source) for source in sources)
    code = split_code(split)
    return (
        pair
        for batch, split_codes in _pair_batches(sources)
        for pair, assigned_code in zip(
            batch, assign_splits(_keys(batch), np.array(split_codes, np.uint8), present, config)
        )
        if assigned_code == code
    )


def group_references(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Each source with all its targets, in order: several references for one source."""
    references: dict[str, list[str]] = {}
    for source, target in pairs:
        references.setdefault(source, []).append(target)
    return references


def open_pairs(
    paths: Iterable[Path | str], source_codec: Encoder, target_codec: Encoder, progress: Progress | None = None
) -> PairCache:
    """The tokens of pairs, from the cache if these contents have been tokenised by these codecs before."""
    sources = pair_sources(paths)
    codecs = (source_codec.fingerprint(), target_codec.fingerprint())
    key = cache_key("pairs", _FORMAT, fingerprint(sources), *codecs)
    return load_pairs(
        open_or_build(
            cache_root() / key, lambda part: _build_pairs(part, sources, source_codec, target_codec, progress)
        )
    )


def load_pairs(folder: Path) -> PairCache:
    """A pair cache from its folder."""
    info = read_info(folder)
    count = info["pairs"]

    def column(side: str) -> TokenColumn:
        ids = read_column(folder, f"{side}_ids", info[f"{side}_type"], info[f"{side}_tokens"])
        return TokenColumn(ids, read_column(folder, f"{side}_offsets", np.int64, count + 1))

    keys = read_column(folder, "keys", np.uint64, count)
    return PairCache(folder, column("source"), column("target"), keys, read_column(folder, "named", np.uint8, count))


def _build_pairs(
    part: Path, sources: Sequence[PairSource], source_codec: Encoder, target_codec: Encoder, progress: Progress | None
) -> None:
    codecs = {"source": source_codec, "target": target_codec}
    dtypes = {f"{side}_ids": ids_dtype(codec.vocab_size) for side, codec in codecs.items()}
    offsets = {f"{side}_offsets": np.int64 for side in codecs}
    count = done = 0
    with ColumnWriter(part, {**dtypes, **offsets, "keys": np.uint64, "named": np.uint8}) as columns:
        writers = {side: _SequenceWriter(columns, f"{side}_") for side in codecs}
        for batch, split_codes in _pair_batches(sources):
            for side, codec in codecs.items():
                writers[side].append(codec.encode_batch([getattr(pair, side) for pair in batch]))
            columns.append("keys", _keys(batch))
            columns.append("named", split_codes)
            count += len(batch)
            done += sum(len(text.encode()) for pair in batch for text in pair)
            if progress is not None:
                progress(done, 0)
    if count == 0:
        raise UserError(f"{', '.join(map(str, sources[:3]))}: there are no pairs; pass files with some")
    types = {f"{side}_type": dtypes[f"{side}_ids"].name for side in codecs}
    write_info(part, {"pairs": count, **types, **{f"{side}_tokens": writers[side].tokens for side in codecs}})


def _pair_batches(sources: Iterable[PairSource]) -> Iterator[tuple[list[Pair], list[int]]]:
    """Pairs with the codes of their named splits, about half a million characters at a time."""
    items = ((pair, _split_code(source)) for source in sources for pair in read_pairs(source))
    for batch in _batches(items, lambda item: len(item[0].source) + len(item[0].target), _PAIR_BATCH):
        pairs, codes = zip(*batch)
        yield list(pairs), list(codes)


def _split_code(source: TextSource | PairSource) -> int:
    return 0 if source.named_split is None else split_code(source.named_split)


def _keys(batch: Sequence[Pair]) -> np.ndarray:
    return np.array([text_key(pair.source) for pair in batch], np.uint64)


class TokenizedChat(NamedTuple):
    """The token ids of a conversation, and the (start, stop) spans of the tokens to train on."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]


class ChatSample(NamedTuple):
    """One conversation, or two endings of one, with the key that determines its split, and its line in the file."""

    key: str
    line: int
    chats: Sequence[TokenizedChat]


@dataclass(frozen=True)
class ChatCache:
    """Samples of `chats_per_sample` conversations as token ids, concatenated; arrays are memory-mapped and read-only.

    `ids` [tokens]; `loss_mask` uint8 [tokens], 1 for tokens to train on; `offsets` int64 [conversations + 1]; `keys`
    uint64 and `named_splits` uint8 [samples], as in PairCache; `lines` uint32 [samples], line numbers in the files.
    """

    directory: Path
    chats_per_sample: int
    ids: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    named_splits: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per conversation, int64 [samples, chats_per_sample]."""
        return np.diff(self.offsets).reshape(len(self), self.chats_per_sample)

    def chat(self, sample: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The token ids and the loss mask of a conversation."""
        position = sample * self.chats_per_sample + index
        span = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        return self.ids[span], self.loss_mask[span]

    def tokens(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, their loss mask, and where the first conversation of each sample starts in them, int64 [N]."""
        return self.ids, self.loss_mask, np.asarray(self.offsets[:-1])[samples * self.chats_per_sample]

    @property
    def reply_lengths(self) -> np.ndarray:
        """Tokens to train on per conversation, int64 [samples, chats_per_sample]."""
        counts = np.add.reduceat(self.loss_mask, self.offsets[:-1], dtype=np.int64)
        return counts.reshape(len(self), self.chats_per_sample)

    def digests(self) -> tuple[Sequence[str] | np.ndarray, Sequence[str] | np.ndarray]:
        """What identifies all conversations, and their replies."""
        texts, replies = (column_digest(self.directory, *names) for names in (("ids", "offsets"), ("marks",)))
        return [texts], [replies]

    def location(self, sample: int) -> str:
        """Where a sample is, for messages."""
        return f"line {self.lines[sample]}"

    def within_limit(self, samples: np.ndarray, limit: int, drop_long: bool, noun: str) -> tuple[np.ndarray, int]:
        """The `samples` with at most `limit` tokens per conversation, and how many were dropped.

        UserError if some are longer and `drop_long` is not set, or if no sample remains.
        """
        max_lengths = self.lengths[samples].max(1)
        too_long = max_lengths > limit
        if too_long.any() and not drop_long:
            worst = int(max_lengths.argmax())
            raise UserError(
                f"{int(too_long.sum()):,} of {len(samples):,} {noun} are longer than the limit of {limit} tokens: "
                f"{self.location(int(samples[worst]))} has {max_lengths[worst]}; raise task.context, or drop long "
                "ones with task.drop_long=true"
            )
        if too_long.all():
            raise UserError(
                f"all {len(samples):,} {noun} are longer than the limit of {limit} tokens; raise task.context"
            )
        return samples[~too_long], int(too_long.sum())


def open_chats(
    sources: Sequence[File],
    chats_per_sample: int,
    codec: Encoder,
    samples: Callable[[File], Iterator[ChatSample]],
    variant: str,
) -> ChatCache:
    """The samples of files, from the cache if these contents have been tokenised in this way before.

    `samples` reads a file; `variant` identifies everything else that determines the ids (the template).
    """
    key = cache_key("marked", _FORMAT, chats_per_sample, fingerprint(sources), codec.fingerprint(), variant)
    dtype = ids_dtype(codec.vocab_size)
    folder = open_or_build(
        cache_root() / key, lambda part: _build_chats(part, sources, chats_per_sample, dtype, samples)
    )
    info = read_info(folder)
    count, tokens = info["samples"], info["tokens"]
    return ChatCache(
        folder,
        chats_per_sample,
        read_column(folder, "ids", info["type"], tokens),
        read_column(folder, "marks", np.uint8, tokens),
        read_column(folder, "offsets", np.int64, count * chats_per_sample + 1),
        read_column(folder, "keys", np.uint64, count),
        read_column(folder, "named", np.uint8, count),
        read_column(folder, "lines", np.uint32, count),
    )


def _build_chats(
    part: Path,
    sources: Iterable[File],
    chats_per_sample: int,
    ids_dtype: np.dtype,
    samples: Callable[[File], Iterator[ChatSample]],
) -> None:
    dtypes = {"ids": ids_dtype, "marks": np.uint8, "offsets": np.int64}
    dtypes |= {"keys": np.uint64, "named": np.uint8, "lines": np.uint32}
    count = 0
    with ColumnWriter(part, dtypes) as columns:
        writer = _SequenceWriter(columns)
        for file in sources:
            code = _split_code(file)
            for sample in samples(file):
                for ids, spans in sample.chats:
                    loss_mask = np.zeros(len(ids), np.uint8)
                    for start, end in spans:
                        loss_mask[start:end] = 1
                    writer.append([ids])
                    columns.append("marks", loss_mask)
                columns.append("keys", np.array([text_key(sample.key)], np.uint64))
                columns.append("named", [code])
                columns.append("lines", [sample.line])
                count += 1
    if count == 0:
        raise UserError(f"{', '.join(map(str, sources))}: there are no samples; pass files with some")
    write_info(part, {"samples": count, "tokens": writer.tokens, "type": ids_dtype.name})
