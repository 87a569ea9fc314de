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
from headway.data import Splits, Table, epoch_seed, read_table, sides_of
from headway.data.spellings import join_spellings
from headway.data.splits import Sides, key_of
from headway.domains.understanding.texts import EncoderTaskConfig, check_encoder
from headway.errors import ConfigError, UserError
from headway.learn import Recipe, Task
from headway.learn.examples import Batch, ByCount, Chance, Contents, Examples, removals, spread
from headway.learn.objectives.contrast import Contrast, check_sides, coupled, of_parts
from headway.learn.rows import FramedRows, frame_for, framed, in_parts, said_of
from headway.metrics import nearest_centroid, neighbour_recall, partner_recall
from headway.nn.models import ModelConfig, PooledHeadConfig, Transformer

HEAD = "embedding"
_CENTRES = 50  # texts per class whose mean is its centroid


@register("embedding")
@dataclass(frozen=True)
class EmbeddingConfig(EncoderTaskConfig):
    """Contrast each text's partner with the others' partners in its batch (InfoNCE, van den Oord et al. 2018; in-batch
    negatives, Karpukhin et al. 2020), in both directions, at a `temperature`; embeddings are mean-pooled and of unit
    length.

    `text` and `text2` are columns of related texts. Files without `text2` have a `label`: texts with the same label are
    related, and each epoch samples their partners again. Texts with the same label, and equal texts, are not negatives
    of each other. A batch is train.batch_size pairs; train.accumulate is 1, because the loss couples the whole batch.
    """

    text: str = "text"  # column with the texts
    text2: str = "text2"  # column with their partners
    label: str = "label"  # column of labels, if there are no partners
    temperature: float = 0.05  # divides the cosines

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that cannot be read, are too small, or do not fit the model."""
        if self.temperature <= 0:
            raise ConfigError(f"task.temperature is {self.temperature}; choose a number above 0, such as 0.05")
        size = coupled(recipe, "pairs", " and raise train.batch_size")
        names = {"text": self.text, "text2": self.text2, "label": self.label}
        table = read_table(recipe.files(data), names, optional=("text2", "label"))
        if not table.columns.keys() & {"text2", "label"}:
            raise UserError(
                f"{table.places[0][0]} has neither a column {self.text2!r} nor {self.label!r}; add the texts' "
                "partners or labels, or name their column with task.text2=NAME or task.label=NAME"
            )
        sentences = RelatedTexts(self, recipe, size, table, workspace)
        return Task(sentences, SentenceContrast(sentences.labels is None, self.temperature))


class RelatedTexts(Examples):
    """Texts related by their `partners` or by their `labels`, int64 [N]. Rows are the texts, then the partners."""

    def __init__(self, config: EmbeddingConfig, recipe: Recipe, size: int, table: Table, workspace: Path) -> None:
        self.seed, self.size = recipe.train.seed, size
        self.texts, self.partners = table.columns["text"], table.columns.get("text2")
        joined = join_spellings(table.columns.get("label", ()))
        self.joined = joined.remarks
        self.labels = None if self.partners is not None else np.unique(joined.labels, return_inverse=True)[1]
        sides = sides_of(self.texts, table.named, config.split)
        columns = [self.texts, *([] if self.partners is None else [self.partners])]
        trained = (column[row] for column in columns for row in sides["train"])
        self.codec = config.codec_of(trained, workspace)
        self.lines = [line for column in columns for line in column]
        encoded = [ids for column in columns for ids in self.codec.encode_batch(column)]
        frame, limit = frame_for(self.codec, check_encoder(recipe.model)), config.limit(recipe)
        self.rows: FramedRows = framed(frame, encoded, None, limit, lambda row: table.place(row % len(self.texts)))
        kept = Sides({side: self._related(texts) for side, texts in sides.items()}, sides.removed)
        every = np.arange(len(self.texts))
        self.splits = Splits(kept, self._related(every), "texts with a partner")

    def _related(self, texts: np.ndarray) -> np.ndarray:
        """The texts that have a partner among them."""
        if self.labels is None:
            return texts
        return texts[np.bincount(self.labels[texts])[self.labels[texts]] > 1]

    def of(self, split: str) -> RelatedSplit:
        return RelatedSplit(self, self.splits.rows(split))

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*removals(self.splits), *self.joined)

    @property
    def final_split(self) -> str:
        return self.splits.final

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's vocabulary size. UserError for a split without pairs or with fewer than one
        batch.
        """
        check_sides(self.splits, self.size, "pairs")
        return replace(check_encoder(model), symbols=self.codec.size)

    def batch(self, texts: np.ndarray, partners: np.ndarray) -> Batch:
        """Tokens of the rows of texts and partners. Equal texts, and texts of one label, count as the same."""
        keys = [self._keys(texts), self._keys(partners)]
        same = np.logical_or.reduce([side[:, None] == side for side in keys])
        parts = in_parts(self.rows, np.concatenate([texts, partners]))
        return Batch((parts,), (torch.arange(len(same)), torch.from_numpy(same)), len(same), parts.computed)

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        """Keys that are equal for rows that are not negatives of each other."""
        if self.labels is not None:
            return self.labels[rows]
        return np.array([key_of(self.lines[row]) for row in rows.tolist()], np.uint64)

    def contents(self) -> Contents:
        return {"texts": (self.lines,), **({} if self.labels is None else {"labels": (self.labels,)})}

    def save(self, directory: Path) -> None:
        self.codec.save(directory)


