"""Masked language modelling: rows of documents or of segment pairs, masked tokens and next-sentence prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.codecs import Codec, Kind, TokenizerCodec, sentence_codec
from headway.codecs.mask_tokens import SPECIAL, TokenTables, token_tables
from headway.codecs.tokenizer import SequenceTemplate, sequence_template
from headway.config_kinds import deferred_check, register
from headway.data import IGNORE_INDEX, Spans, SplitConfig, TokenCache, open_tokens
from headway.data.packing import best_fit_rows, expand_ranges
from headway.data.shuffling import noise
from headway.domains.masked.contrast import masking_contrast
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, FixedSizeBatches, RngKey, RowLayouts, SplitExamples, spread_evenly
from headway.learn.objective import Objective, evaluate_batches
from headway.learn.task import codec_of
from headway.metrics import perplexity, wilson_interval
from headway.nn.models import (
    Loss,
    ModelConfig,
    ModelFeatures,
    PooledHeadConfig,
    TokenEmbedConfig,
    TokenInputs,
    TransformConfig,
    TransformerConfig,
    VocabularyHead,
    VocabularyHeadConfig,
)
from headway.nn.parts.norm import LayerNormConfig

SPAN_STOP, MAX_SPAN = 0.2, 10  # words (Joshi et al. 2020, section 3.1)
_ORDER_STREAM, _ACTION_STREAM, _TOKEN_STREAM, _SPAN_STREAM = range(4)  # streams of random numbers


@deferred_check
@dataclass(frozen=True)
class MaskingConfig:
    """Devlin et al. 2019, section 3.1: the model predicts a share `rate` of the text. Of that, a share `mask` becomes
    the mask token, a share `random` becomes random text tokens, and the rest is unchanged. (ModernBERT's rate is 0.3.)

    `unit` sets the units to mask: `tokens`, whole `words`, or `spans` of words with geometric lengths (p = 0.2, at
    most 10). The tokens in a span are all replaced in the same way (SpanBERT, Joshi et al. 2020).
    """

    rate: float = 0.15  # share of the text to predict
    mask: float = 0.8  # share of the predicted tokens that become the mask token
    random: float = 0.1  # share of the predicted tokens that become random tokens
    unit: Literal["tokens", "words", "spans"] = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"masking.rate is {self.rate}; choose a fraction between 0 and 1, such as 0.15")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"masking.mask={self.mask} and masking.random={self.random} are not valid; choose shares of at least 0 "
                "that sum to at most 1"
            )


class MaskedRows(NamedTuple):
    """int64 [B, T] each: the model's inputs, and the tokens to predict, IGNORED elsewhere."""

    inputs: np.ndarray
    labels: np.ndarray


class Masking:
    """Masks rows. Masks are a pure function of the seed and the sample index, and never stored."""

    def __init__(self, config: MaskingConfig, tables: TokenTables) -> None:
        self.config, self.tables = config, tables
        self._text = np.flatnonzero(tables.text)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, indices: np.ndarray, seed: int) -> MaskedRows:
        """Mask rows, int [B, T], with random numbers determined by their indices [B]. A row with text has at least one
        label.
        """
        units = self._units(ids, positions, indices, seed)
        order = noise(seed, indices, _ORDER_STREAM, ids.shape[1])
        is_target = np.stack([_choose_masked(row, keys, self.config.rate) for row, keys in zip(units, order)])
        uniform = noise(seed, indices, _ACTION_STREAM, ids.shape[1])
        if self.config.unit == "spans":  # one replacement per span
            uniform = np.take_along_axis(uniform, np.maximum(units, 0), axis=1)
        random_tokens = self._text[
            (noise(seed, indices, _TOKEN_STREAM, ids.shape[1]) * len(self._text)).astype(np.int64)
        ]
        replacements = np.where(uniform < self.config.mask, self.tables.mask, random_tokens)
        changed = is_target & (uniform < self.config.mask + self.config.random)
        return MaskedRows(np.where(changed, replacements, ids), np.where(is_target, ids, IGNORE_INDEX))

    def _units(self, ids: np.ndarray, positions: np.ndarray, indices: np.ndarray, seed: int) -> np.ndarray:
        """The unit of each position, counted within its row; -1 where nothing is masked."""
        text = (positions >= 0) & self.tables.text[ids]
        if self.config.unit == "tokens":
            return _unit_indices(text, text)
        after_text = np.zeros_like(text)
        after_text[:, 1:] = text[:, :-1]
        words = text & (self.tables.word_starts(ids) | ~after_text)
        if self.config.unit == "words":
            return _unit_indices(words, text)
        # Lengths from 1 to MAX_SPAN with p(n) proportional to (1 - p)^(n - 1).
        weights = (1 - SPAN_STOP) ** np.arange(MAX_SPAN)
        uniform = noise(seed, indices, _SPAN_STREAM, ids.shape[1])
        lengths = np.searchsorted(weights.cumsum() / weights.sum(), uniform, side="right") + 1
        span_starts = np.zeros((len(ids), ids.shape[1] + 1), bool)
        np.put_along_axis(span_starts, np.minimum(lengths.cumsum(1), ids.shape[1]), True, axis=1)
        span_starts[:, 0] = True
        starts_span = np.take_along_axis(span_starts, np.maximum(words.cumsum(1) - 1, 0), axis=1)
        return _unit_indices(words & (starts_span | ~after_text), text)


