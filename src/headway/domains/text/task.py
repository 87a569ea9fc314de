"""Language modelling: next-token prediction for any kind of token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import nn

from headway.codecs import FILE, Codec, Kind, load_codec, train_codec
from headway.config import override
from headway.config_kinds import register
from headway.data import (
    Crops,
    Packing,
    Spans,
    SplitConfig,
    Streams,
    TokenCache,
    TokenWindows,
    open_tokens,
)
from headway.data.prepared.shard_reader import PreparedData, is_prepared
from headway.domains.text.prepared_documents import PreparedDocuments, batch_of, first_tokens
from headway.errors import ConfigError, UserError
from headway.formats.out_of_distribution import TrainingStatistics
from headway.generate import Limits, Sampling, Session, strided_nats
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import (
    Batch,
    Contents,
    FixedSizeBatches,
    RngKey,
    RowLayouts,
    Samples,
    SplitExamples,
    spread_evenly,
)
from headway.learn.objective import Baseline, StatefulObjective
from headway.learn.objectives.sequences import Likelihood
from headway.learn.task import codec_of
from headway.metrics import language_scores
from headway.nn.mixers import State
from headway.nn.models import Loss, ModelConfig, ModelFeatures, Transformer, TransformerConfig, describe

_EVAL_BATCH_TOKENS = 8192  # tokens
_MIN_WINDOWS = 8  # minimum windows per evaluated stream, so that few predictions lack context
_DECODE_CHUNK = 1 << 16  # tokens
_PREVIEW_TOKENS = 200  # tokens of a document in a summary
_SAMPLE_TOKENS = 200
_BASELINE_ORDER, _BASELINE_TOKENS = 3, 100  # of the n-gram model, and tokens per sample of its limit
_CONTEXT = 1024  # context of a model without a maximum, unless set


@register("language")
@dataclass(frozen=True)
class LanguageConfig(TaskConfig):
    """Predict each token in documents from those before it.

    `codec` and `size` set the tokenizer and its maximum vocabulary size (none: no limit), unless `tokenizer` names a
    published one: its file, folder or hf:owner/name. Rows have `context` tokens (none: the model's context). With
    `packing` "documents", an epoch reads every token once, and short documents share a row; "windows" takes rows at any
    offset in long documents, as nanoGPT does. `split` sets the held-out shares if no files are named for the splits. A
    batch has train.batch_size rows or, if that is not set, as many as fit into train.batch_tokens.

    `carry_state` is for recurrent and linear mixers and replaces both packings: the text is split into one stream per
    row of a step. Each row, and the model's state, continues where it ended in the previous step.
    """

    prepared_kinds: ClassVar[tuple[str, ...]] = ("texts",)

    codec: Kind = "bpe"  # kind of the tokenizer to train
    size: int | None = 8192  # maximum vocabulary size; none: no limit
    tokenizer: str | None = None  # published tokenizer to use instead: a file, folder or hf:owner/name
    context: int | None = None  # tokens per row; none: the model's context
    packing: Literal["documents", "windows"] = "documents"  # whole documents packed into rows, or windows at any offset
    split: SplitConfig = SplitConfig()  # held-out shares
    carry_state: bool = False  # whether a row continues, with its state, from the previous step
    mix: tuple[float, ...] = ()  # share of each prepared source in training; empty: by their sizes

    @property
    def random_crops(self) -> bool:
        """Whether rows can start anywhere in a document."""
        return self.packing == "windows" and not self.carry_state

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        context, train = recipe.row_length(self.context), recipe.train
        rows = train.rows(context)
        model = recipe.model
        if self.carry_state and (not isinstance(model, TransformerConfig) or not model.stack.causal):
            raise ConfigError("task.carry_state needs a causal model; set it to false")
        if self.carry_state and model.context is not None:
            raise ConfigError(
                f"task.carry_state lets documents exceed model.context {model.context}; set model.context to none"
            )
        growth = describe(override(model, {"vocab_size": 1}))["state_bytes_per_token"] if self.carry_state else 0
        if growth:
            raise ConfigError(
                f"task.carry_state needs a state of constant size, but this model's state grows by {growth:,} bytes "
                "per token, because attention (even with a window) stores keys and values; choose another "
                "model.mixer, such as lstm, gru, linear_attention or delta, or set task.carry_state to false"
            )
        paths = recipe.files(data)
        if any(map(is_prepared, paths)):
            return self._open_prepared(recipe, paths, workspace)
        if self.mix:
            raise ConfigError("task.mix is for several sources that headway data prepare wrote; remove the setting")
        train_tokenizer = partial(train_codec, self.codec, size=self.size, fewer=True)
        codec = codec_of(paths, workspace, self.tokenizer, train_tokenizer)
        arguments = self, open_tokens(paths, codec), codec, context, rows, train.seed
        if self.carry_state:
            return Task(StreamedDocuments(*arguments, micro_batches=train.accumulate), CarriedNextToken())
        return Task(Documents(*arguments), NextToken())

    def _open_prepared(self, recipe: Recipe, paths: Sequence[Path], workspace: Path) -> Task:
        for name, default in (("packing", "documents"), ("carry_state", False), ("split", SplitConfig())):
            if getattr(self, name) != default:
                raise ConfigError(f"task.{name} was decided when {paths[0]} was prepared; remove the setting")
        if self.mix and (len(self.mix) != len(paths) or min(self.mix) <= 0):
            raise ConfigError(f"task.mix has {len(self.mix)} shares for {len(paths)} sources; set one above 0 for each")
        if other := next((path for path in paths if not is_prepared(path)), None):
            raise UserError(f"{other} is not prepared, unlike other paths; prepare it, too")
        sources, train, context = list(map(PreparedData, paths)), recipe.train, recipe.row_length(self.context)
        codec = load_codec(workspace if (workspace / FILE).exists() else sources[0].companion_folder())
        rows = train.rows(context), train.seed, train.accumulate
        return Task(PreparedDocuments(sources, codec, context, *rows, self.mix), NextToken())


class Documents(SplitExamples):
    """Tokenised documents, read in rows; `rows` is the number of rows per training batch, of which a step takes
    `micro_batches`.
    """

    def __init__(
        self,
        config: LanguageConfig,
        cache: TokenCache,
        codec: Codec,
        context: int,
        rows: int,
        seed: int,
        micro_batches: int = 1,
    ) -> None:
        self.config, self.cache, self.codec = config, cache, codec
        self.context = context
        self.rows = rows
        self.seed = seed
        self.micro_batches = micro_batches
        self.segments, self.splits = cache.split(
            config.split, min_tokens=2
        )  # a document's first token is only an input
        self._packed: dict[str, Packing] = {}
        self._layouts = RowLayouts()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. UserError if there is too little text to train or evaluate on."""
        for split in ("train", "validation"):
            self.spans(split)
        self.of("train").training_order()
        return override(model, {"vocab_size": self.codec.vocab_size})

    def of(self, split: str) -> Samples:
        return TextRows(self, split)

    def spans(self, split: str) -> Spans:
        """The documents in a split, or their parts."""
        return self.segments.select(self.splits.rows(split))

    def packed(self, split: str) -> Packing:
        """A split packed into consecutive rows."""
        if split not in self._packed:
            self._packed[split] = Packing(self.cache.ids, self.spans(split), self.context)
        return self._packed[split]

    @cached_property
    def training_rows(self) -> Packing | Crops:
        """The training rows."""
        if self.config.random_crops:
            return Crops(self.cache.ids, self.spans("train"), self.context)
        return self.packed("train")

    def batch(self, windows: TokenWindows) -> Batch:
        """Inputs and their next tokens."""
        return batch_of(windows, self._layouts.of(windows.positions))

    def count_targets(self, split: str) -> int:
        """The predicted tokens in a split."""
        return int(np.maximum(self.spans(split).lengths - 1, 0).sum())

    def document_ids(self, split: str) -> Iterator[np.ndarray]:
        """The tokens of each document in a split."""
        spans = self.spans(split)
        for start, length in zip(spans.starts.tolist(), spans.lengths.tolist()):
            yield self.cache.ids[start : start + length]

    def token_lists(self, split: str, limit: int) -> list[list[int]]:
        """The first `limit` tokens of documents in a split, spread evenly, each document as a list."""
        spans = self.spans(split)
        rows = spread_evenly(np.arange(len(spans.starts)), max(1, limit // 64))
        lists, size = [], 0
        for start, length in zip(spans.starts[rows].tolist(), spans.lengths[rows].tolist()):
            lists.append(self.cache.ids[start : start + min(length, limit - size)].tolist())
            size += len(lists[-1])
            if size >= limit:
                break
        return lists

    def prompts(self, count: int) -> list[list[int]]:
        return first_tokens(self.packed("validation"), self.context, count)

    def preview(self, count: int) -> list[str]:
        starts = self.cache.offsets[:-1][:count].tolist()
        return [self.codec.decode(self.cache.ids[start : start + _PREVIEW_TOKENS].tolist()) for start in starts]

    def contents(self) -> Contents:
        return {"texts": (self.cache.keys,)}

    def input_statistics(self) -> TrainingStatistics:
        """In-distribution statistics of training rows."""
        return TrainingStatistics.from_ids(
            self.cache.ids, self.codec.vocab_size, special_tokens=(self.codec.bos_id, self.codec.eos_id)
        )


@dataclass(frozen=True)
class TextRows:
    """The consecutive rows in a split, or the first `limit` of them; training uses the training rows."""

    documents: Documents
    split: str
    limit: int | None = None

    def __len__(self) -> int:
        rows = len(self.documents.packed(self.split))
        return rows if self.limit is None else min(self.limit, rows)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, int [B, T], with their layout, and the next tokens, -100 where the loss ignores them."""
        rows = self.documents.training_rows if rng_key is not None else self.documents.packed(self.split)
        return self.documents.batch(rows.windows(indices))

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self.documents.training_rows), self.documents.rows, self.documents.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), max(1, _EVAL_BATCH_TOKENS // self.documents.context))

    def limited_to(self, limit: int | None) -> TextRows:
        return TextRows(self.documents, self.split, limit)


class StreamedDocuments(Documents):
    """Documents in streams: a row in a batch continues where it ended `micro_batches` batches before.

    Each of a step's `micro_batches` has its own streams. All streams restart with each epoch; within a stream, the
    state is reset at the start of each document. Evaluation works in the same way, with its own streams.
    """

    def of(self, split: str) -> Samples:
        return StreamedRows(self, split)

    @cached_property
    def streams(self) -> StreamBatches:
        """The training streams."""
        source = Streams(self.cache.ids, self.spans("train"), self.context, self.rows * self.micro_batches)
        return StreamBatches(source, self.rows, self.micro_batches)


@dataclass(frozen=True)
class StreamBatches:
    """Streams, with `rows` in each of `micro_batches`. A sample is one row in one window; a batch is one micro-batch's
    window.
    """

    source: Streams
    rows: int
    micro_batches: int = 1

    def __len__(self) -> int:
        return len(self.source) * self.micro_batches * self.rows

    def batch(self, indices: np.ndarray) -> Batch:
        window, micro_batch = divmod(int(indices[0]) // self.rows, self.micro_batches)
        windows = self.source.windows(slice(micro_batch * self.rows, (micro_batch + 1) * self.rows), window)
        return batch_of(windows, Layout(torch.from_numpy(windows.positions)), starts_epoch=window == 0)

    def in_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.rows)


@dataclass(frozen=True)
class StreamedRows:
    """The first part of a split, worth `limit` rows, in at most as many streams as training has rows; training uses the
    training streams.
    """

    documents: StreamedDocuments
    split: str
    limit: int | None = None

    @cached_property
    def evaluation_streams(self) -> StreamBatches:
        max_tokens, context = self.documents.count_targets(self.split), self.documents.context
        max_tokens = max_tokens if self.limit is None else min(max_tokens, self.limit * context)
        rows = max(1, min(self.documents.rows, max_tokens // (_MIN_WINDOWS * context)))
        return StreamBatches(
            Streams(self.documents.cache.ids, self.documents.spans(self.split), context, rows, max_tokens), rows
        )

    def __len__(self) -> int:
        return len(self.evaluation_streams)

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        return (self.evaluation_streams if rng_key is None else self.documents.streams).batch(indices)

    def training_order(self) -> FixedSizeBatches:
        return self.documents.streams.in_order()

    def evaluation_order(self) -> FixedSizeBatches:
        return self.evaluation_streams.in_order()

    def limited_to(self, limit: int | None) -> StreamedRows:
        return StreamedRows(self.documents, self.split, limit)


TextExamples = Documents | PreparedDocuments


def count_bytes(codec: Codec, documents: Iterable[np.ndarray], tokens: int) -> int:
    """The bytes for this many predictions, estimated from as many at the start of the documents, and exact for all of
    them. A document's first token is not predicted.
    """
    targets = num_bytes = 0
    for document in documents:
        if targets >= tokens:
            break
        targets += max(0, len(document) - 1)
        for begin in range(1, len(document), _DECODE_CHUNK):
            num_bytes += len(codec.decode(document[begin : begin + _DECODE_CHUNK].tolist()).encode())
    return round(tokens * (num_bytes / targets))


class NextToken(Likelihood[TextExamples]):
    """Next-token prediction over documents."""

    def evaluate(
        self, model: nn.Module, examples: TextExamples, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Loss (nats per token), perplexity and bits per byte over the consecutive rows in a split, or its first
        `limit`.
        """
        nats, count = self.nats(model, examples.of(split).limited_to(limit))
        num_bytes = count_bytes(examples.codec, examples.document_ids(split), count)
        return dict(language_scores(nats, count, num_bytes))

    def baseline(self, examples: TextExamples, limit: int) -> Baseline:
        """A trigram model of tokens."""
        from headway.learn.objectives.baselines import MAX_EVALUATED, NgramModel

        model = NgramModel(
            examples.token_lists("train", limit * _BASELINE_TOKENS), _BASELINE_ORDER, examples.codec.vocab_size
        )
        documents = examples.token_lists("validation", MAX_EVALUATED * _BASELINE_TOKENS)
        num_bytes = sum(len(examples.codec.decode(ids[1:]).encode()) for ids in documents)
        return Baseline("a trigram model", "bits_per_byte", model.nats(documents) / math.log(2) / max(1, num_bytes))

    def evaluate_strided(
        self, model: nn.Module, examples: TextExamples, split: str, stride: int, limit: int | None = None
    ) -> dict[str, Any]:
        """`evaluate` in context-long windows that advance by `stride`, so that each token has at least context - stride
        tokens before it if its document is long enough; over the documents in a split, or its first `limit`.
        """
        nats, count = 0.0, 0
        for document in islice(examples.document_ids(split), limit):
            if len(document) > 1:
                nll = strided_nats(cast(Transformer, model), document.tolist(), examples.context, stride)
                nats, count = nats + nll.total, count + nll.tokens
        num_bytes = count_bytes(examples.codec, examples.document_ids(split), count)
        return dict(language_scores(nats, count, num_bytes))

    def samples(self, model: nn.Module, examples: TextExamples, count: int) -> list[dict[str, str]]:
        """Completions of held-out text, sampled at temperature 0.8."""
        prompts, codec = examples.prompts(count), examples.codec
        sampling = Sampling(temperature=0.8, seed=examples.seed)
        session = Session(cast(Transformer, model), codec)
        completions = session.generate(prompts, sampling, Limits(max_new_tokens=_SAMPLE_TOKENS))
        return [
            {"prompt": codec.decode(prompt), "output": completion.text}
            for prompt, completion in zip(prompts, completions)
        ]


class CarriedNextToken(NextToken, StatefulObjective[TextExamples]):
    """Next-token prediction by truncated back-propagation through time: the final states of a batch's rows are the
    initial states in a later batch, without gradients between them (Williams and Peng 1990; Mikolov et al. 2010).
    """

    shares_evaluation = False  # states go from batch to batch

    def initial_state(self, model: nn.Module, rows: int) -> State:
        return cast(Transformer, model).stack.initial_states(rows, 1, like=next(model.parameters()))

    def encode(self, model: nn.Module, batch: Batch, states: State | None = None) -> ModelFeatures:
        if batch.starts_epoch or states is None:
            states = self.initial_state(model, len(batch.targets))
        else:
            states = cast(Transformer, model).stack.carry(states)
        return model(*batch.inputs, states)

    def stateful_loss(self, model: nn.Module, batch: Batch, states: State | None) -> tuple[dict[str, Loss], State]:
        encoded = self.encode(model, batch, states)
        return self.losses(model, encoded, batch, self.smoothing), cast(State, encoded.states)


def language_task(model: Transformer, codec: Codec, paths: Sequence[Path]) -> Task:
    """The task for evaluating any language model on the user's text."""
    context = model.config.context or _CONTEXT
    if is_prepared(paths[0]):
        sources = list(map(PreparedData, paths))
        return Task(PreparedDocuments(sources, codec, context, rows=1, seed=0, places=1), NextToken())
    config = LanguageConfig(context=context)
    return Task(Documents(config, open_tokens(paths, codec), codec, context, rows=1, seed=0), NextToken())