class RelatedSplit:
    """Texts that all have a partner in the split, or the `first` of them."""

    def __init__(self, examples: RelatedTexts, texts: np.ndarray, first: int | None = None) -> None:
        self.examples, self.texts, self.rows = examples, texts, texts[:first]
        if examples.labels is not None:
            labels = examples.labels[texts]
            self._order = np.argsort(labels, kind="stable")
            self._rank = np.argsort(self._order, kind="stable")
            grouped = labels[self._order]
            self._starts = np.searchsorted(grouped, labels, "left")
            self._counts = np.searchsorted(grouped, labels, "right") - self._starts

    def __len__(self) -> int:
        return len(self.rows)

    def partners(self, numbers: np.ndarray, epoch: int) -> np.ndarray:
        """The rows of the texts' partners, a pure function of (seed, epoch): among texts with labels, each text is the
        partner of exactly one other text of its label.
        """
        if self.examples.labels is None:
            return self.texts[numbers] + len(self.examples.texts)
        starts, counts = self._starts[numbers], self._counts[numbers]
        step = 1 + (epoch_seed(self.examples.seed, epoch) % (1 << 32)) % (counts - 1)
        return self.texts[self._order[starts + (self._rank[numbers] - starts + step) % counts]]

    def take(self, numbers: np.ndarray, chance: Chance | None = None) -> Batch:
        epoch = 0 if chance is None else int(chance.places[0]) // len(self.texts)
        return self.examples.batch(self.texts[numbers], self.partners(numbers, epoch))

    def training(self) -> ByCount:
        return ByCount(len(self), self.examples.size, self.examples.seed)

    def judging(self) -> ByCount:
        return ByCount(len(self), self.examples.size)

    def some(self, limit: int | None) -> RelatedSplit:
        return RelatedSplit(self.examples, self.texts, limit)


class SentenceContrast(Contrast[RelatedTexts]):
    """Matches texts with their partners by the cosine of their embeddings, divided by a `temperature`."""

    def __init__(self, partnered: bool, temperature: float) -> None:
        self.goal, self.temperature = "recall_at_1" if partnered else "accuracy", temperature

    def adapt(self, model: ModelConfig, examples: RelatedTexts) -> ModelConfig:
        """`model` with its own embedding head, or a new one."""
        encoder = check_encoder(model)
        known = encoder.heads.get(HEAD)
        pool: Literal["mean", "last"] = "last" if encoder.stack.causal else "mean"
        head = known if isinstance(known, PooledHeadConfig) else PooledHeadConfig(pool=pool, unit=True)
        return replace(encoder, heads={HEAD: head})

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B B"]:
        encoder, (texts,) = cast(Transformer, model), batch.inputs
        left, right = of_parts(lambda part: encoder.output(HEAD, *part), texts.parts)[texts.order].chunk(2)
        return left @ right.T / self.temperature

    def vectors(self, model: nn.Module, examples: RelatedTexts, rows: np.ndarray) -> Float[np.ndarray, "N D"]:
        """The embeddings of rows."""
        encoder = cast(Transformer, model)
        return said_of(encoder, examples.rows, rows, lambda part: encoder.output(HEAD, *part)).numpy()

    def judge(self, model: nn.Module, examples: RelatedTexts, split: str, limit: int | None = None) -> dict[str, Any]:
        """For pairs: recall of the partner at 1 and 5 among all partners of the split. For texts with labels: recall of
        a text of the same label, and accuracy of the nearest class centroid; centroids are of training texts.
        """
        samples = examples.of(split).some(limit)
        found = self.vectors(model, examples, samples.rows)
        if examples.labels is None:
            return partner_recall(found, self.vectors(model, examples, samples.rows + len(examples.texts)))
        known = examples.splits.rows("all" if split == "all" else "train")
        order = known[np.argsort(examples.labels[known], kind="stable")]
        grouped = examples.labels[order]
        centres = order[np.arange(len(order)) - np.searchsorted(grouped, grouped) < _CENTRES]  # the first of each label
        labels = examples.labels[samples.rows]
        scores = nearest_centroid(self.vectors(model, examples, centres), examples.labels[centres], found, labels)
        return {**neighbour_recall(found, labels), **scores}

    def samples(self, model: nn.Module, examples: RelatedTexts, count: int) -> list[dict[str, str]]:
        """Held-out texts with the nearest other text, or the nearest partner if there are partners."""
        texts, lines, partners = examples.of(examples.final_split).rows, examples.lines, examples.partners
        asked, offered = spread(texts, count), texts if partners is None else texts + len(examples.texts)
        similar = self.vectors(model, examples, asked) @ self.vectors(model, examples, offered).T
        similar[offered == asked[:, None]] = -np.inf
        nearest = offered[similar.argmax(1)]
        shown = [{"source": lines[one], "output": lines[row]} for one, row in zip(asked, nearest)]
        if partners is None:
            return shown
        return [{**sample, "reference": partners[one]} for sample, one in zip(shown, asked)]
