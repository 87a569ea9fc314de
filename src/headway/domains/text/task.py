"""Language modelling: the next symbol of a text, whatever its symbols are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from headway.checkpoints.familiar import Familiar
from headway.codecs import Codec
from headway.config import override
from headway.data import Crops, Packing, Spans, Streams, TokenCache, open_tokens
from headway.data.splits import larger_share
from headway.domains.text.batches import Lanes, Rows, StreamBatch, TextBatch
from headway.domains.text.config import LanguageConfig
from headway.errors import UserError
from headway.generate import Limits, Sampling, Session, strided_nats
from headway.metrics import language_scores
from headway.mixers import State
from headway.models import Encoded, Loss, ModelConfig, Transformer, VocabularyHead
from headway.train import Shard
from headway.train.task import WHOLE

_EVALUATED_AT_ONCE = 8192  # tokens
_WINDOWS = 8  # that an evaluated stream has at least: few predictions follow its start, where nothing was read
_DECODED_AT_ONCE = 1 << 16  # tokens
_SAMPLE_TOKENS = 200
_CONTEXT = 1024  # of a model without a longest context, where nothing says one


class Language:
    """The task over tokenised documents; `rows` is the number of rows in a training batch."""

    goal = "loss"
    goal_better: Literal["min", "max"] = "min"

    def __init__(
        self, config: LanguageConfig, cache: TokenCache, codec: Codec, context: int, rows: int, seed: int
    ) -> None:
        self.config = config
        self.cache = cache
        self.codec = codec
        self.context = context
        self.rows = rows
        self.seed = seed

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols. Raises UserError where there is no text to train or to judge it on."""
        empty = [split for split in ("train", "validation") if self.tokens(split) == 0]
        if empty:
            raise UserError(
                f"{self.cache.documents:,} documents with {len(self.cache.ids):,} tokens leave nothing to predict in "
                f"the {' and the '.join(empty)} split; give more text, or {larger_share(empty[-1])}"
            )
        return override(model, {"symbols": self.codec.size})

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[TextBatch]:
        if split == "train":
            return self._training_rows.endless(self.rows, self.seed, shard, start)
        return self._consecutive(split).once(self._evaluated_rows, shard, None)

    @cached_property
    def _training_rows(self) -> Rows:
        spans = self._spans("train")
        kind = Crops if self.config.crops else Packing
        return Rows(kind(self.cache.ids, spans, self.context))

    def _consecutive(self, split: str) -> Rows:
        return Rows(Packing(self.cache.ids, self._spans(split), self.context))

    def _spans(self, split: str) -> Spans:
        if split == "all":
            return Spans(np.asarray(self.cache.offsets[:-1]), np.diff(self.cache.offsets))
        return self.cache.spans(split, self.config.split)

    @property
    def final_split(self) -> str:
        """The split on which a finished model is judged: test, or validation where there is no test."""
        try:
            return "test" if self.tokens("test") else "validation"
        except UserError:
            return "validation"

    @property
    def _evaluated_rows(self) -> int:
        return max(1, _EVALUATED_AT_ONCE // self.context)

    def loss(self, model: nn.Module, batch: TextBatch) -> dict[str, Loss]:
        return _losses(model, model(batch.inputs, batch.layout), batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, float]:
        """Loss (nats a token), perplexity and bits per byte over consecutive rows of a split, or its first `limit`.

        The split "all" is all of the data.
        """
        nats, count = 0.0, 0
        for loss in self._judged(model, split, limit):
            nats, count = nats + float(loss.total), count + loss.count
        size = round(count * self._bytes_per_token(split, count))
        return language_scores(nats, count, size)

    def _judged(self, model: nn.Module, split: str, limit: int | None) -> Iterator[Loss]:
        device = next(model.parameters()).device
        for batch in self._consecutive(split).once(self._evaluated_rows, WHOLE, limit):
            yield self.loss(model, batch.to(device))["loss"]

    def tokens(self, split: str) -> int:
        """The symbols of a split that are foretold."""
        return int(np.maximum(self._spans(split).lengths - 1, 0).sum())

    def count(self, split: str) -> int:
        return len(self._consecutive(split))

    def strided(self, model: nn.Module, split: str, stride: int, limit: int | None = None) -> dict[str, float]:
        """`evaluate` in windows of the context that advance by `stride`, so that each token follows at least context -
        stride others where its document has them; over the documents of a split, or its first `limit`.
        """
        spans = self._spans(split)
        nats, count = 0.0, 0
        for start, length in list(zip(spans.starts.tolist(), spans.lengths.tolist()))[:limit]:
            if length > 1:
                document = self.cache.ids[start : start + length].tolist()
                found = strided_nats(cast(Transformer, model), document, self.context, stride)
                nats, count = nats + found.total, count + found.tokens
        return language_scores(nats, count, round(count * self._bytes_per_token(split, count)))

    def _bytes_per_token(self, split: str, count: int) -> float:
        """Of whole documents from the start of a split until they hold `count` predictions: exact for a whole split."""
        spans = self._spans(split)
        tokens = size = 0
        for start, length in zip(spans.starts.tolist(), spans.lengths.tolist()):
            if tokens >= count:
                break
            tokens += length - 1
            for first in range(start + 1, start + length, _DECODED_AT_ONCE):
                piece = self.cache.ids[first : min(first + _DECODED_AT_ONCE, start + length)]
                size += len(self.codec.decode(piece.tolist()).encode())
        return size / tokens

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Continuations of held-out text, from places spread evenly over it, drawn at temperature 0.8."""
        rows = self._consecutive("validation").source
        places = np.unique(np.linspace(0, len(rows) - 1, count).astype(int))
        prompts = rows.windows(places).inputs[:, : max(1, self.context // 4)].tolist()
        session = Session(cast(Transformer, model), self.codec)
        sampling = Sampling(temperature=0.8, seed=self.seed)
        found = session.generate(prompts, sampling, Limits(max_new_tokens=_SAMPLE_TOKENS))
        return [
            {"prompt": self.codec.decode(prompt), "output": completion.text}
            for prompt, completion in zip(prompts, found)
        ]

    def save(self, directory: Path) -> None:
        self.codec.save(directory)

    def met(self) -> Familiar:
        """Rows of texts."""
        return Familiar.of(self.cache.ids, self.codec.size, marks=(self.codec.begin, self.codec.end))


class StreamedLanguage(Language):
    """`Language` by truncated back-propagation through time: the states in which the rows of a batch end are those from
    which they go on in a later one, and no gradient passes between the two (Williams and Peng 1990; Mikolov et al.
    2010).

    Each of the `lanes` micro-batches of a step has streams of its own. With an epoch all streams begin anew, as models
    that have read nothing; within a stream a document does so where it starts. A split is judged in the same way, in
    streams of its own.
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

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """As above; raises UserError where the text is too little for the streams, too."""
        self.batches("train")
        return super().adapt(model)

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[StreamBatch]:
        if split == "train":
            return self._training_lanes.endless(shard, start)
        return self._read_once(split, None).once()

    @cached_property
    def _training_lanes(self) -> Lanes:
        spans = self._spans("train")
        return Lanes(Streams(self.cache.ids, spans, self.context, self.rows * self.lanes), self.rows, self.lanes)

    def _read_once(self, split: str, limit: int | None) -> Lanes:
        """The first `limit` rows' worth of a split, in as many streams as training has rows or fewer, longer ones."""
        spans = self._spans(split)
        most = int(np.maximum(spans.lengths - 1, 0).sum())
        most = most if limit is None else min(most, limit * self.context)
        rows = max(1, min(self.rows, most // (_WINDOWS * self.context)))
        return Lanes(Streams(self.cache.ids, spans, self.context, rows, most), rows)

    def begin(self, model: nn.Module, rows: int) -> State:
        """The states of so many rows before anything was read."""
        return cast(Transformer, model).stack.initial_states(rows, 1, like=next(model.parameters()))

    def carry(self, model: nn.Module, batch: StreamBatch, states: State | None) -> tuple[dict[str, Loss], State]:
        """`loss` of a batch that goes on from `states`, and those in which it ends."""
        if batch.begins or states is None:
            states = self.begin(model, len(batch.inputs))
        else:
            states = cast(Transformer, model).stack.carry(states)
        encoded = model(batch.inputs, batch.layout, states)
        return _losses(model, encoded, batch), encoded.states

    def _judged(self, model: nn.Module, split: str, limit: int | None) -> Iterator[Loss]:
        device, states = next(model.parameters()).device, None
        for batch in self._read_once(split, limit).once():
            losses, states = self.carry(model, batch.to(device), states)
            yield losses["loss"]


def language_task(model: Transformer, codec: Codec, paths: Sequence[Path]) -> Language:
    """The task that judges a language model, however it came about, on texts of the user's."""
    context = model.config.context or _CONTEXT
    return Language(LanguageConfig(context=context), open_tokens(paths, codec), codec, context, rows=1, seed=0)


def _head(model: nn.Module) -> VocabularyHead:
    return cast(VocabularyHead, model.get_submodule("heads.vocabulary"))


def _losses(model: nn.Module, encoded: Encoded, batch: TextBatch) -> dict[str, Loss]:
    loss = _head(model).loss(encoded.x, batch.labels)
    return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}
