"""Masked language modelling: the hidden symbols of a text, and whether one segment follows another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.checkpoints.hub import find_folder
from headway.codecs import FILE, Codec, Kind, load_codec, sentence_codec
from headway.config import register
from headway.data import IGNORED, Spans, SplitConfig, TokenCache, chunks, open_tokens, text_sources
from headway.domains.masked.batches import MaskedBatch, MaskedBatches
from headway.domains.masked.fill import best_symbols
from headway.domains.masked.masking import Masking, MaskingConfig
from headway.domains.masked.rows import Pairs, Pieces, texts_of
from headway.domains.masked.symbols import SPECIAL, read, symbols_of
from headway.errors import UserError
from headway.metrics import perplexity, wilson
from headway.models import (
    Encoded,
    Loss,
    ModelConfig,
    PooledHeadConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHead,
    VocabularyHeadConfig,
)
from headway.parts.norm import LayerNormConfig
from headway.train import WHOLE, Recipe, Shard, TaskConfig

_EVALUATED_AT_ONCE = 4096  # tokens
_SCORED_AT_ONCE = 512  # hidden symbols
_SHOWN = 60  # symbols of a sample
HEAD = VocabularyHeadConfig(bias=True, transform=TransformConfig(norm=LayerNormConfig(1e-12)))


@register("masked")
@dataclass(frozen=True)
class MaskedConfig(TaskConfig):
    """Predict hidden tokens of documents from what stands on both sides (Devlin et al. 2019).

    `masking` says which are hidden. Without `next`, documents fill rows of `context` tokens (none for the model's),
    short ones side by side, with new masks every epoch (RoBERTa, Liu et al. 2019); with it, rows are pairs of segments,
    and the head "next" tells whether the second follows the first. `codec`, `size` (the most symbols) and `lowercase`
    are for the codec that is trained where `tokenizer` names no published one (its file, folder or name on a hub).
    `split` says what is held out where no file is named for it. A batch has train.batch_size rows or, without it, as
    many as train.batch_tokens holds.
    """

    codec: Kind = "wordpiece"  # kind of the tokenizer that is trained
    size: int | None = 8192  # most symbols
    lowercase: bool = False  # whether texts are lower-cased
    tokenizer: str | None = None  # file, folder or name on a hub of a published one, in its place
    context: int | None = None  # tokens of a row; none: the model's
    masking: MaskingConfig = MaskingConfig()  # what is hidden
    next: bool = False  # pairs of segments, and whether the second follows the first (BERT)
    split: SplitConfig = SplitConfig()  # what is held out

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Masked:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the settings."""
        context = recipe.row_length(self.context)
        rows = recipe.train.rows(context)
        paths = recipe.files(data)
        codec = self._codec(paths, workspace)
        masking = Masking(self.masking, symbols_of(codec))
        return Masked(self, open_tokens(paths, codec), codec, masking, context, rows, recipe.train.seed)

    def _codec(self, paths: Sequence[Path], workspace: Path) -> Codec:
        """The run's codec, or one made of all the text: what is held out is never trained on, but has its symbols."""
        if (workspace / FILE).exists():
            return load_codec(workspace)
        if self.tokenizer is not None:
            return load_codec(find_folder(self.tokenizer))
        texts = (chunk.text for source in text_sources(paths) for chunk in chunks(source))
        return sentence_codec(self.codec, texts, self.size, SPECIAL, self.lowercase)


class Judged(NamedTuple):
    """Sums over one batch: nats and hits of hidden symbols and, of pairs, of what follows."""

    nats: float
    hits: int
    count: int
    next_nats: float = 0.0
    next_hits: int = 0
    pairs: int = 0


class Masked:
    """The task over tokenised documents; `rows` is the number of rows in a training batch."""

    goal = "loss"
    unit = "hidden symbol"
    goal_better: Literal["min", "max"] = "min"

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
        self.config = config
        self.cache = cache
        self.codec = codec
        self.masking = masking
        self.context = context
        self.rows = rows
        self.seed = seed

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols and the heads of this task; its own vocabulary head where it has one.

        Raises UserError for a model that sees one side only, and where there is no text to train or to judge it on.
        """
        for split in ("train", "validation"):
            self._spans(split)
        if not isinstance(model, TransformerConfig):
            raise UserError(f"a {type(model).__name__} foretells no hidden symbols; use an encoder such as bert-base")
        if model.stack.causal:
            raise UserError(
                "this model sees earlier tokens only, and masks are predicted from both sides; use an encoder such as "
                "bert-base, or the recipe text"
            )
        heads = {"vocabulary": model.heads.get("vocabulary") or HEAD}
        embed = model.embed
        if self.config.next:
            heads["next"] = PooledHeadConfig(outputs=2, dense=True, activation="tanh")
            if isinstance(embed, TokenEmbedConfig) and embed.types < 2:
                embed = replace(embed, types=2)
        return replace(model, symbols=self.codec.size, heads=heads, embed=embed)

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[MaskedBatch]:
        if split == "train":
            return self._training.endless(self.rows, self.seed, shard, start)
        return self._rows(split).once(self._evaluated_rows, shard, None)

    @cached_property
    def _training(self) -> MaskedBatches:
        return self._rows("train")

    def _rows(self, split: str) -> MaskedBatches:
        texts = texts_of(self.cache, self._spans(split), self.codec)
        return MaskedBatches((Pairs if self.config.next else Pieces)(texts, self.context), self.masking)

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

    def counts(self, batch: MaskedBatch) -> dict[str, int]:
        """Hidden symbols and pairs, which are divided by separately."""
        if batch.unrelated is None:
            return {"masked": batch.tokens}
        return {"masked": batch.tokens, "next": len(batch.unrelated)}

    def loss(self, model: nn.Module, batch: MaskedBatch) -> dict[str, Loss]:
        """Cross-entropy of hidden symbols (with the model's auxiliary terms) and of what follows."""
        encoded = model(batch.inputs, batch.layout)
        hidden = _head(model).loss(encoded.x, batch.labels)
        extra = sum(encoded.auxiliary.values(), hidden.total.new_zeros(()))
        losses = {"masked": Loss(hidden.total + extra * hidden.count, hidden.count)}
        if batch.unrelated is not None:
            total = F.cross_entropy(_next(model, encoded), batch.unrelated, reduction="sum")
            losses["next"] = Loss(total, len(batch.unrelated))
        return losses

    def count(self, split: str) -> int:
        return len(self._rows(split))

    def tokens(self, split: str) -> int:
        """The symbols of a split, marks included."""
        return int(self._spans(split).lengths.sum())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a hidden symbol), its perplexity, the share of hidden symbols found, and the same of pairs.

        Masks depend on the row alone: a row has them in every evaluation of every run. `limit` counts rows; the split
        "all" is all of the data.
        """
        device = next(model.parameters()).device
        batches = self._rows(split).once(self._evaluated_rows, WHOLE, limit)
        sums = Judged(*map(sum, zip(*(_judge(model, batch.to(device)) for batch in batches))))
        scores: dict[str, Any] = {
            "loss": sums.nats / sums.count,
            "perplexity": perplexity(sums.nats, sums.count),
            "accuracy": sums.hits / sums.count,
            "accuracy_interval": wilson(sums.hits, sums.count),
        }
        if sums.pairs:
            scores |= {"next_loss": sums.next_nats / sums.pairs, "next_accuracy": sums.next_hits / sums.pairs}
            scores["next_accuracy_interval"] = wilson(sums.next_hits, sums.pairs)
        return scores

    @torch.no_grad()
    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out text with its masks, and what the model writes there, from places spread evenly over it."""
        device = next(model.parameters()).device
        source = self._rows("validation")
        rows = np.unique(np.linspace(0, len(source) - 1, count).astype(int))
        batch = source.batch(rows, rows, 0).to(device)
        best = best_symbols(model, batch.inputs, batch.layout, batch.labels != IGNORED)
        shown = []
        for row in range(len(rows)):
            length = min(_SHOWN, int(batch.layout.lengths[row]))
            hidden, ids = batch.labels[row, :length] != IGNORED, batch.inputs.ids[row, :length]
            columns = {
                "masked": torch.where(hidden, self.masking.symbols.mask, ids),
                "filled": torch.where(hidden, best[row, :length], ids),
                "text": torch.where(hidden, batch.labels[row, :length], ids),
            }
            shown.append({name: read(self.codec, values.tolist()) for name, values in columns.items()})
        return shown

    def save(self, directory: Path) -> None:
        self.codec.save(directory)


def _judge(model: nn.Module, batch: MaskedBatch) -> Judged:
    encoded = model(batch.inputs, batch.layout)
    kept = batch.labels != IGNORED
    nats, hits = 0.0, 0
    for x, labels in zip(encoded.x[kept].split(_SCORED_AT_ONCE), batch.labels[kept].split(_SCORED_AT_ONCE)):
        logits = _head(model)(x)
        nats += float(F.cross_entropy(logits, labels, reduction="sum"))
        hits += int((logits.argmax(-1) == labels).sum())
    if batch.unrelated is None:
        return Judged(nats, hits, batch.tokens)
    said = _next(model, encoded)
    right = int((said.argmax(-1) == batch.unrelated).sum())
    loss = float(F.cross_entropy(said, batch.unrelated, reduction="sum"))
    return Judged(nats, hits, batch.tokens, loss, right, len(batch.unrelated))


def _head(model: nn.Module) -> VocabularyHead:
    return cast(VocabularyHead, model.get_submodule("heads.vocabulary"))


def _next(model: nn.Module, encoded: Encoded) -> Tensor:
    """Logits [B, 2] of "the second segment follows the first" and "it does not"."""
    return model.get_submodule("heads.next")(encoded.x, encoded.layout)
