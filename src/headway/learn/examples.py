"""Training examples: indexed samples in splits, and the order in which batches read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.data import SIDES, PairBatches, Splits, sample_at
from headway.formats.familiar import Familiar
from headway.nn.mixers import tree_map
from headway.nn.models import ModelConfig


class Shard(NamedTuple):
    """The part of the data for one of `world` processes."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()


def spread(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` evenly spaced rows, because the first ones often belong to one class or one file."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


class Batch(NamedTuple):
    """One micro-batch. `inputs` is the tuple of the model's arguments, `targets` the expected outputs: trees (nested
    tuples) of tensors and layouts, with None for missing parts. `tokens` counts the targets of the loss, `computed` the
    tokens that the model computes, including padding. In stateful training, `starts_epoch` means that streams start
    again.
    """

    inputs: Any
    targets: Any
    tokens: int
    computed: int
    begins: bool = True

    def to(self, device: torch.device | str) -> Batch:
        tensors: list[Tensor] = []
        tree_map(lambda item: isinstance(item, Tensor) and tensors.append(item), (self.inputs, self.targets))
        if tensors[0].device == torch.device(device):
            return self  # keeps values that layouts have cached
        inputs, targets = tree_map(lambda item: item.to(device), (self.inputs, self.targets))
        return self._replace(inputs=inputs, targets=targets)


class Chance(NamedTuple):
    """The counter-based random key of a training batch, in addition to the seed: the batch index, and the position of
    each sample in the endless stream of samples, int64 [B].
    """

    number: int
    places: Int[np.ndarray, "B"]


class Endless(Protocol):
    """The training order of samples with indices from 0."""

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[Chance, Int[np.ndarray, "B"]]]:
        """Endless batches, where batch k is a pure function of k: a shard reads start + rank, start + rank + world, and
        so on.
        """
        ...


class Once(Protocol):
    """The order of evaluation."""

    def once(self, shard: Shard = WHOLE) -> Iterator[Int[np.ndarray, "B"]]:
        """Batches that contain each sample once."""
        ...


class Order(Endless, Once, Protocol):
    """An order for both training and evaluation."""


class ByCount(NamedTuple):
    """Batches of `size` samples: batch k has the positions k size, ..., (k + 1) size - 1 of a stream of epochs, which
    are shuffled if there is a seed. A single pass is in index order.
    """

    samples: int
    size: int
    seed: int | None = None

    @property
    def epoch(self) -> float:
        """The number of batches per epoch."""
        return self.samples / self.size

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[Chance, Int[np.ndarray, "B"]]]:
        for number in count(start + shard.rank, shard.world):
            places = np.arange(number * self.size, (number + 1) * self.size)
            found = places % self.samples if self.seed is None else sample_at(places, self.samples, self.seed)
            yield Chance(number, places), found

    def once(self, shard: Shard = WHOLE) -> Iterator[Int[np.ndarray, "B"]]:
        for first in range(shard.rank * self.size, self.samples, shard.world * self.size):
            yield np.arange(first, min(first + self.size, self.samples))


class ByTokens(NamedTuple):
    """Batches of samples of nearly equal lengths from a plan: batch k is the k-th of a sequence of shuffled epochs. A
    single pass goes from short to long.
    """

    plan: PairBatches
    samples: int

    @property
    def epoch(self) -> float:
        """The number of batches per epoch."""
        return len(self.plan)

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[Chance, Int[np.ndarray, "B"]]]:
        batches, known = [], -1
        for number in count(start + shard.rank, shard.world):
            epoch, place = divmod(number, len(self.plan))
            if epoch != known:
                batches, known = self.plan.epoch(epoch), epoch
            yield Chance(number, epoch * self.samples + batches[place]), batches[place]

    def once(self, shard: Shard = WHOLE) -> Iterator[Int[np.ndarray, "B"]]:
        yield from self.plan.in_order()[shard.rank :: shard.world]


Contents = Mapping[str, Sequence[np.ndarray | Sequence[str]]]


class Samples(Protocol):
    """The samples of one split, with indices from 0."""

    def __len__(self) -> int: ...

    def take(self, numbers: Int[np.ndarray, "B"], chance: Chance | None = None) -> Batch:
        """These samples as a batch: a pure function of indices, seed and key. Without a key there is no randomness, or
        it depends on the indices only.
        """
        ...

    def training(self) -> Endless: ...

    def judging(self) -> Once: ...

    def some(self, limit: int | None) -> Samples:
        """A representative subset of at most `limit` samples."""
        ...


class Examples:
    """The data of a domain: samples in splits, and the preprocessing that inference needs."""

    stated: str = "all"  # the split that is evaluated by default when a finished model gets other data

    def of(self, split: str) -> Samples:
        """The samples of a split, or of "all". UserError for an unknown or empty split."""
        raise NotImplementedError

    @property
    def final_split(self) -> str:
        """The split for the final evaluation: test, or validation if there is no test split."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """The names of possible splits."""
        return (*SIDES, "all")

    def limited(self, split: str, limit: int | None) -> Self:
        """The same examples, with the split reduced to the `limit` samples of an evaluation."""
        return self

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the report about data that were changed or left out."""
        return ()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the input settings that depend on the data: vocabulary size, channels, sizes. UserError if there
        are no training or validation samples.
        """
        raise NotImplementedError

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[Batch]:
        """Micro-batches of a split: endless for training, from batch `start` on; a single pass for other splits."""
        samples = self.of(split)
        if split == "train":
            for chance, numbers in samples.training().endless(shard, start):
                yield samples.take(numbers, chance)
        else:
            for numbers in samples.judging().once(shard):
                yield samples.take(numbers)

    def count(self, split: str) -> int:
        """The number of samples of a split."""
        return len(self.of(split))

    def epoch(self) -> float | None:
        """The number of training batches per epoch; None if the examples define their own batches."""
        if type(self).batches is not Examples.batches:
            return None
        return getattr(self.of("train").training(), "epoch", None)

    def contents(self) -> Contents:
        """The parts of the data, except the splits, by name: "texts", "labels". A resumed run compares them to detect
        other data. Digests may replace the content that they were computed from.
        """
        return {}

    @property
    def splits_read(self) -> Splits | None:
        """The splits of the data, if samples are indexed."""
        found = getattr(self, "splits", None)
        return found if isinstance(found, Splits) else None

    def save(self, directory: Path) -> None:
        """Write what inference needs in addition to the weights: codec, processor."""

    def met(self) -> Familiar | None:
        """Statistics of the training inputs, if the examples know them."""
        return None

    def close(self) -> None:
        """Release resources: simulators and their renderers."""


def removals(splits: Splits) -> tuple[str, ...]:
    """A sentence for the report about samples that are left out of training."""
    if not splits.removed:
        return ()
    what = f"{splits.removed:,} of the {splits.what} to train on"
    return (f"{what} were left out, because validation or test files contain the same ones.",)


class Numbered(Examples):
    """Samples of one table, each in one split. A domain defines the model inputs for rows of the table (`take`)."""

    splits: Splits
    seed: int
    size: int
    at_once: int = 64

    def take(self, rows: Int[np.ndarray, "B"], chance: Chance | None = None) -> Batch:
        raise NotImplementedError

    def shown(self, row: int) -> str:
        """A row as one line of text."""
        raise NotImplementedError

    def training(self, rows: np.ndarray) -> Order:
        return ByCount(len(rows), self.size, self.seed)

    def judging(self, rows: np.ndarray) -> Order:
        return ByCount(len(rows), self.at_once)

    def numbers(self, split: str) -> np.ndarray:
        """The rows of a split. UserError for an unknown or empty split."""
        return self.splits.rows(split)

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """A representative subset of at most `limit` rows."""
        return spread(rows, limit)

    def of(self, split: str) -> Selected:
        return Selected(self, self.numbers(split))

    def limited(self, split: str, limit: int | None) -> Self:
        some, found = self.some(self.numbers(split), limit), copy(self)
        found.splits = self.splits._replace(sides={**self.splits.sides, split: some})
        return found

    @property
    def remarks(self) -> tuple[str, ...]:
        return removals(self.splits)

    @property
    def final_split(self) -> str:
        return self.splits.final

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.splits.sides, "all")

    def spread(self, count: int) -> np.ndarray:
        """Evenly spaced rows of the final split."""
        return spread(self.numbers(self.final_split), count)


@dataclass(frozen=True)
class Selected:
    """A selection of rows of a table, in this order."""

    examples: Numbered
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Int[np.ndarray, "B"], chance: Chance | None = None) -> Batch:
        return self.examples.take(self.rows[numbers], chance)

    def training(self) -> Order:
        return self.examples.training(self.rows)

    def judging(self) -> Order:
        return self.examples.judging(self.rows)

    def some(self, limit: int | None) -> Self:
        return replace(self, rows=self.examples.some(self.rows, limit))


class Explored(Examples):
    """Samples that the model generates with its current weights (on-policy reinforcement learning). Training batch k
    depends on all previous updates; checkpoints contain the exploration state in addition to the weights.
    """

    @property
    def period(self) -> int:
        """The number of batches per rollout: only complete periods have a typical cost."""
        raise NotImplementedError

    def explore(self, model: nn.Module) -> None:
        """Start with this model: `batches("train")` come from it from now on."""
        raise NotImplementedError

    def explored(self) -> dict[str, Tensor]:
        """The state for a checkpoint that batches depend on in addition to the weights."""
        raise NotImplementedError

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `exploration_state`. UserError if it belongs to another task."""

        raise NotImplementedError
