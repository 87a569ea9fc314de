"""Sentence embeddings: related texts are close, others far apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.data import Splits, Table, epoch_seed, read_table, split_by_text
from headway.data.label_spellings import merge_spellings
from headway.data.splits import SplitIndices, text_key
from headway.domains.understanding.encoder_inputs import EncoderTaskConfig, check_encoder
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, Contents, Examples, FixedSizeBatches, RngKey, removal_notes, spread_evenly
from headway.learn.objectives.contrastive import Contrastive, check_splits, contrastive_batch_size, encode_chunks
from headway.learn.token_rows import TokenRows, compute_in_batches, frame_for, frame_rows, split_by_length
from headway.metrics import nearest_centroid, neighbour_recall, paired_recall
from headway.nn.models import ModelConfig, PooledHeadConfig, Transformer

HEAD = "embedding"
_CENTROID_TEXTS = 50  # texts per class whose mean is its centroid


@register("embedding")
@dataclass(frozen=True)
class EmbeddingConfig(EncoderTaskConfig):
    """Contrast each text's partner with the other partners in its batch (InfoNCE, van den Oord et al. 2018; in-batch
    negatives, Karpukhin et al. 2020), in both directions, at a `temperature`; embeddings are mean-pooled and have unit
    length.

    `text` and `text2` are columns with related texts. Files without `text2` have a `label`: texts with the same label
    are related, and each epoch samples their partners again. Texts with the same label, and equal texts, are not
    negatives of each other. A batch is train.batch_size pairs; train.accumulate is 1, because the loss couples the
    whole batch.
    """

    text: str = "text"  # column with the texts
    text2: str = "text2"  # column with their partners
    label: str = "label"  # column with labels, if there are no partners
    temperature: float = 0.05  # divides the cosines

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        if self.temperature <= 0:
            raise ConfigError(f"task.temperature is {self.temperature}; choose a number above 0, such as 0.05")
        batch_size = contrastive_batch_size(recipe, "pairs", " and raise train.batch_size")
        names = {"text": self.text, "text2": self.text2, "label": self.label}
        table = read_table(recipe.files(data), names, optional=("text2", "label"))
        if not table.columns.keys() & {"text2", "label"}:
            raise UserError(
                f"{table.locations[0][0]} has neither a column {self.text2!r} nor {self.label!r}; add a column with "
                "related texts or labels, or name it with task.text2=NAME or task.label=NAME"
            )
        sentences = RelatedTextDataset(self, recipe, batch_size, table, workspace)
        return Task(sentences, SentenceContrast(sentences.labels is None, self.temperature))


class RelatedTextDataset(Examples):
    """Texts related by their `partners` or by their `labels`, int64 [N]. Rows are the texts, then the partners."""

    def __init__(self, config: EmbeddingConfig, recipe: Recipe, batch_size: int, table: Table, workspace: Path) -> None:
        self.seed, self.batch_size = recipe.train.seed, batch_size
        self.texts, self.partners = table.columns["text"], table.columns.get("text2")
        merged = merge_spellings(table.columns.get("label", ()))
        self.spelling_notes = merged.notes
        self.labels = None if self.partners is not None else np.unique(merged.labels, return_inverse=True)[1]
        splits = split_by_text(self.texts, table.named_splits, config.split)
        columns = [self.texts, *([] if self.partners is None else [self.partners])]
        train_texts = (column[row] for column in columns for row in splits["train"])
        self.codec = config.codec_of(train_texts, workspace)
        self.lines = [line for column in columns for line in column]
        encoded = [ids for column in columns for ids in self.codec.encode_batch(column)]
        frame, limit = frame_for(self.codec, check_encoder(recipe.model)), config.limit(recipe)
        self.rows: TokenRows = frame_rows(
            frame, encoded, None, limit, lambda row: table.location(row % len(self.texts))
        )
        related_splits = SplitIndices({split: self._related(rows) for split, rows in splits.items()}, splits.removed)
        all_rows = np.arange(len(self.texts))
        self.splits = Splits(related_splits, self._related(all_rows), "texts with a partner")

    def _related(self, rows: np.ndarray) -> np.ndarray:
        """Those of the texts that have a partner among them."""
        if self.labels is None:
            return rows
        return rows[np.bincount(self.labels[rows])[self.labels[rows]] > 1]

    def of(self, split: str) -> RelatedTextSplit:
        return RelatedTextSplit(self, self.splits.rows(split))

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*removal_notes(self.splits), *self.spelling_notes)

    @property
    def final_split(self) -> str:
        return self.splits.final

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. UserError for a split without pairs or with fewer than one
        batch.
        """
        check_splits(self.splits, self.batch_size, "pairs")
        return replace(check_encoder(model), vocab_size=self.codec.vocab_size)

    def batch(self, text_rows: np.ndarray, partner_rows: np.ndarray) -> Batch:
        """Tokens of texts and partners. Equal texts, and texts with the same label, count as the same."""
        keys = [self._keys(text_rows), self._keys(partner_rows)]
        same = np.logical_or.reduce([key[:, None] == key for key in keys])
        parts = split_by_length(self.rows, np.concatenate([text_rows, partner_rows]))
        return Batch((parts,), (torch.arange(len(same)), torch.from_numpy(same)), len(same), parts.computed)

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        """Keys that are equal for rows that are not negatives of each other."""
        if self.labels is not None:
            return self.labels[rows]
        return np.array([text_key(self.lines[row]) for row in rows.tolist()], np.uint64)

    def contents(self) -> Contents:
        return {"texts": (self.lines,), **({} if self.labels is None else {"labels": (self.labels,)})}

    def save(self, directory: Path) -> None:
        self.codec.save(directory)


