"""One thing said of a whole text, or of two: a class, or a number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from headway.codecs.frame import frame_of
from headway.config import register
from headway.data import Table, read_table, sides_of
from headway.domains.understanding.config import (
    EncoderTaskConfig,
    adapted,
    pooling_head,
)
from headway.domains.understanding.task import EncoderTask, LabelledBatch
from headway.errors import UserError
from headway.metrics import class_scores, correlation_scores
from headway.models import Loss, ModelConfig, Transformer
from headway.models.pooled import Pool
from headway.report import Picture
from headway.report.confusion import confusions
from headway.train import Recipe, sharding
from headway.train.labels import labels_of, save_labels, unknown_label
from headway.train.rows import Rows, framed, output

_LOG = logging.getLogger(__name__)
HEAD = "classes"


@register("classification")
@dataclass(frozen=True)
class ClassificationConfig(EncoderTaskConfig):
    """Give each text its class.

    `text` and `label` are the names of the columns. `pool` says what of a text's tokens is judged: the first, the mean
    or the last; none for what suits the model. `smoothing` spreads that share of each label over all classes (Szegedy
    et al. 2016).
    """

    text: str = "text"  # column of the texts
    label: str = "label"  # column of the labels
    pool: Literal["first", "mean", "last"] | None = None
    smoothing: float = 0.0

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Classes:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        table = read_table(recipe.files(data), {"text": self.text, "label": self.label})
        return Classes(self, recipe, table, workspace)


@register("pairs")
@dataclass(frozen=True)
class PairsConfig(ClassificationConfig):
    """Give each pair of texts its class, or its number where all labels are numbers (`target` says which of the two).

    `text`, `text2` and `label` are the names of the columns. Pairs are split by their first text.
    """

    text2: str = "text2"  # column of the second texts
    target: Literal["auto", "class", "number"] = "auto"  # classes, numbers, or what the labels look like

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Classes | Numbers:
        """Raises UserError for data that cannot be read, hold too little, or do not fit the model."""
        names = {"text": self.text, "text2": self.text2, "label": self.label}
        table = read_table(recipe.files(data), names)
        if self.target == "class" or (self.target == "auto" and not _are_numbers(table.columns["label"])):
            return Classes(self, recipe, table, workspace)
        if self.target == "auto":
            _LOG.warning("all labels are numbers, which are foretold as such; task.target=class makes classes of them")
        return Numbers(self, recipe, table, workspace)


def _are_numbers(labels: Sequence[str]) -> bool:
    return all(_number(label) is not None for label in labels)


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


class TextTask(EncoderTask):
    """A table of texts or pairs."""

    head = HEAD

    def __init__(self, config: ClassificationConfig, recipe: Recipe, table: Table, workspace: Path) -> None:
        self.config = config
        self.table = table
        self.started = recipe.start is not None
        texts = table.columns["text"]
        sides = sides_of(texts, table.named, config.split)
        seconds = table.columns.get("text2")
        trained = (column[row] for column in (texts, seconds or []) for row in sides["train"] if column)
        self.unit = "pair" if seconds else "text"
        codec = config.codec_of(trained, workspace)
        super().__init__(recipe, codec, self._rows(codec, recipe), sides)

    def _rows(self, codec: Any, recipe: Recipe) -> Rows:
        first, *others = (
            codec.encode_batch(self.table.columns[use]) for use in ("text", "text2") if use in self.table.columns
        )
        second = others[0] if others else None
        return framed(frame_of(codec), first, second, self.config.limit(recipe), self.table.place)

    def _shown(self, row: int) -> str:
        columns = self.table.columns
        return columns["text"][row] + (f" | {columns['text2'][row]}" if "text2" in columns else "")

    def _head(self, model: ModelConfig, outputs: int) -> ModelConfig:
        for split in ("train", "validation"):
            self.numbers(split)
        pool: Pool | None = self.config.pool
        return adapted(model, self.codec, HEAD, pooling_head(model, outputs, pool, self.started))


class Classes(TextTask):
    """The task over texts with classes; cross-entropy, judged by accuracy."""

    def __init__(self, config: ClassificationConfig, recipe: Recipe, table: Table, workspace: Path) -> None:
        super().__init__(config, recipe, table, workspace)
        given = table.columns["label"]
        self.labels = labels_of({given[row] for row in self.sides["train"]} or set(given), workspace)
        numbers = {label: number for number, label in enumerate(self.labels)}
        wrong = next((row for row, label in enumerate(given) if label not in numbers), None)
        if wrong is not None:
            raise unknown_label(given[wrong], table.place(wrong), self.labels)
        self.classes = np.fromiter((numbers[label] for label in given), np.int64, len(given))

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols and a head of as many classes as there are."""
        return self._head(model, len(self.labels))

    def batch(self, numbers: np.ndarray) -> LabelledBatch:
        return LabelledBatch(self.rows.inputs(numbers), torch.from_numpy(self.classes[numbers]), len(numbers))

    def loss(self, model: nn.Module, batch: LabelledBatch) -> dict[str, Loss]:
        logits = output(cast(Transformer, model), HEAD, batch.inputs)
        total = F.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=self.config.smoothing)
        return {"loss": Loss(total, batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Loss (nats a text, without smoothing), accuracy and macro F1 over a split, or `limit` texts of it."""
        numbers = sharding.spread(self.numbers(split), limit)
        said, nats = np.zeros(len(self.rows), np.int64), 0.0
        for some, batch, logits in self.outputs(model, numbers):
            said[some] = logits.argmax(-1).cpu().numpy()
            nats += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        return {"loss": nats / len(numbers), **class_scores(said[numbers], self.classes[numbers])}

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out texts with the class that is said and the one that is right."""
        said: dict[int, str] = {}
        for some, _, logits in self.outputs(model, self.spread(count)):
            said.update(zip(some.tolist(), (self.labels[best] for best in logits.argmax(-1).tolist())))
        return [
            {"source": self._shown(row), "output": label, "reference": self.labels[self.classes[row]]}
            for row, label in sorted(said.items())
        ]

    def pictures(self, model: nn.Module) -> list[Picture]:
        """What is taken for what on the split that is judged last."""
        numbers = self.numbers(self.final_split)
        said = np.zeros(len(self.rows), np.int64)
        for some, _, logits in self.outputs(model, numbers):
            said[some] = logits.argmax(-1).cpu().numpy()
        return confusions(self.classes[numbers], said[numbers], self.labels, f"{self.final_split} {self.unit}s")

    def save(self, directory: Path) -> None:
        super().save(directory)
        save_labels(directory, self.labels)


class Numbers(TextTask):
    """The task over pairs with numbers; squared error in units of their variance, judged by Spearman's correlation."""

    goal = "spearman"
    measure = "squared error in units of the variance"

    def __init__(self, config: PairsConfig, recipe: Recipe, table: Table, workspace: Path) -> None:
        super().__init__(config, recipe, table, workspace)
        found = [_number(label) for label in table.columns["label"]]
        wrong = next((row for row, value in enumerate(found) if value is None), None)
        if wrong is not None:
            label = table.columns["label"][wrong]
            raise UserError(
                f"{table.place(wrong)}: the label {label!r} is not a number; correct it, or task.target=class"
            )
        self.values = np.array(found, np.float32)
        self.scale = float(self.values[self.sides["train"]].std()) if len(self.sides["train"]) else 1.0
        if len(self.sides["train"]) and self.scale == 0:
            raise UserError(f"all labels are {self.values[0]:g}, so there is nothing to predict; give others")

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the codec's symbols and a head of one number."""
        return self._head(model, 1)

    def batch(self, numbers: np.ndarray) -> LabelledBatch:
        return LabelledBatch(self.rows.inputs(numbers), torch.from_numpy(self.values[numbers]), len(numbers))

    def loss(self, model: nn.Module, batch: LabelledBatch) -> dict[str, Loss]:
        said = output(cast(Transformer, model), HEAD, batch.inputs)[:, 0]
        return {"loss": Loss(((said - batch.labels) / self.scale).square().sum(), batch.tokens)}

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, Any]:
        """Mean squared error in units of the variance, and both correlations, over a split or `limit` of it."""
        numbers = sharding.spread(self.numbers(split), limit)
        said = self._said(model, numbers)
        errors = (said[numbers] - self.values[numbers]) / self.scale
        return {"loss": float(np.square(errors).mean()), **correlation_scores(said[numbers], self.values[numbers])}

    def _said(self, model: nn.Module, numbers: np.ndarray) -> np.ndarray:
        said = np.zeros(len(self.rows), np.float32)
        for some, _, values in self.outputs(model, numbers):
            said[some] = values[:, 0].cpu().numpy()
        return said

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        """Held-out pairs with the number that is said and the one that is right."""
        numbers = self.spread(count)
        said = self._said(model, numbers)
        return [
            {"source": self._shown(row), "said": f"{said[row]:.2f}", "given": f"{self.values[row]:g}"}
            for row in numbers.tolist()
        ]

    def save(self, directory: Path) -> None:
        super().save(directory)
        save_labels(directory, ())
