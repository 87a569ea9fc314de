"""What is learned from: numbered samples in splits, and the order in which batches read them."""

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
    """The part of the data that one of `world` processes reads."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()


def spread(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` of some rows, spread evenly over them: the first ones are often of one class or one file."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


class Batch(NamedTuple):
    """One micro-batch. `inputs` is the tuple that the model is called with, `targets` what it is to say: trees (nested
    tuples) of tensors and layouts, with None where there is nothing. `tokens` counts the targets of the loss,
    `computed` the tokens that the model computes, padding included. Where batches go on where earlier ones ended,
    `begins` says that streams begin anew.
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
            return self  # with what layouts have derived for all batches
        inputs, targets = tree_map(lambda item: item.to(device), (self.inputs, self.targets))
        return self._replace(inputs=inputs, targets=targets)


class Chance(NamedTuple):
    """What random draws in a batch of training hang on, beside the seed: the batch's number, and the place of each
    sample in the endless stream of samples, int64 [B].
    """

    number: int
    places: Int[np.ndarray, "B"]


class Endless(Protocol):
    """The order of training, over samples that are numbered from 0."""

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[Chance, Int[np.ndarray, "B"]]]:
        """Batches without end, where batch k is a pure function of k: a shard reads start + rank, start + rank + world,
        and so on.
        """
        ...


class Once(Protocol):
    """The order of judging."""

    def once(self, shard: Shard = WHOLE) -> Iterator[Int[np.ndarray, "B"]]:
        """Each sample once."""
        ...


class Order(Endless, Once, Protocol):
    """An order for both."""


class ByCount(NamedTuple):
    """Batches of `size` samples: batch k holds the places k size, ..., (k + 1) size - 1 of a stream of epochs, which
    are shuffled where there is a seed; once, they come as they are numbered.
    """

    samples: int
    size: int
    seed: int | None = None

    @property
    def epoch(self) -> float:
        """Batches that read as many samples as there are."""
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
    """Batches of samples of nearly equal lengths, as the plan has them: batch k is the k-th of a row of shuffled
    epochs; once, they come from short to long.
    """

    plan: PairBatches
    samples: int

    @property
    def epoch(self) -> float:
        """Batches that read each sample once."""
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
    """The samples of one split, numbered from 0."""

    def __len__(self) -> int: ...

    def take(self, numbers: Int[np.ndarray, "B"], chance: Chance | None = None) -> Batch:
        """These samples as a batch: a pure function of numbers, seed and chance. Without a chance nothing is drawn, or
        what hangs on the numbers alone.
        """
        ...

    def training(self) -> Endless: ...

    def judging(self) -> Once: ...

    def some(self, limit: int | None) -> Samples:
        """At most `limit` of them, which stand for all."""
        ...


class Examples:
    """What a domain brings: samples in splits, and what using the model needs of how they were read."""

    stated: str = "all"  # the split that is judged of data that are given to a finished model

    def of(self, split: str) -> Samples:
        """The samples of a split; "all" is all there are. UserError for an unknown or empty one."""
        raise NotImplementedError

    @property
    def final_split(self) -> str:
        """The split on which a finished model is judged: test, or validation where there is no test."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that there may be."""
        return (*SIDES, "all")

    def limited(self, split: str, limit: int | None) -> Self:
        """The same examples, of which a split has no more than the `limit` samples that an evaluation takes."""
        return self

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was changed or left out of the data as they were read, in sentences for the report."""
        return ()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with what only the data decide of its inputs: symbols, channels, sizes. UserError where there is
        nothing to train it on or to judge it by.
        """
        raise NotImplementedError

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[Batch]:
        """Micro-batches of a split: of training without end, from batch `start` on; of others once."""
        samples = self.of(split)
        if split == "train":
            for chance, numbers in samples.training().endless(shard, start):
                yield samples.take(numbers, chance)
        else:
            for numbers in samples.judging().once(shard):
                yield samples.take(numbers)

    def count(self, split: str) -> int:
        """The samples of a split."""
        return len(self.of(split))

    def epoch(self) -> float | None:
        """Training batches that read each sample once; None if the batches come in an order of their own."""
        if type(self).batches is not Examples.batches:
            return None
        return getattr(self.of("train").training(), "epoch", None)

    def contents(self) -> Contents:
        """All that was read of the data, beside the splits, by what people call each part: "texts", "labels". By them a
        run notices that it goes on with other data. Digests that were made anyway stand for what they are of.
        """
        return {}

    @property
    def splits_read(self) -> Splits | None:
        """The splits as the data have them, where samples are numbered."""
        found = getattr(self, "splits", None)
        return found if isinstance(found, Splits) else None

    def save(self, directory: Path) -> None:
        """Write what using the model needs beside its weights: codec, processor."""

    def met(self) -> Familiar | None:
        """What a model meets in training, where the examples know."""
        return None

    def close(self) -> None:
        """Give back what is held: simulators, and what they draw with."""


def removals(splits: Splits) -> tuple[str, ...]:
    """What is said in the report of samples that are left out of training."""
    if not splits.removed:
        return ()
    what = f"{splits.removed:,} of the {splits.what} to train on"
    return (f"{what} were left out, because validation or test files contain the same ones.",)


class Numbered(Examples):
    """Samples of one table, each in one split. A domain says what the model reads of rows of the table (`take`).

    `size` is that of a batch of training, `at_once` that of one that is judged.
    """

    splits: Splits
    seed: int
    size: int
    at_once: int = 64

    def take(self, rows: Int[np.ndarray, "B"], chance: Chance | None = None) -> Batch:
        raise NotImplementedError

    def shown(self, row: int) -> str:
        """A row as a line of text."""
        raise NotImplementedError

    def training(self, rows: np.ndarray) -> Order:
        return ByCount(len(rows), self.size, self.seed)

    def judging(self, rows: np.ndarray) -> Order:
        return ByCount(len(rows), self.at_once)

    def numbers(self, split: str) -> np.ndarray:
        """The rows of a split. UserError for an unknown or empty one."""
        return self.splits.rows(split)

    def some(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """At most `limit` of these rows, which stand for all."""
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
        """Rows of the split that is judged last, spread evenly over it."""
        return spread(self.numbers(self.final_split), count)


@dataclass(frozen=True)
class Selected:
    """Some rows of a table, in this order."""

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
    """Samples that the learning model itself makes, with the weights of the moment (reinforcement learning). Batch k of
    training is a function of all updates before it; checkpoints hold what it hangs on beside the weights.
    """

    @property
    def period(self) -> int:
        """How many batches are made of what the model did at a time: only a whole period costs what others do."""
        raise NotImplementedError

    def explore(self, model: nn.Module) -> None:
        """Begin anew: `batches("train")` are of this model from now on."""
        raise NotImplementedError

    def explored(self) -> dict[str, Tensor]:
        """What batches hang on beside the weights, for a checkpoint."""
        raise NotImplementedError

    def go_on(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `explored` gave. Raises UserError where that is another task's."""
        raise NotImplementedError