def _unit_indices(starts: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.where(text, starts.cumsum(1) - 1, -1)


def _choose_masked(units: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """The positions to mask, bool [T]: units in ascending order of key, if they still fit into the row's share.

    If not even one fits, the smallest is masked.
    """
    sizes = np.bincount(units[units >= 0])
    chosen = np.zeros(len(sizes) + 1, bool)  # the last is for positions without a unit
    remaining = max(1, int(rate * sizes.sum() + 0.5))
    if len(sizes) and sizes.min() > remaining:
        chosen[sizes.argmin()] = True
        return chosen[units]
    for unit in np.argsort(keys[: len(sizes)]).tolist():
        if remaining == 0:
            break
        if sizes[unit] <= remaining:
            chosen[unit] = True
            remaining -= sizes[unit]
    return chosen[units]


_PAIR_STREAM, _SEGMENT_STREAM = 16, 17  # streams of random numbers, separate from those for masking


class TokenRowBatch(NamedTuple):
    """Rows of tokens, int64 [B, T]: `positions` restart at 0 at the start of each chunk and are -1 at padding, where
    ids are 0.

    Only pairs have `types` (0 and 1) and `unrelated`, int64 [B]: 0 if the second segment follows the first, otherwise
    1, as in BERT's published weights.
    """

    ids: np.ndarray
    positions: np.ndarray
    types: np.ndarray | None = None
    unrelated: np.ndarray | None = None


class RowSource(Protocol):
    """Rows by index. A row's random numbers depend on the seed and on the index of the sample."""

    def __len__(self) -> int: ...

    def rows(self, rows: np.ndarray, indices: np.ndarray, seed: int) -> TokenRowBatch: ...


class DocumentSpans(NamedTuple):
    """Documents without special tokens, as slices of an id array, and the special tokens that surround them in rows."""

    ids: np.ndarray
    spans: Spans
    frame: SequenceTemplate


def document_spans(cache: TokenCache, spans: Spans, codec: Codec) -> DocumentSpans:
    """The documents (or parts of them) at `spans`. Raises UserError if they do not contain text."""
    starts, stops = spans.starts.copy(), spans.starts + spans.lengths
    if codec.bos_id is not None:
        starts += cache.ids[starts] == codec.bos_id
    if codec.eos_id is not None:
        stops -= (stops > starts) & (cache.ids[stops - 1] == codec.eos_id)
    nonempty = stops > starts
    if not nonempty.any():
        raise UserError("the documents have only special tokens; add longer documents")
    return DocumentSpans(cache.ids, Spans(starts[nonempty], (stops - starts)[nonempty]), sequence_template(codec))


class PackedDocuments:
    """Documents cut into chunks that fill a row, each with special tokens; short ones share a row ("full sentences" in
    Liu et al. 2019, except that documents do not attend to each other). Row k has the same text in every epoch.
    """

    def __init__(self, documents: DocumentSpans, context: int) -> None:
        num_special = documents.frame.num_special_tokens(1)
        capacity = _check_room(context - num_special, context)
        counts = -(-documents.spans.lengths // capacity)
        chunk_indices, document = expand_ranges(np.zeros_like(counts), counts)
        starts = documents.spans.starts[document] + chunk_indices * capacity
        sizes = np.minimum(documents.spans.lengths[document] - chunk_indices * capacity, capacity)
        rows = best_fit_rows(sizes + num_special, context)
        order = np.argsort(rows, kind="stable")
        self.documents, self.context = documents, context
        self._starts, self._sizes = starts[order], sizes[order]
        self._row_ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self._row_ends) - 1

    @property
    def padding(self) -> float:
        """The share of padding among all tokens."""
        return 1 - int((self._sizes + self.documents.frame.num_special_tokens(1)).sum()) / (len(self) * self.context)

    def rows(self, rows: np.ndarray, indices: np.ndarray, seed: int) -> TokenRowBatch:
        before, _, after, _ = self.documents.frame
        first_chunk = self._row_ends[rows]
        chunks, row_of = expand_ranges(first_chunk, self._row_ends[rows + 1] - first_chunk)
        sizes = self._sizes[chunks]
        framed_sizes = sizes + self.documents.frame.num_special_tokens(1)
        stops = np.cumsum(framed_sizes)
        columns = (
            stops - framed_sizes - (stops - framed_sizes)[np.searchsorted(row_of, row_of)]
        )  # relative to the row's first chunk
        ids, positions = np.zeros((len(rows), self.context), np.int64), np.full((len(rows), self.context), -1)
        _write_tokens(ids, row_of, columns, before)
        _write_chunks(ids, row_of, columns + len(before), self.documents.ids, self._starts[chunks], sizes)
        _write_tokens(ids, row_of, columns + len(before) + sizes, after)
        offsets, chunk = expand_ranges(np.zeros_like(framed_sizes), framed_sizes)
        positions[row_of[chunk], columns[chunk] + offsets] = offsets
        return TokenRowBatch(ids, positions)


class SegmentPairs:
    """Two segments per row, with the special tokens for pairs and types 0 and 1 (Devlin et al. 2019, section 3.1).

    Documents are cut into at least two segments of about equal lengths. In half of the rows B is the segment after A;
    in the others it comes from another document or, if there is only one, from elsewhere in it.
    """

    def __init__(self, documents: DocumentSpans, context: int) -> None:
        if not documents.frame.between:
            raise UserError(
                "segment pairs need a tokenizer with a separator token; use another, or set task.next=false"
            )
        max_length = _check_room((context - documents.frame.num_special_tokens(2)) // 2, context)
        splittable = documents.spans.lengths > 1
        starts, lengths = documents.spans.starts[splittable], documents.spans.lengths[splittable]
        counts = np.maximum(2, -(-lengths // max_length))
        if counts.sum() < 3:
            raise UserError(f"{counts.sum()} segments are too few for unrelated pairs; add text or set task.next=false")
        segment_indices, document = expand_ranges(np.zeros_like(counts), counts)
        low, high = (lengths[document] * (segment_indices + k) // counts[document] for k in (0, 1))
        self.documents, self.context = documents, context
        self._starts, self._sizes, self._document = starts[document] + low, high - low, document
        self._firsts, self._counts = np.cumsum(counts) - counts, counts  # of each document's segments
        self._pairs = np.flatnonzero(segment_indices + 1 < counts[document])  # segments with a successor

    def __len__(self) -> int:
        return len(self._pairs)

    def rows(self, rows: np.ndarray, indices: np.ndarray, seed: int) -> TokenRowBatch:
        before, between, after, typed = self.documents.frame
        first = self._pairs[rows]
        unrelated = noise(seed, indices, _PAIR_STREAM, 1)[:, 0] < 0.5
        second = np.where(unrelated, self._unrelated(first, noise(seed, indices, _SEGMENT_STREAM, 1)[:, 0]), first + 1)
        first_stops = len(before) + self._sizes[first]
        second_starts = first_stops + len(between)  # where B starts
        lengths = second_starts + self._sizes[second] + len(after)
        row_indices, columns = np.arange(len(rows)), np.arange(int(lengths.max()))
        ids = np.zeros((len(rows), len(columns)), np.int64)
        _write_tokens(ids, row_indices, np.zeros_like(row_indices), before)
        _write_chunks(
            ids,
            row_indices,
            np.full_like(row_indices, len(before)),
            self.documents.ids,
            self._starts[first],
            self._sizes[first],
        )
        _write_tokens(ids, row_indices, first_stops, between)
        _write_chunks(ids, row_indices, second_starts, self.documents.ids, self._starts[second], self._sizes[second])
        _write_tokens(ids, row_indices, lengths - len(after), after)
        inside = columns < lengths[:, None]
        types = (inside & (columns >= second_starts[:, None])).astype(np.int64) if typed else None
        return TokenRowBatch(ids, np.where(inside, columns, -1), types, unrelated.astype(np.int64))

    def _unrelated(self, first: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Segments that do not follow `first`: any from other documents or, if there is only one, any except itself and
        the next.
        """
        multiple = len(self._counts) > 1
        low = self._firsts[self._document[first]] if multiple else first
        num_excluded = self._counts[self._document[first]] if multiple else 2
        sampled = (uniform * (len(self._starts) - num_excluded)).astype(np.int64)
        return np.where(sampled < low, sampled, sampled + num_excluded)


def _check_room(capacity: int, context: int) -> int:
    if capacity < 1:
        raise UserError(f"a context of {context} is too short for text and special tokens; choose a longer one")
    return capacity


def _write_tokens(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, tokens: tuple[int, ...]) -> None:
    """Write the same tokens into rows, starting at the given columns."""
    for offset, token in enumerate(tokens):
        ids[rows, columns + offset] = token


def _write_chunks(
    ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, source: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> None:
    """Write chunks of `source` into rows, starting at the given columns."""
    offsets, chunk = expand_ranges(np.zeros_like(sizes), sizes)
    ids[rows[chunk], columns[chunk] + offsets] = source[starts[chunk] + offsets]


_EVAL_BATCH_TOKENS = 4096  # tokens
_EVAL_SEED = 0  # the seed of evaluation masks, the same for every run
_LOGIT_CHUNK = 512  # masked tokens
_SAMPLE_TOKENS = 60  # tokens per sample
HEAD = VocabularyHeadConfig(bias=True, transform=TransformConfig(norm=LayerNormConfig(1e-12)))


@register("masked")
@dataclass(frozen=True)
class MaskedConfig(TaskConfig):
    """Predict masked tokens of documents from both sides (Devlin et al. 2019).

    `masking` chooses the masked tokens. Without `next`, documents fill rows of `context` tokens (none: the model's
    context), short ones share a row, and every epoch has new masks (RoBERTa, Liu et al. 2019). With `next`, rows are
    pairs of segments, and the head "next" predicts whether the second follows the first. `contrast` is the weight of a
    loss for vectors of short documents: each is masked twice, and the means of its tokens are nearer to each other than
    to those of other documents (SimCSE, Gao et al. 2021). `codec`, `size` (maximum vocabulary size) and `lowercase` set
    the codec to train, unless `tokenizer` names a published one (its file, folder or hf:owner/name). `split` sets the
    held-out shares if no files are named for the splits. A batch has train.batch_size rows or, if that is not set, as
    many as fit into train.batch_tokens.
    """

    codec: Kind = "wordpiece"  # kind of the tokenizer to train
    size: int | None = 8192  # maximum vocabulary size
    lowercase: bool = False  # whether to lower-case the text
    tokenizer: str | None = None  # published tokenizer to use instead: a file, folder or hf:owner/name
    context: int | None = None  # tokens per row; none: the model's context
    masking: MaskingConfig = MaskingConfig()  # which tokens are masked
    next: bool = False  # whether to predict if the second segment in a pair follows the first (BERT)
    contrast: float = 0.0  # weight of the contrast between two maskings of each document
    split: SplitConfig = SplitConfig()  # held-out shares

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        context = recipe.row_length(self.context)
        rows = recipe.train.rows(context)
        if self.contrast < 0 or (self.contrast and self.next):
            raise ConfigError(
                f"task.contrast={self.contrast:g} with task.next={str(self.next).lower()} is not valid; set one of "
                "them, and a weight of at least 0"
            )
        if self.contrast:  # both views of a row count as its tokens
            rows = max(1, rows // 2)
        paths = recipe.files(data)
        train_tokenizer = partial(sentence_codec, self.codec, size=self.size, special=SPECIAL, lowercase=self.lowercase)
        codec = codec_of(paths, workspace, self.tokenizer, train_tokenizer)
        masking = Masking(self.masking, token_tables(codec))
        cache = open_tokens(paths, codec)
        dataset = MaskedDataset(self, cache, codec, masking, context, rows, recipe.train.seed)
        return Task(dataset, MaskedTokens(self.contrast))


class MaskedDataset(SplitExamples):
    """Tokenised documents in rows with masks; `rows` is the number of rows per training batch."""

    def __init__(
        self,
        config: MaskedConfig,
        cache: TokenCache,
        codec: Codec,
        masking: Masking,
        context: int,
        rows: int,
        seed: int,
    ) -> None:
        self.config, self.cache, self.codec, self.masking = config, cache, codec, masking
        self.context, self.rows, self.seed = context, rows, seed
        self.segments, self.splits = cache.split(config.split)
        self._samples: dict[str, MaskedRowSamples] = {}
        self._layouts = RowLayouts()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size, and with token types if rows are pairs.

        Raises UserError for a causal model, or if there is no text to train or evaluate on.
        """
        for split in ("train", "validation"):
            self.of(split)
        if not isinstance(model, TransformerConfig):
            raise UserError(f"a {type(model).__name__} cannot predict masked tokens; use an encoder such as bert-base")
        if model.stack.causal:
            raise UserError(
                "this model is causal, but masks are predicted from both sides; use an encoder such as bert-base, or "
                "the text recipe"
            )
        embed = model.embed
        if self.config.next and isinstance(embed, TokenEmbedConfig) and embed.types < 2:
            embed = replace(embed, types=2)
        return replace(model, vocab_size=self.codec.vocab_size, embed=embed)

    def of(self, split: str) -> MaskedRowSamples:
        if split not in self._samples:
            documents = document_spans(self.cache, self.segments.select(self.splits.rows(split)), self.codec)
            source = (SegmentPairs if self.config.next else PackedDocuments)(documents, self.context)
            self._samples[split] = MaskedRowSamples(self, source)
        return self._samples[split]

    def count_tokens(self, split: str) -> int:
        """The tokens in a split, including special tokens."""
        return self.segments.select(self.splits.rows(split)).tokens

    def batch(self, rows: TokenRowBatch, indices: np.ndarray, seed: int, is_training: bool) -> Batch:
        """Rows, masked as determined by their indices, int [B], and the seed. Targets are the masked tokens, int [B,
        T], -100 elsewhere, and for pairs int [B]: 0 if the second segment follows the first, and 1 if not.

        With contrast, the second half of a training batch are the same rows with other masks.
        """
        if self.config.contrast and is_training:
            views = (self.masking(rows.ids, rows.positions, indices, view_seed) for view_seed in (seed, ~seed))
            masked = MaskedRows(*map(np.concatenate, zip(*views)))
            rows = rows._replace(positions=np.concatenate([rows.positions] * 2))
        else:
            masked = self.masking(rows.ids, rows.positions, indices, seed)
        types, unrelated = (None if t is None else torch.from_numpy(t) for t in (rows.types, rows.unrelated))
        inputs = TokenInputs(torch.from_numpy(masked.inputs), types)
        num_masked = int((masked.labels != IGNORE_INDEX).sum())
        targets = torch.from_numpy(masked.labels), unrelated
        return Batch((inputs, self._layouts.of(rows.positions)), targets, num_masked, masked.inputs.size)

    def contents(self) -> Contents:
        return {"texts": (self.cache.keys,)}


@dataclass(frozen=True)
class MaskedRowSamples:
    """The rows in a split, or the first `limit` of them. In training, a row has new masks every epoch; in evaluation,
    its masks depend only on its index and are the same in every run.
    """

    dataset: MaskedDataset
    source: RowSource
    limit: int | None = None

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        keys, seed = (indices, _EVAL_SEED) if rng_key is None else (rng_key.positions, self.dataset.seed)
        return self.dataset.batch(self.source.rows(indices, keys, seed), keys, seed, rng_key is not None)

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self.source), self.dataset.rows, self.dataset.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), max(1, _EVAL_BATCH_TOKENS // self.dataset.context))

    def limited_to(self, limit: int | None) -> MaskedRowSamples:
        return replace(self, limit=limit)


class MaskedTokens(Objective[MaskedDataset]):
    """Masked tokens and, for pairs, whether the second segment follows the first (Devlin et al. 2019, section 3.1), or
    in training, with the weight `contrast`, which two maskings belong to the same document.
    """

    shares_evaluation = True

    unit = "masked token"

    def __init__(self, contrast: float = 0.0) -> None:
        self.contrast = contrast

    def adapt(self, model: ModelConfig, examples: MaskedDataset) -> ModelConfig:
        """`model` with this task's heads; keeps its own vocabulary head if it has one."""
        assert isinstance(model, TransformerConfig)  # checked by the examples
        heads = {"vocabulary": model.heads.get("vocabulary") or HEAD}
        if examples.config.next:
            heads["next"] = PooledHeadConfig(outputs=2, dense=True, activation="tanh")
        return replace(model, heads=heads)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counts of masked tokens and of pairs or documents, by which their losses are divided separately."""
        _, unrelated = batch.targets
        counts = {"masked": batch.tokens} | ({} if unrelated is None else {"next": len(unrelated)})
        return counts | ({"contrast": int(batch.inputs[1].starts.sum()) // 2} if self.contrast else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Cross-entropy of masked tokens (with the model's auxiliary losses) and of next-sentence prediction."""
        labels, unrelated = batch.targets
        encoded = model(*batch.inputs)
        masked_loss = cast(VocabularyHead, model.get_submodule("heads.vocabulary")).loss(
            encoded.x, labels, count=batch.tokens
        )
        extra = sum(encoded.auxiliary.values(), masked_loss.total.new_zeros(()))
        losses = {"masked": Loss(masked_loss.total + extra * masked_loss.count, masked_loss.count)}
        if unrelated is not None:
            total = F.cross_entropy(_next_logits(model, encoded), unrelated, reduction="sum")
            losses["next"] = Loss(total, len(unrelated))
        if self.contrast:
            contrast = masking_contrast(encoded, batch.inputs[1])
            losses["contrast"] = Loss(self.contrast * contrast.total, contrast.count)
        return losses

    def evaluate(
        self, model: nn.Module, examples: MaskedDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Loss (nats per masked token), perplexity and accuracy on masked tokens, and the same for pairs.

        A row has the same masks in every evaluation of every run. `limit` counts rows.
        """

        def compute(_: np.ndarray, batch: Batch) -> tuple[float, int, int, float, int, int]:
            labels, unrelated = batch.targets
            encoded = model(*batch.inputs)
            is_masked = labels != IGNORE_INDEX
            batch_nats, hits = 0.0, 0
            for x, chunk in zip(encoded.x[is_masked].split(_LOGIT_CHUNK), labels[is_masked].split(_LOGIT_CHUNK)):
                logits = model.get_submodule("heads.vocabulary")(x)
                batch_nats += float(F.cross_entropy(logits, chunk, reduction="sum"))
                hits += int((logits.argmax(-1) == chunk).sum())
            if unrelated is None:
                return batch_nats, hits, batch.tokens, 0.0, 0, 0
            next_logits = _next_logits(model, encoded)
            next_nats = float(F.cross_entropy(next_logits, unrelated, reduction="sum"))
            next_hits = int((next_logits.argmax(-1) == unrelated).sum())
            return batch_nats, hits, batch.tokens, next_nats, next_hits, len(unrelated)

        nats, hits, count, next_nats, next_hits, pairs = map(
            sum, zip(*evaluate_batches(model, examples.of(split).limited_to(limit), compute))
        )
        scores: dict[str, Any] = {
            "loss": nats / count,
            "perplexity": perplexity(nats, count),
            "accuracy": hits / count,
            "accuracy_interval": wilson_interval(hits, count),
        }
        if pairs:
            scores |= {"next_loss": next_nats / pairs, "next_accuracy": next_hits / pairs}
            scores["next_accuracy_interval"] = wilson_interval(next_hits, pairs)
        return scores

    @torch.no_grad()
    def samples(self, model: nn.Module, examples: MaskedDataset, count: int) -> list[dict[str, str]]:
        """Held-out text with its masks and the model's predictions, spread evenly over the split."""
        validation = examples.of("validation")
        indices = spread_evenly(np.arange(len(validation)), count)
        batch = validation.take(indices).to(device_of(model))
        (inputs, layout), (labels, _) = batch.inputs, batch.targets
        is_masked = labels != IGNORE_INDEX
        predicted = torch.zeros_like(labels)
        predicted[is_masked] = model.get_submodule("heads.vocabulary")(model(inputs, layout).x[is_masked]).argmax(-1)
        codec, samples = cast(TokenizerCodec, examples.codec), []
        for row in range(len(indices)):
            length = min(_SAMPLE_TOKENS, int(layout.lengths[row]))
            masked = is_masked[row, :length]
            ids = inputs.ids[row, :length]
            columns = {
                "masked": torch.where(masked, examples.masking.tables.mask, ids),
                "filled": torch.where(masked, predicted[row, :length], ids),
                "text": torch.where(masked, labels[row, :length], ids),
            }
            sample = {}
            for name, column in columns.items():  # with visible masks
                visible = [token for token in column.tolist() if token not in (codec.bos_id, codec.eos_id)]
                sample[name] = codec.tokenizer.decode(visible, skip_special_tokens=False).strip()
            samples.append(sample)
        return samples


def _next_logits(model: nn.Module, encoded: ModelFeatures) -> Tensor:
    """Logits [B, 2] for "the second segment follows the first" and "it does not"."""
    return model.get_submodule("heads.next")(encoded.x, encoded.layout)
