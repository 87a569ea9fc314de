"""What the tasks on encoders have in common: batches by tokens, splits, outputs in the order of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.checkpoints.familiar import Familiar
from headway.codecs import Codec
from headway.data.splits import larger_share
from headway.domains.understanding.config import batch_tokens
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.models import Transformer
from headway.train import WHOLE, Recipe, Shard, Sided, sharding
from headway.train.rows import Inputs, Rows, output

_EVALUATED_AT_ONCE = 2048  # tokens


@dataclass(frozen=True)
class LabelledBatch:
    """Rows and what is to be said of them: of each row, [B], or of each of its tokens, [B, T]."""

    inputs: Inputs
    labels: Tensor
    tokens: int

    @property
    def computed(self) -> int:
        return self.inputs.computed

    def to(self, device: torch.device | str) -> Self:
        if self.labels.device == torch.device(device):
            return self
        return type(self)(self.inputs.to(device), self.labels.to(device), self.tokens)


class EncoderTask(Sided):
    """Labelled rows, and the numbers of those on each side."""

    goal: str = "accuracy"
    goal_better: Literal["min", "max"] = "max"
    unit: str = "text"
    head: str

    def __init__(self, recipe: Recipe, codec: Codec, rows: Rows, sides: dict[str, np.ndarray]) -> None:
        self.codec = codec
        self.rows = rows
        self.sides = sides
        self.seed = recipe.train.seed
        self.batch_tokens = batch_tokens(recipe)

    def numbers(self, split: str) -> np.ndarray:
        """The samples of a split, int64 [N]; "all" is all there are. A UserError where there are none."""
        found = np.arange(len(self.rows)) if split == "all" else self.sides.get(split, np.zeros(0, np.int64))
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.rows):,} samples is empty; give files named {split}, or "
                f"{larger_share(split)}"
            )
        return found

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[LabelledBatch]:
        numbers = self.numbers(split)
        if split != "train":
            plan = list(self.rows.once(numbers, _EVALUATED_AT_ONCE))
            return map(self.batch, plan[shard.rank :: shard.world])
        return self._endless(numbers, shard, start)

    def _endless(self, numbers: np.ndarray, shard: Shard, start: int) -> Iterator[LabelledBatch]:
        """Batch k is the k-th of a row of shuffled epochs, whoever reads it."""
        plan = self.rows.plan(numbers, self.batch_tokens, self.seed)
        for places in sharding.planned(plan, shard, start):
            yield self.batch(numbers[places])

    def batch(self, numbers: np.ndarray) -> LabelledBatch:
        """The samples of these numbers, int [B]."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, LabelledBatch, Tensor]]:
        """The samples of these numbers in batches, with what the head says of them."""
        encoder = cast(Transformer, model)
        with evaluating(encoder), torch.no_grad():
            for some in self.rows.once(numbers, _EVALUATED_AT_ONCE):
                batch = self.batch(some).to(device_of(encoder))
                yield some, batch, output(encoder, self.head, batch.inputs)

    def met(self) -> Familiar:
        """The symbols of the texts to train on. Longer texts than these are nothing strange to what says a label."""
        of_train = np.zeros(len(self.rows), bool)
        of_train[self.sides["train"]] = True
        return Familiar.of(self.rows.ids[np.repeat(of_train, self.rows.lengths)], self.codec.size)

    def save(self, directory: Path) -> None:
        self.codec.save(directory)

    def spread(self, count: int) -> np.ndarray:
        """Samples of the split that is judged last, spread evenly over it."""
        return sharding.spread(self.numbers(self.final_split), count)
