"""Language modelling: the next symbol of a text, whatever its symbols are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from headway.checkpoints.hub import find_folder
from headway.codecs import Codec, Kind, load_codec, train_codec
from headway.codecs.tokenizer import FILE
from headway.config import override, register
from headway.data import Crops, Packing, Spans, SplitConfig, TokenCache, chunks, find_set, open_tokens, text_sources
from headway.domains.text.batches import Rows, TextBatch
from headway.errors import ConfigError, UserError
from headway.generate import Limits, Sampling, Session, strided_nats
from headway.metrics import language_scores
from headway.models import Loss, ModelConfig, Transformer, VocabularyHead
from headway.train import Recipe, Shard, TaskConfig
from headway.train.task import WHOLE

_EVALUATED_AT_ONCE = 8192  # tokens
_DECODED_AT_ONCE = 1 << 16  # tokens
_SAMPLE_TOKENS = 200
_CONTEXT = 1024  # of a model without a longest context, where nothing says one


@register("language")
@dataclass(frozen=True)
class LanguageConfig(TaskConfig):
    """Predict each symbol of documents from those before it.

    `codec` and `size` say how text becomes symbols (`size` none: as many as there are), unless `tokenizer` names a
    published one: its file, folder or name on a hub. Rows have `context` tokens, none for the model's. `packing`
    "documents" reads every token once an epoch, short documents side by side in a row; "windows" reads rows at any
    offset of long documents, as nanoGPT does. `split` says what is held out where no file is named for it. A batch has
    train.batch_size rows or, without it, as many as train.batch_tokens holds.
    """

    codec: Kind = "bpe"
    size: int | None = 8192
    tokenizer: str | None = None
    context: int | None = None
    packing: Literal["documents", "windows"] = "documents"
    split: SplitConfig = SplitConfig()

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Language:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
        context = self._context(recipe.model)
        rows = recipe.train.rows(context)
        paths = [path for name in recipe.data for path in find_set(name)] if data is None else list(data)
        codec = self._codec(paths, workspace)
        return Language(self, open_tokens(paths, codec), codec, context, rows, recipe.train.seed)

    def _context(self, model: ModelConfig) -> int:
        most = getattr(model, "context", None)
        context = self.context or most
        if context is None:
            raise ConfigError("neither task.context nor model.context is set; set task.context to the tokens of a row")
        if most is not None and context > most:
            raise ConfigError(f"task.context {context} exceeds model.context {most}; lower it, or raise model.context")
        return context

    def _codec(self, paths: Sequence[Path], workspace: Path) -> Codec:
        """The run's codec, or one made of all the text: what is held out is never trained on, but has its symbols."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        if self.tokenizer is not None:
            return load_codec(find_folder(self.tokenizer))
        texts = (chunk.text for source in text_sources(paths) for chunk in chunks(source))
        return train_codec(self.codec, texts, self.size)


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
        for split in ("train", "validation"):
            self._spans(split)
        return override(model, {"symbols": self.codec.size})

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[TextBatch]:
        if split == "train":
            return self._training_rows.endless(self.rows, self.seed, shard, start)
        return self._consecutive(split).once(self._evaluated_rows, shard, None)

    @cached_property
    def _training_rows(self) -> Rows:
        spans = self._spans("train")
        kind = Crops if self.config.packing == "windows" else Packing
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
            self._spans("test")
        except UserError:
            return "validation"
        return "test"

    @property
    def _evaluated_rows(self) -> int:
        return max(1, _EVALUATED_AT_ONCE // self.context)

    def loss(self, model: nn.Module, batch: TextBatch) -> dict[str, Loss]:
        encoded = model(batch.inputs, batch.layout)
        loss = _head(model).loss(encoded.x, batch.labels)
        return {"loss": loss, **{name: Loss(term * loss.count, loss.count) for name, term in encoded.auxiliary.items()}}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, float]:
        """Loss (nats a token), perplexity and bits per byte over consecutive rows of a split, or its first `limit`.

        The split "all" is all of the data.
        """
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for batch in self._consecutive(split).once(self._evaluated_rows, WHOLE, limit):
            moved = batch.to(device)
            loss = _head(model).loss(model(moved.inputs, moved.layout).x, moved.labels)
            nats, count = nats + float(loss.total), count + loss.count
        size = round(count * self._bytes_per_token(split, count))
        return language_scores(nats, count, size)

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


def language_task(model: Transformer, codec: Codec, paths: Sequence[Path]) -> Language:
    """The task that judges a language model, however it came about, on texts of the user's."""
    context = model.config.context or _CONTEXT
    return Language(LanguageConfig(context=context), open_tokens(paths, codec), codec, context, rows=1, seed=0)


def _head(model: nn.Module) -> VocabularyHead:
    return cast(VocabularyHead, model.get_submodule("heads.vocabulary"))
