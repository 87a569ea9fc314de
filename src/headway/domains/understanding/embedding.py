"""Vectors of sentences: texts that belong together are near, others far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from headway.codecs.frame import frame_of
from headway.config import register
from headway.data import Table, read_table, sides_of
from headway.data.splits import key_of, larger_share
from headway.domains.understanding.config import EncoderTaskConfig, adapted, check_encoder
from headway.domains.understanding.contrast import ContrastBatch, Partners, contrast, vectors
from headway.errors import ConfigError, UserError
from headway.generate.prompts import device_of, evaluating
from headway.metrics import nearest_centroid, neighbour_recall, partner_recall
from headway.models import Loss, ModelConfig, PooledHeadConfig, Transformer
from headway.train import WHOLE, Recipe, Shard, Sided, sharding
from headway.train.rows import Rows, framed, in_parts, output

HEAD = "embedding"
_EVALUATED_AT_ONCE = 2048  # tokens
_CENTRES = 50  # texts of a class whose mean is its centre


@register("embedding")
@dataclass(frozen=True)
class EmbeddingConfig(EncoderTaskConfig):
    """Contrast each text's partner with those of the others in its batch (InfoNCE, van den Oord et al. 2018; in-batch
    negatives, Karpukhin et al. 2020), both ways, at a `temperature`; vectors are the mean of the tokens at unit length.

    `text` and `text2` are the columns of texts that belong together. Files without `text2` have a `label`: texts of one
    label belong together, and each epoch draws their partners anew. Texts of one label, or equal ones, are no
    negatives of each other. A batch is train.batch_size pairs; as the loss couples them, train.accumulate is 1.
    """

    text: str = "text"  # column of the texts
    text2: str = "text2"  # column of their partners
    label: str = "label"  # column of labels, where there are no partners
    temperature: float = 0.05  # what cosines are divided by

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Embedding:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        _check(recipe, self.temperature)
        names = {"text": self.text, "text2": self.text2, "label": self.label}
        table = read_table(recipe.files(data), names, optional=("text2", "label"))
        if not table.columns.keys() & {"text2", "label"}:
            raise UserError(
                f"{table.places[0][0]} has neither a column {self.text2!r} nor {self.label!r}; give texts with their "
                "partners or with labels, or name the column with task.text2=NAME or task.label=NAME"
            )
        return Embedding(self, recipe, table, workspace)


def _check(recipe: Recipe, temperature: float) -> None:
    train = recipe.train
    if temperature <= 0:
        raise ConfigError(f"task.temperature is {temperature}; give a number above 0, such as 0.05")
    if train.accumulate != 1:
        raise ConfigError(
            f"train.accumulate is {train.accumulate}, but the loss couples the pairs of a batch, so that parts of it "
            "are not the whole; set train.accumulate to 1 and raise train.batch_size"
        )
    if train.batch_size is None or train.batch_size < 2:
        raise ConfigError(f"train.batch_size is {train.batch_size}; give the pairs of a batch, 2 or more")


class Embedding(Sided):
    """The task over pairs, or over texts with labels."""

    goal_better: Literal["min", "max"] = "max"
    unit = "pair"

    def __init__(self, config: EmbeddingConfig, recipe: Recipe, table: Table, workspace: Path) -> None:
        self.config = config
        self.seed = recipe.train.seed
        self.size = recipe.train.batch_size or 0
        self.texts = table.columns["text"]
        self.partners = table.columns.get("text2")
        self.labels = None if self.partners is not None else np.unique(table.columns["label"], return_inverse=True)[1]
        self.goal = "recall_at_1" if self.labels is None else "accuracy"
        self.sides = sides_of(self.texts, table.named, config.split)
        columns = [self.texts, *([] if self.partners is None else [self.partners])]
        trained = (column[row] for column in columns for row in self.sides["train"])
        self.codec = config.codec_of(trained, workspace)
        # Texts, and after them their partners, are the rows.
        encoded = [ids for column in columns for ids in self.codec.encode_batch(column)]
        limit = config.limit(recipe)
        self.rows: Rows = framed(
            frame_of(self.codec), encoded, None, limit, lambda row: table.place(row % len(self.texts))
        )

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols and a head of sentence vectors; its own where it has one."""
        self.pairs("validation")
        if len(self.pairs("train")) < self.size:
            raise UserError(
                f"train.batch_size {self.size} exceeds the {len(self.pairs('train'))} pairs to train on; lower it, or "
                "give more"
            )
        known = check_encoder(model).heads.get(HEAD)
        pool: Literal["mean", "last"] = "last" if check_encoder(model).stack.causal else "mean"
        head = known if isinstance(known, PooledHeadConfig) else PooledHeadConfig(pool=pool, unit=True)
        return adapted(model, self.codec, HEAD, head)

    def pairs(self, split: str) -> np.ndarray:
        """The texts of a split that have a partner there, int64 [N]. A UserError where there are none."""
        found = np.arange(len(self.texts)) if split == "all" else self.sides[split]
        if self.labels is not None:
            counts = np.bincount(self.labels[found], minlength=int(self.labels.max()) + 1)
            found = found[counts[self.labels[found]] > 1]
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.texts):,} texts holds no two that belong together; give files named "
                f"{split}, or {larger_share(split)}"
            )
        return found

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[ContrastBatch]:
        """Batch k of training holds the pairs k size, ..., (k + 1) size - 1 of a shuffled stream of epochs."""
        texts = self.pairs(split)
        draw = Partners(None if self.labels is None else self.labels[texts], self.seed)
        if split != "train":
            for places in sharding.once(len(texts), self.size, shard):
                yield self._batch(texts, places, draw.of(places, 0))
            return
        for stream, places in sharding.endless(len(texts), self.size, self.seed, shard, start):
            yield self._batch(texts, places, draw.of(places, int(stream[0]) // len(texts)))

    def _batch(self, texts: np.ndarray, places: np.ndarray, partners: np.ndarray) -> ContrastBatch:
        """`places` are those of the texts; the row of a given partner stands as far behind as there are texts."""
        chosen, others = texts[places], texts[partners] + (len(self.texts) if self.labels is None else 0)
        keys = [self._keys(chosen), self._keys(others)]
        same = np.logical_or.reduce([side[:, None] == side for side in keys])
        return ContrastBatch(in_parts(self.rows, np.concatenate([chosen, others])), torch.from_numpy(same))

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        """Numbers that are equal for rows which are no negatives of each other."""
        if self.labels is not None:
            return self.labels[rows]
        columns = [self.texts, self.partners or []]
        size = len(self.texts)
        return np.array([key_of(columns[row // size][row % size]) for row in rows.tolist()], np.uint64)

    def loss(self, model: nn.Module, batch: ContrastBatch) -> dict[str, Loss]:
        texts, partners = vectors(batch.texts, cast(Transformer, model), HEAD).chunk(2)
        return {"loss": Loss(contrast(texts, partners, batch.same, self.config.temperature), batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Of pairs: recall of the partner among all partners of the split, at 1 and 5. Of texts with labels: recall of
        a text of the same label, and accuracy of the nearest centre of a class; centres are those of training texts.
        """
        texts = self.pairs(split)[:limit]
        if self.labels is None:
            return partner_recall(self.vectors(model, texts), self.vectors(model, texts + len(self.texts)))
        found, labels = self.vectors(model, texts), self.labels[texts]
        centres = self._some_of_each(self.pairs("all" if split == "all" else "train"))
        scores = nearest_centroid(self.vectors(model, centres), self.labels[centres], found, labels)
        return {**neighbour_recall(found, labels), **scores}

    def _some_of_each(self, texts: np.ndarray) -> np.ndarray:
        """The first texts of each label."""
        assert self.labels is not None  # asked for only where there are labels
        order = texts[np.argsort(self.labels[texts], kind="stable")]
        labels = self.labels[order]
        return order[np.arange(len(order)) - np.searchsorted(labels, labels) < _CENTRES]

    def vectors(self, model: nn.Module, rows: np.ndarray) -> np.ndarray:
        """The vectors [N, D] of rows."""
        encoder = cast(Transformer, model)
        found: dict[int, np.ndarray] = {}
        with evaluating(encoder), torch.no_grad():
            for some in self.rows.once(rows, _EVALUATED_AT_ONCE):
                inputs = self.rows.inputs(some).to(device_of(encoder))
                found.update(zip(some.tolist(), output(encoder, HEAD, inputs).cpu().numpy()))
        return np.stack([found[row] for row in rows.tolist()])

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out texts with the nearest of the others (of the partners, where there are some)."""
        texts = self.pairs(self.final_split)
        asked = sharding.spread(texts, count)
        offered = texts if self.partners is None else texts + len(self.texts)
        similar = self.vectors(model, asked) @ self.vectors(model, offered).T
        similar[offered == asked[:, None]] = -np.inf
        size, columns = len(self.texts), [self.texts, self.partners or []]
        nearest = offered[similar.argmax(1)].tolist()
        shown = [
            {"source": self.texts[one], "output": columns[row // size][row % size]}
            for one, row in zip(asked.tolist(), nearest)
        ]
        if self.partners is None:
            return shown
        return [{**sample, "reference": self.partners[one]} for sample, one in zip(shown, asked.tolist())]

    def save(self, directory: Path) -> None:
        self.codec.save(directory)
