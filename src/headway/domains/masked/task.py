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
from headway.data import IGNORE_INDEX, SplitConfig, TokenCache, open_tokens
from headway.domains.masked.fill import SPECIAL, decode_masked, predict_masked, token_tables
from headway.domains.masked.masking import (
    Masking,
    MaskingConfig,
    PackedDocuments,
    RowSource,
    SegmentPairs,
    TokenRowBatch,
    document_spans,
)
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.layout import Layout
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import Batch, Contents, Examples, FixedSizeBatches, RngKey
from headway.learn.objective import Objective, evaluation_batches
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
    pairs of segments, and the head "next" predicts whether the second follows the first. `codec`, `size` (maximum
    vocabulary size) and `lowercase` set the codec to train, unless `tokenizer` names a published one (its file, folder
    or hf:owner/name). `split` sets the held-out shares if no files are named for the splits. A batch has
    train.batch_size rows or, if that is not set, as many as fit into train.batch_tokens.
    """

    codec: Kind = "wordpiece"  # kind of the tokenizer to train
    size: int | None = 8192  # maximum vocabulary size
    lowercase: bool = False  # whether to lower-case the text
    tokenizer: str | None = None  # published tokenizer to use instead: a file, folder or hf:owner/name
    context: int | None = None  # tokens per row; none: the model's context
    masking: MaskingConfig = MaskingConfig()  # which tokens are masked
    next: bool = False  # whether to predict if the second segment in a pair follows the first (BERT)
    split: SplitConfig = SplitConfig()  # held-out shares

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the settings."""
        context = recipe.row_length(self.context)
        rows = recipe.train.rows(context)
        paths = recipe.files(data)
        train_tokenizer = partial(sentence_codec, self.codec, size=self.size, special=SPECIAL, lowercase=self.lowercase)
        codec = codec_of(paths, workspace, self.tokenizer, train_tokenizer)
        masking = Masking(self.masking, token_tables(codec))
        cache = open_tokens(paths, codec)
        dataset = MaskedDataset(self, cache, codec, masking, context, rows, recipe.train.seed)
        return Task(dataset, MaskedTokens())


class MaskedDataset(Examples):
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
        self._layouts: dict[tuple[int, ...], Layout] = {}

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

    @property
    def final_split(self) -> str:
        return self.splits.final

    def count_tokens(self, split: str) -> int:
        """The tokens in a split, including special tokens."""
        return self.segments.select(self.splits.rows(split)).tokens

    def batch(self, rows: TokenRowBatch, indices: np.ndarray, seed: int) -> Batch:
        """Rows, masked as determined by their indices, int [B], and the seed. Targets are the masked tokens, int [B,
        T], -100 elsewhere, and for pairs int [B]: 0 if the second segment follows the first, and 1 if not.
        """
        masked = self.masking(rows.ids, rows.positions, indices, seed)
        types, unrelated = (None if t is None else torch.from_numpy(t) for t in (rows.types, rows.unrelated))
        inputs = TokenInputs(torch.from_numpy(masked.inputs), types)
        num_masked = int((masked.labels != IGNORE_INDEX).sum())
        targets = torch.from_numpy(masked.labels), unrelated
        return Batch((inputs, self._layout(rows.positions)), targets, num_masked, rows.ids.size)

    def _layout(self, positions: np.ndarray) -> Layout:
        """Rows with one document each share one layout, and so everything that models derive from it."""
        shape = positions.shape
        if not (positions[:, -1] == shape[1] - 1).all():
            return Layout(torch.from_numpy(positions))
        if shape not in self._layouts:
            self._layouts[shape] = Layout.full(*shape)
        return self._layouts[shape]

    def contents(self) -> Contents:
        return {"texts": (self.cache.keys,)}

    def save(self, directory: Path) -> None:
        self.codec.save(directory)


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
        return self.dataset.batch(self.source.rows(indices, keys, seed), keys, seed)

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self.source), self.dataset.rows, self.dataset.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), max(1, _EVAL_BATCH_TOKENS // self.dataset.context))

    def limited_to(self, limit: int | None) -> MaskedRowSamples:
        return replace(self, limit=limit)


class MaskedTokens(Objective[MaskedDataset]):
    """Masked tokens and, for pairs, whether the second segment follows the first (Devlin et al. 2019, section 3.1)."""

    unit = "masked token"

    def adapt(self, model: ModelConfig, examples: MaskedDataset) -> ModelConfig:
        """`model` with this task's heads; keeps its own vocabulary head if it has one."""
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
        masked_loss = cast(VocabularyHead, model.get_submodule("heads.vocabulary")).loss(encoded.x, labels)
        extra = sum(encoded.auxiliary.values(), masked_loss.total.new_zeros(()))
        losses = {"masked": Loss(masked_loss.total + extra * masked_loss.count, masked_loss.count)}
        if unrelated is not None:
            total = F.cross_entropy(_next_logits(model, encoded), unrelated, reduction="sum")
            losses["next"] = Loss(total, len(unrelated))
        return losses

    def evaluate(
        self, model: nn.Module, examples: MaskedDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """Loss (nats per masked token), perplexity and accuracy on masked tokens, and the same for pairs.

        A row has the same masks in every evaluation of every run. `limit` counts rows.
        """
        sums = [
            _batch_sums(model, batch) for _, batch in evaluation_batches(model, examples.of(split).limited_to(limit))
        ]
        nats, hits, count, next_nats, next_hits, pairs = map(sum, zip(*sums))
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
        indices = np.unique(np.linspace(0, len(validation) - 1, count).astype(int))
        batch = validation.take(indices).to(device_of(model))
        (inputs, layout), (labels, _) = batch.inputs, batch.targets
        predicted = predict_masked(model, inputs, layout, labels != IGNORE_INDEX)
        samples = []
        for row in range(len(indices)):
            length = min(_SAMPLE_TOKENS, int(layout.lengths[row]))
            masked, ids = labels[row, :length] != IGNORE_INDEX, inputs.ids[row, :length]
            columns = {
                "masked": torch.where(masked, examples.masking.tables.mask, ids),
                "filled": torch.where(masked, predicted[row, :length], ids),
                "text": torch.where(masked, labels[row, :length], ids),
            }
            samples.append({name: decode_masked(examples.codec, ids.tolist()) for name, ids in columns.items()})
        return samples


def _batch_sums(model: nn.Module, batch: Batch) -> tuple[float, int, int, float, int, int]:
    """Nats, hits and count for a batch's masked tokens and, for pairs, for next-sentence prediction."""
    labels, unrelated = batch.targets
    encoded, is_masked = model(*batch.inputs), labels != IGNORE_INDEX
    nats, hits = 0.0, 0
    for x, labels_chunk in zip(encoded.x[is_masked].split(_LOGIT_CHUNK), labels[is_masked].split(_LOGIT_CHUNK)):
        logits = model.get_submodule("heads.vocabulary")(x)
        nats += float(F.cross_entropy(logits, labels_chunk, reduction="sum"))
        hits += int((logits.argmax(-1) == labels_chunk).sum())
    if unrelated is None:
        return nats, hits, batch.tokens, 0.0, 0, 0
    logits_next = _next_logits(model, encoded)
    loss = float(F.cross_entropy(logits_next, unrelated, reduction="sum"))
    return nats, hits, batch.tokens, loss, int((logits_next.argmax(-1) == unrelated).sum()), len(unrelated)


def _next_logits(model: nn.Module, encoded: ModelFeatures) -> Tensor:
    """Logits [B, 2] for "the second segment follows the first" and "it does not"."""
    return model.get_submodule("heads.next")(encoded.x, encoded.layout)
