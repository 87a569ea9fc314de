"""Masked language modelling: masked tokens and, for pairs, next-sentence prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.codecs import Codec, Kind, sentence_codec
from headway.config import register
from headway.data import IGNORED, SplitConfig, TokenCache, open_tokens
from headway.domains.masked.fill import SPECIAL, best_symbols, read, symbols_of
from headway.domains.masked.rows import (
    FramedPieces,
    Masking,
    MaskingConfig,
    RowSource,
    SegmentPairs,
    Sequences,
    texts_of,
)
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, ByCount, Chance, Contents, Examples
from headway.learn.objective import Objective, judged
from headway.learn.task import codec_of
from headway.metrics import perplexity, wilson
from headway.nn.models import (
    Encoded,
    Loss,
    ModelConfig,
    PooledHeadConfig,
    TokenEmbedConfig,
    TokenInputs,
    TransformConfig,
    TransformerConfig,
    VocabularyHead,
    VocabularyHeadConfig,
)
from headway.nn.parts.norm import LayerNormConfig

_JUDGED_AT_ONCE = 4096  # tokens
_FIXED = 0  # the seed of evaluation masks, the same for every run
_SCORED_AT_ONCE = 512  # masked tokens
_SHOWN = 60  # tokens per sample
HEAD = VocabularyHeadConfig(bias=True, transform=TransformConfig(norm=LayerNormConfig(1e-12)))


@register("masked")
@dataclass(frozen=True)
class MaskedConfig(TaskConfig):
    """Predict masked tokens of documents from both sides (Devlin et al. 2019).

    `masking` chooses the masked tokens. Without `next`, documents fill rows of `context` tokens (none: the model's),
    short ones share a row, and every epoch has new masks (RoBERTa, Liu et al. 2019). With it, rows are pairs of
    segments, and the head "next" predicts whether the second follows the first. `codec`, `size` (maximum vocabulary)
    and `lowercase` set the codec to train, unless `tokenizer` names a published one (its file, folder or
    hf:owner/name). `split` sets the held-out shares if no file is named for them. A batch has train.batch_size rows or,
    without it, as many as train.batch_tokens holds.
    """

    codec: Kind = "wordpiece"  # kind of the tokenizer to train
    size: int | None = 8192  # maximum vocabulary size
    lowercase: bool = False  # whether to lower-case the text
    tokenizer: str | None = None  # published tokenizer to use instead: a file, folder or hf:owner/name
    context: int | None = None  # tokens per row; none: the model's
    masking: MaskingConfig = MaskingConfig()  # which tokens are masked
    next: bool = False  # whether to predict if the second segment of a pair follows the first (BERT)
    split: SplitConfig = SplitConfig()  # held-out shares

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        context = recipe.row_length(self.context)
        rows = recipe.train.rows(context)
        paths = recipe.files(data)
        trained = partial(sentence_codec, self.codec, size=self.size, special=SPECIAL, lowercase=self.lowercase)
        codec = codec_of(paths, workspace, self.tokenizer, trained)
        masking = Masking(self.masking, symbols_of(codec))
        cache = open_tokens(paths, codec)
        texts = MaskedTexts(self, cache, codec, masking, context, rows, recipe.train.seed)
        return Task(texts, HiddenSymbols())


class MaskedTexts(Examples):
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
        self.pieces, self.splits = cache.divided(config.split)
        self._samples: dict[str, MaskedSamples] = {}
        self._full: dict[tuple[int, ...], Layout] = {}

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size, and with token types if rows are pairs.

        Raises UserError for a causal model, or without text to train or evaluate on.
        """
        for split in ("train", "validation"):
            self.of(split)
        if not isinstance(model, TransformerConfig):
            raise UserError(f"a {type(model).__name__} cannot predict masked tokens; use an encoder such as bert-base")
        if model.stack.causal:
            raise UserError(
                "this model is causal, but masks are predicted from both sides; use an encoder such as "
                "bert-base, or the recipe text"
            )
        embed = model.embed
        if self.config.next and isinstance(embed, TokenEmbedConfig) and embed.types < 2:
            embed = replace(embed, types=2)
        return replace(model, symbols=self.codec.size, embed=embed)

    def of(self, split: str) -> MaskedSamples:
        if split not in self._samples:
            texts = texts_of(self.cache, self.pieces.of(self.splits.rows(split)), self.codec)
            source = (SegmentPairs if self.config.next else FramedPieces)(texts, self.context)
            self._samples[split] = MaskedSamples(self, source)
        return self._samples[split]

    @property
    def final_split(self) -> str:
        return self.splits.final

    def tokens(self, split: str) -> int:
        """The tokens of a split, special tokens included."""
        return self.pieces.of(self.splits.rows(split)).tokens

    def batch(self, read: Sequences, numbers: np.ndarray, seed: int) -> Batch:
        """Rows with the masks of their indices, int [B], and the seed. Targets are the masked tokens, int [B, T], -100
        elsewhere, and for pairs, int [B], 0 if the second segment follows the first and 1 if not.
        """
        masked = self.masking(read.ids, read.positions, numbers, seed)
        types, unrelated = (None if t is None else torch.from_numpy(t) for t in (read.types, read.unrelated))
        inputs = TokenInputs(torch.from_numpy(masked.inputs), types)
        hidden = int((masked.labels != IGNORED).sum())
        targets = torch.from_numpy(masked.labels), unrelated
        return Batch((inputs, self._layout(read.positions)), targets, hidden, read.ids.size)

    def _layout(self, positions: np.ndarray) -> Layout:
        """Rows of one document each share one layout, and so what models derive from it."""
        shape = positions.shape
        if not (positions[:, -1] == shape[1] - 1).all():
            return Layout(torch.from_numpy(positions))
        if shape not in self._full:
            self._full[shape] = Layout.full(*shape)
        return self._full[shape]

    def contents(self) -> Contents:
        return {"texts": (self.cache.keys,)}

    def save(self, directory: Path) -> None:
        self.codec.save(directory)


@dataclass(frozen=True)
class MaskedSamples:
    """The rows of a split, or the first `limit` of them. In training a row has new masks every epoch; in evaluation its
    masks depend only on its index and are the same in every run.
    """

    texts: MaskedTexts
    source: RowSource
    limit: int | None = None

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        drawn, seed = (numbers, _FIXED) if chance is None else (chance.places, self.texts.seed)
        return self.texts.batch(self.source.rows(numbers, drawn, seed), drawn, seed)

    def training(self) -> ByCount:
        return ByCount(len(self.source), self.texts.rows, self.texts.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self), max(1, _JUDGED_AT_ONCE // self.texts.context))

    def some(self, limit: int | None) -> MaskedSamples:
        return replace(self, limit=limit)


class HiddenSymbols(Objective[MaskedTexts]):
    """Masked tokens and, for pairs, whether the second segment follows the first (Devlin et al. 2019, section 3.1)."""

    unit = "masked token"

    def adapt(self, model: ModelConfig, examples: MaskedTexts) -> ModelConfig:
        """`model` with the heads of this task; keeps its own vocabulary head if it has one."""
        assert isinstance(model, TransformerConfig)  # checked by the examples
        heads = {"vocabulary": model.heads.get("vocabulary") or HEAD}
        if examples.config.next:
            heads["next"] = PooledHeadConfig(outputs=2, dense=True, activation="tanh")
        return replace(model, heads=heads)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counts of masked tokens and of pairs, by which their losses are divided separately."""
        _, unrelated = batch.targets
        return {"masked": batch.tokens} | ({} if unrelated is None else {"next": len(unrelated)})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Cross-entropy of masked tokens (with the model's auxiliary losses) and of next-sentence prediction."""
        labels, unrelated = batch.targets
        encoded = model(*batch.inputs)
        hidden = cast(VocabularyHead, model.get_submodule("heads.vocabulary")).loss(encoded.x, labels)
        extra = sum(encoded.auxiliary.values(), hidden.total.new_zeros(()))
        losses = {"masked": Loss(hidden.total + extra * hidden.count, hidden.count)}
        if unrelated is not None:
            total = F.cross_entropy(_next(model, encoded), unrelated, reduction="sum")
            losses["next"] = Loss(total, len(unrelated))
        return losses

    def judge(self, model: nn.Module, examples: MaskedTexts, split: str, limit: int | None = None) -> dict[str, Any]:
        """Loss (nats per masked token), its perplexity, the accuracy on masked tokens, and the same for pairs.

        Masks depend only on the row: it has the same ones in every evaluation of every run. `limit` counts rows.
        """
        found = [_sums(model, batch) for _, batch in judged(model, examples.of(split).some(limit))]
        nats, hits, count, next_nats, next_hits, pairs = map(sum, zip(*found))
        scores: dict[str, Any] = {
            "loss": nats / count,
            "perplexity": perplexity(nats, count),
            "accuracy": hits / count,
            "accuracy_interval": wilson(hits, count),
        }
        if pairs:
            scores |= {"next_loss": next_nats / pairs, "next_accuracy": next_hits / pairs}
            scores["next_accuracy_interval"] = wilson(next_hits, pairs)
        return scores

    @torch.no_grad()
    def samples(self, model: nn.Module, examples: MaskedTexts, count: int) -> list[dict[str, str]]:
        """Held-out text with its masks and the model's predictions, from positions spread evenly over the split."""
        held_out = examples.of("validation")
        places = np.unique(np.linspace(0, len(held_out) - 1, count).astype(int))
        batch = held_out.take(places).to(device_of(model))
        (inputs, layout), (labels, _) = batch.inputs, batch.targets
        best = best_symbols(model, inputs, layout, labels != IGNORED)
        shown = []
        for row in range(len(places)):
            length = min(_SHOWN, int(layout.lengths[row]))
            hidden, ids = labels[row, :length] != IGNORED, inputs.ids[row, :length]
            columns = {
                "masked": torch.where(hidden, examples.masking.symbols.mask, ids),
                "filled": torch.where(hidden, best[row, :length], ids),
                "text": torch.where(hidden, labels[row, :length], ids),
            }
            shown.append({name: read(examples.codec, values.tolist()) for name, values in columns.items()})
        return shown


def _sums(model: nn.Module, batch: Batch) -> tuple[float, int, int, float, int, int]:
    """Nats, hits and count of a batch's masked tokens and, for pairs, of next-sentence prediction."""
    labels, unrelated = batch.targets
    encoded, kept = model(*batch.inputs), labels != IGNORED
    nats, hits = 0.0, 0
    for x, hidden in zip(encoded.x[kept].split(_SCORED_AT_ONCE), labels[kept].split(_SCORED_AT_ONCE)):
        logits = model.get_submodule("heads.vocabulary")(x)
        nats += float(F.cross_entropy(logits, hidden, reduction="sum"))
        hits += int((logits.argmax(-1) == hidden).sum())
    if unrelated is None:
        return nats, hits, batch.tokens, 0.0, 0, 0
    said = _next(model, encoded)
    loss = float(F.cross_entropy(said, unrelated, reduction="sum"))
    return nats, hits, batch.tokens, loss, int((said.argmax(-1) == unrelated).sum()), len(unrelated)


def _next(model: nn.Module, encoded: Encoded) -> Tensor:
    """Logits [B, 2] for "the second segment follows the first" and "it does not"."""
    return model.get_submodule("heads.next")(encoded.x, encoded.layout)
