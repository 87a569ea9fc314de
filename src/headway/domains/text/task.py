"""Language modelling: the next symbol of a text, whatever its symbols are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from headway.codecs import Codec, Kind, train_codec
from headway.config import override, register
from headway.data import (
    IGNORED,
    Crops,
    Packing,
    Spans,
    SplitConfig,
    Streams,
    TokenCache,
    TokenWindows,
    open_tokens,
)
from headway.errors import ConfigError
from headway.formats.familiar import Familiar
from headway.generate import Limits, Sampling, Session, strided_nats
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, ByCount, Chance, Contents, Examples, Samples
from headway.learn.objective import Carrying
from headway.learn.objectives.written import Likelihood
from headway.learn.task import codec_of
from headway.metrics import language_scores
from headway.nn.mixers import State
from headway.nn.models import Encoded, Loss, ModelConfig, Transformer, TransformerConfig, describe

_JUDGED_AT_ONCE = 8192  # tokens
_WINDOWS = 8  # that an evaluated stream has at least: few predictions follow its start, where nothing was read
_DECODED_AT_ONCE = 1 << 16  # tokens
_SAMPLE_TOKENS = 200
_CONTEXT = 1024  # of a model without a longest context, where nothing says one


@register("language")
@dataclass(frozen=True)
class LanguageConfig(TaskConfig):
    """Predict each symbol of documents from those before it.

    `codec` and `size` say how text becomes symbols (at most so many; none: as many as there are), unless `tokenizer`
    names a published one: its file, folder or hf:owner/name. Rows have `context` tokens, none for the model's.
    `packing` "documents" reads every token once an epoch, short documents side by side in a row; "windows" reads rows
    at any offset of long documents, as nanoGPT does. `split` says what is held out where no file is named for it. A
    batch has train.batch_size rows or, without it, as many as train.batch_tokens holds.

    `carry_state` is for recurrent and linear mixers: in place of either packing, the text is cut into as many streams
    as a step has rows, a row goes on where it ended in the step before, and so does the state of the model.
    """

    codec: Kind = "bpe"  # kind of the tokenizer that is trained
    size: int | None = 8192  # most symbols; none: as many as there are
    tokenizer: str | None = None  # file, folder or hf:owner/name of a published one, in its place
    context: int | None = None  # tokens of a row; none: the model's
    packing: Literal["documents", "windows"] = "documents"  # whole documents side by side, or windows at any offset
    split: SplitConfig = SplitConfig()  # what is held out
    carry_state: bool = False  # whether a row goes on where it ended in the step before, state and all

    @property
    def crops(self) -> bool:
        """Whether rows begin anywhere in a document."""
        return self.packing == "windows" and not self.carry_state

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
        context, train = recipe.row_length(self.context), recipe.train
        rows = train.rows(context)
        if self.carry_state:
            _check_carried(recipe.model)
        paths = recipe.files(data)
        trained = partial(train_codec, self.codec, size=self.size, fewer=True)
        codec = codec_of(paths, workspace, self.tokenizer, trained)
        given = self, open_tokens(paths, codec), codec, context, rows, train.seed
        if self.carry_state:
            return Task(StreamedDocuments(*given, lanes=train.accumulate), CarriedNextToken())
        return Task(Documents(*given), NextToken())


def _check_carried(model: ModelConfig) -> None:
    """Raises ConfigError for a model whose state cannot go on from row to row without end."""
    if not isinstance(model, TransformerConfig) or not model.stack.causal:
        raise ConfigError("task.carry_state needs a model that sees earlier tokens only; set it to false")
    if model.context is not None:
        raise ConfigError(
            f"task.carry_state lets documents go on past model.context {model.context}; set model.context to none"
        )
    growth = describe(override(model, {"symbols": 1}))["state_bytes_per_token"]
    if growth:
        raise ConfigError(
            f"task.carry_state needs a state that does not grow, and this model's grows by {growth:,} bytes a token: "
            "attention, with a window too, keeps keys and values of a single document; choose another model.mixer, "
            "such as lstm, gru, linear_attention or delta, or set task.carry_state to false"
        )


class Documents(Examples):
    """Tokenised documents, read in rows; `rows` is the number of rows in a training batch."""

    def __init__(
        self, config: LanguageConfig, cache: TokenCache, codec: Codec, context: int, rows: int, seed: int
    ) -> None:
        self.config, self.cache, self.codec = config, cache, codec
        self.context, self.rows, self.seed = context, rows, seed
        self.pieces, self.splits = cache.divided(config.split, least=2)  # a first token is read and not foretold
        self._packed: dict[str, Packing] = {}
        self._unbroken: dict[int, Layout] = {}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols. UserError where there is too little text to train or to judge it on."""
        for split in ("train", "validation"):
            self.spans(split)
        self.of("train").training()
        return override(model, {"symbols": self.codec.size})

    def of(self, split: str) -> Samples:
        return TextRows(self, split)

    @property
    def final_split(self) -> str:
        return self.splits.final

    def spans(self, split: str) -> Spans:
        """The documents of a split, or their parts."""
        return self.pieces.of(self.splits.rows(split))

    def packed(self, split: str) -> Packing:
        """A split in consecutive rows."""
        if split not in self._packed:
            self._packed[split] = Packing(self.cache.ids, self.spans(split), self.context)
        return self._packed[split]

    @cached_property
    def trained(self) -> Packing | Crops:
        """The rows that are trained on."""
        if self.config.crops:
            return Crops(self.cache.ids, self.spans("train"), self.context)
        return self.packed("train")

    def batch(self, windows: TokenWindows) -> Batch:
        """Tokens and the next of each. Batches of unbroken rows share one layout, and so what models derive from it."""
        # Only where every row is one document from its start has the last place the last position.
        if not (windows.positions[:, -1] == self.context - 1).all():
            return _batch(windows, Layout(torch.from_numpy(windows.positions)))
        size = len(windows.positions)
        if size not in self._unbroken:
            self._unbroken[size] = Layout.full(size, self.context)
        return _batch(windows, self._unbroken[size])

    def tokens(self, split: str) -> int:
        """The symbols of a split that are foretold."""
        return int(np.maximum(self.spans(split).lengths - 1, 0).sum())

    def bytes_of(self, split: str, tokens: int) -> int:
        """The bytes of so many predictions: as many a token as whole documents from the start of a split have until
        they hold so many, which is exact for a whole split.
        """
        spans = self.spans(split)
        seen = size = 0
        for start, length in zip(spans.starts.tolist(), spans.lengths.tolist()):
            if seen >= tokens:
                break
            seen += max(0, length - 1)
            for first in range(start + 1, start + length, _DECODED_AT_ONCE):
                piece = self.cache.ids[first : min(first + _DECODED_AT_ONCE, start + length)]
                size += len(self.codec.decode(piece.tolist()).encode())
        return round(tokens * (size / seen))

    def prompts(self, count: int) -> list[list[int]]:
        """Beginnings of rows of held-out text, spread evenly over it."""
        rows = self.packed("validation")
        places = np.unique(np.linspace(0, len(rows) - 1, count).astype(int))
        return rows.windows(places).inputs[:, : max(1, self.context // 4)].tolist()

    def contents(self) -> Contents:
        return {"texts": (self.cache.keys,)}

    def save(self, directory: Path) -> None:
        self.codec.save(directory)

    def met(self) -> Familiar:
        """Rows of texts."""
        return Familiar.of(self.cache.ids, self.codec.size, marks=(self.codec.begin, self.codec.end))


@dataclass(frozen=True)
class TextRows:
    """The consecutive rows of a split, or the first `limit` of them; training reads the rows that are trained on."""

    texts: Documents
    split: str
    limit: int | None = None

    def __len__(self) -> int:
        rows = len(self.texts.packed(self.split))
        return rows if self.limit is None else min(self.limit, rows)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        """Tokens, int [B, T], with their layout, and the symbols that follow, -100 where none is to be foretold."""
        rows = self.texts.trained if chance is not None else self.texts.packed(self.split)
        return self.texts.batch(rows.windows(numbers))

    def training(self) -> ByCount:
        return ByCount(len(self.texts.trained), self.texts.rows, self.texts.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self), max(1, _JUDGED_AT_ONCE // self.texts.context))

    def some(self, limit: int | None) -> TextRows:
        return TextRows(self.texts, self.split, limit)


class StreamedDocuments(Documents):
    """Documents in streams: a row of a batch goes on where it ended in the batch `lanes` before.

    Each of the `lanes` micro-batches of a step has streams of its own. With an epoch all streams begin anew; within a
    stream a document does so where it starts. A split is judged in the same way, in streams of its own.
    """

    def __init__(
        self,
        config: LanguageConfig,
        cache: TokenCache,
        codec: Codec,
        context: int,
        rows: int,
        seed: int,
        lanes: int,
    ) -> None:
        super().__init__(config, cache, codec, context, rows, seed)
        self.lanes = lanes

    def of(self, split: str) -> Samples:
        return StreamedRows(self, split)

    @cached_property
    def streams(self) -> Lanes:
        """What is trained on."""
        source = Streams(self.cache.ids, self.spans("train"), self.context, self.rows * self.lanes)
        return Lanes(source, self.rows, self.lanes)


@dataclass(frozen=True)
class Lanes:
    """Streams, `rows` of which stand in each of `lanes`; a sample is a row of one window of a stream, and a batch has
    the window of a lane.
    """

    source: Streams
    rows: int
    lanes: int = 1

    def __len__(self) -> int:
        return len(self.source) * self.lanes * self.rows

    def batch(self, numbers: np.ndarray) -> Batch:
        window, lane = divmod(int(numbers[0]) // self.rows, self.lanes)
        found = self.source.windows(slice(lane * self.rows, (lane + 1) * self.rows), window)
        return _batch(found, Layout(torch.from_numpy(found.positions)), begins=window == 0)

    def in_order(self) -> ByCount:
        return ByCount(len(self), self.rows)


@dataclass(frozen=True)
class StreamedRows:
    """The first `limit` rows' worth of a split, in as many streams as training has rows or fewer, longer ones; training
    reads the streams that are trained on.
    """

    texts: StreamedDocuments
    split: str
    limit: int | None = None

    @cached_property
    def judged(self) -> Lanes:
        most, context = self.texts.tokens(self.split), self.texts.context
        most = most if self.limit is None else min(most, self.limit * context)
        rows = max(1, min(self.texts.rows, most // (_WINDOWS * context)))
        return Lanes(Streams(self.texts.cache.ids, self.texts.spans(self.split), context, rows, most), rows)

    def __len__(self) -> int:
        return len(self.judged)

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        return (self.judged if chance is None else self.texts.streams).batch(numbers)

    def training(self) -> ByCount:
        return self.texts.streams.in_order()

    def judging(self) -> ByCount:
        return self.judged.in_order()

    def some(self, limit: int | None) -> StreamedRows:
        return StreamedRows(self.texts, self.split, limit)


def _batch(windows: TokenWindows, layout: Layout, begins: bool = True) -> Batch:
    inputs, labels = torch.from_numpy(windows.inputs), torch.from_numpy(windows.labels)
    return Batch((inputs, layout), labels, int((windows.labels != IGNORED).sum()), inputs.numel(), begins)


class NextToken(Likelihood[Documents]):
    """The next symbol of documents."""

    def judge(self, model: nn.Module, examples: Documents, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a token), perplexity and bits per byte over consecutive rows of a split, or its first `limit`."""
        nats, count = self.nats(model, examples.of(split).some(limit))
        return dict(language_scores(nats, count, examples.bytes_of(split, count)))

    def strided(
        self, model: nn.Module, examples: Documents, split: str, stride: int, limit: int | None = None
    ) -> dict[str, Any]:
        """`judge` in windows of the context that advance by `stride`, so that each token follows at least context -
        stride others where its document has them; over the documents of a split, or its first `limit`.
        """
        spans = examples.spans(split)
        nats, count = 0.0, 0
        for start, length in list(zip(spans.starts.tolist(), spans.lengths.tolist()))[:limit]:
            if length > 1:
                document = examples.cache.ids[start : start + length].tolist()
                found = strided_nats(cast(Transformer, model), document, examples.context, stride)
                nats, count = nats + found.total, count + found.tokens
        return dict(language_scores(nats, count, examples.bytes_of(split, count)))

    def samples(self, model: nn.Module, examples: Documents, count: int) -> list[dict[str, str]]:
        """Continuations of held-out text, drawn at temperature 0.8."""
        prompts, codec = examples.prompts(count), examples.codec
        sampling = Sampling(temperature=0.8, seed=examples.seed)
        session = Session(cast(Transformer, model), codec)
        found = session.generate(prompts, sampling, Limits(max_new_tokens=_SAMPLE_TOKENS))
        return [
            {"prompt": codec.decode(prompt), "output": completion.text} for prompt, completion in zip(prompts, found)
        ]


class CarriedNextToken(NextToken, Carrying[Documents]):
    """The next symbol by truncated back-propagation through time: the states in which the rows of a batch end are those
    from which they go on in a later one, and no gradient passes between the two (Williams and Peng 1990; Mikolov et al.
    2010).
    """

    def begin(self, model: nn.Module, rows: int) -> State:
        return cast(Transformer, model).stack.initial_states(rows, 1, like=next(model.parameters()))

    def encode(self, model: nn.Module, batch: Batch, states: State | None = None) -> Encoded:
        if batch.begins or states is None:
            states = self.begin(model, len(batch.targets))
        else:
            states = cast(Transformer, model).stack.carry(states)
        return model(*batch.inputs, states)

    def carry(self, model: nn.Module, batch: Batch, states: State | None) -> tuple[dict[str, Loss], State]:
        encoded = self.encode(model, batch, states)
        return self.losses(model, encoded, batch, self.smoothing), cast(State, encoded.states)


def language_task(model: Transformer, codec: Codec, paths: Sequence[Path]) -> Task:
    """The task that judges a language model, however it came about, on texts of the user's."""
    context = model.config.context or _CONTEXT
    config = LanguageConfig(context=context)
    return Task(Documents(config, open_tokens(paths, codec), codec, context, rows=1, seed=0), NextToken())