class RelatedTextSplit:
    """The texts that have a partner in the split, or the `first` of them."""

    def __init__(self, examples: RelatedTextDataset, rows_with_partner: np.ndarray, limit: int | None = None) -> None:
        self.examples, self.rows_with_partner, self.rows = examples, rows_with_partner, rows_with_partner[:limit]
        if examples.labels is not None:
            labels = examples.labels[rows_with_partner]
            self._order = np.argsort(labels, kind="stable")
            self._rank = np.argsort(self._order, kind="stable")
            grouped = labels[self._order]
            self._starts = np.searchsorted(grouped, labels, "left")
            self._counts = np.searchsorted(grouped, labels, "right") - self._starts

    def __len__(self) -> int:
        return len(self.rows)

    def partners(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """The rows of the texts' partners, a pure function of (seed, epoch). Among texts with labels, each text is the
        partner of exactly one other text with its label.
        """
        if self.examples.labels is None:
            return self.rows_with_partner[indices] + len(self.examples.texts)
        starts, counts = self._starts[indices], self._counts[indices]
        step = 1 + (epoch_seed(self.examples.seed, epoch) % (1 << 32)) % (counts - 1)
        return self.rows_with_partner[self._order[starts + (self._rank[indices] - starts + step) % counts]]

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        epoch = 0 if rng_key is None else int(rng_key.positions[0]) // len(self.rows_with_partner)
        return self.examples.batch(self.rows_with_partner[indices], self.partners(indices, epoch))

    def training_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.examples.batch_size, self.examples.seed)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), self.examples.batch_size)

    def limited_to(self, limit: int | None) -> RelatedTextSplit:
        return RelatedTextSplit(self.examples, self.rows_with_partner, limit)


class SentenceContrast(Contrastive[RelatedTextDataset]):
    """Matches texts with their partners by the cosine of their embeddings, divided by a `temperature`."""

    def __init__(self, partnered: bool, temperature: float) -> None:
        self.goal, self.temperature = "recall_at_1" if partnered else "accuracy", temperature

    def adapt(self, model: ModelConfig, examples: RelatedTextDataset) -> ModelConfig:
        """`model` with its own embedding head, or a new one."""
        encoder = check_encoder(model)
        head_config = encoder.heads.get(HEAD)
        pool: Literal["mean", "last"] = "last" if encoder.stack.causal else "mean"
        head = head_config if isinstance(head_config, PooledHeadConfig) else PooledHeadConfig(pool=pool, unit=True)
        return replace(encoder, heads={HEAD: head})

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B B"]:
        encoder, (chunks,) = cast(Transformer, model), batch.inputs
        queries, keys = encode_chunks(lambda part: encoder.output(HEAD, *part), chunks.chunks)[chunks.order].chunk(2)
        return queries @ keys.T / self.temperature

    def vectors(self, model: nn.Module, examples: RelatedTextDataset, rows: np.ndarray) -> Float[np.ndarray, "N D"]:
        """The rows' embeddings."""
        encoder = cast(Transformer, model)
        return compute_in_batches(encoder, examples.rows, rows, lambda part: encoder.output(HEAD, *part)).numpy()

    def evaluate(
        self, model: nn.Module, examples: RelatedTextDataset, split: str, limit: int | None = None
    ) -> dict[str, Any]:
        """For pairs: recall of the partner at 1 and 5 among all partners in the split. For texts with labels: recall of
        a text with the same label, and accuracy of the nearest class centroid, from training texts.
        """
        samples = examples.of(split).limited_to(limit)
        embeddings = self.vectors(model, examples, samples.rows)
        if examples.labels is None:
            return paired_recall(embeddings, self.vectors(model, examples, samples.rows + len(examples.texts)))
        reference_rows = examples.splits.rows("all" if split == "all" else "train")
        order = reference_rows[np.argsort(examples.labels[reference_rows], kind="stable")]
        grouped = examples.labels[order]
        centroid_rows = order[
            np.arange(len(order)) - np.searchsorted(grouped, grouped) < _CENTROID_TEXTS
        ]  # the first of each label
        labels = examples.labels[samples.rows]
        scores = nearest_centroid(
            self.vectors(model, examples, centroid_rows), examples.labels[centroid_rows], embeddings, labels
        )
        return {**neighbour_recall(embeddings, labels), **scores}

    def samples(self, model: nn.Module, examples: RelatedTextDataset, count: int) -> list[dict[str, str]]:
        """Held-out texts with the nearest other text or, if there are partners, the nearest partner."""
        rows, lines, partners = examples.of(examples.final_split).rows, examples.lines, examples.partners
        queries, candidates = spread_evenly(rows, count), rows if partners is None else rows + len(examples.texts)
        similar = self.vectors(model, examples, queries) @ self.vectors(model, examples, candidates).T
        similar[candidates == queries[:, None]] = -np.inf
        nearest = candidates[similar.argmax(1)]
        samples = [{"source": lines[query], "output": lines[row]} for query, row in zip(queries, nearest)]
        if partners is None:
            return samples
        return [{**sample, "reference": partners[query]} for sample, query in zip(samples, queries)]
