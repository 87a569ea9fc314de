"""Training examples: indexed samples in splits, and the order in which they are batched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.data import SPLITS, PairBatches, Splits, shuffled_indices
from headway.formats.out_of_distribution import TrainingStatistics
from headway.layout import Layout, to_device
from headway.nn.mixers import tree_map
from headway.nn.models import ModelConfig


class Shard(NamedTuple):
    """The part of the data for one of `world` processes.

    With `period`, each group of `period` batches is shared by itself, so that the process may have more batches of it
    than the next one.
    """

    rank: int = 0
    world: int = 1
    period: int = 0

    def indices(self, start: int) -> Iterator[int]:
        """The indices of this process's training batches from `start` on, where a group starts."""
        if self.period % self.world == 0:
            return count(start + self.rank, self.world)
        groups = count(start, self.period)
        return chain.from_iterable(range(group + self.rank, group + self.period, self.world) for group in groups)


FULL_SHARD = Shard()
_MAX_GROUPS = 10  # held-out groups named in a sentence


def spread_evenly(rows: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` evenly spaced rows: the first rows often belong to one class or one file."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


class Batch(NamedTuple):
    """One micro-batch. `inputs` is the tuple of model arguments and `targets` holds the expected outputs. Both are
    trees (nested tuples) of tensors and layouts, with None for missing parts. `tokens` counts the loss targets,
    `computed` the tokens that the model computes, including padding. In stateful training, `starts_epoch` means that
    streams start again. `origin` is the batch on the CPU that this one was copied from.
    """

    inputs: Any
    targets: Any
    tokens: int
    computed: int
    starts_epoch: bool = True
    origin: Batch | None = None

    @property
    def host(self) -> Batch:
        """This batch on the CPU, for values that a program must know, so that it does not wait for a GPU."""
        return self if self.origin is None else self.origin

    def to(self, device: torch.device | str) -> Batch:
        tensors: list[Tensor] = []
        tree_map(lambda item: isinstance(item, Tensor) and tensors.append(item), (self.inputs, self.targets))
        if tensors[0].device == torch.device(device):
            return self  # keeps values that layouts have cached
        inputs, targets = to_device((self.inputs, self.targets), device)
        return self._replace(inputs=inputs, targets=targets, origin=self)


class RowLayouts:
    """The layouts of rows of packed documents. Batches of unbroken rows share one layout, and so everything that models
    derive from it.
    """

    def __init__(self) -> None:
        self._unbroken: dict[tuple[int, ...], Layout] = {}

    def of(self, positions: Int[np.ndarray, "B T"]) -> Layout:
        # The last column has the last position only if every row is one document from its start.
        if not (positions[:, -1] == positions.shape[1] - 1).all():
            return Layout(torch.from_numpy(positions))
        if positions.shape not in self._unbroken:
            self._unbroken[positions.shape] = Layout.full(*positions.shape)
        return self._unbroken[positions.shape]


class RngKey(NamedTuple):
    """A training batch's counter-based random key, used together with the seed: the batch index, and each sample's
    position in the endless sample stream, int64 [B].
    """

    batch_index: int
    positions: Int[np.ndarray, "B"]


class TrainingOrder(Protocol):
    """The training order for samples indexed from 0."""

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[RngKey, Int[np.ndarray, "B"]]]:
        """Endless batches, where batch k is a pure function of k. A shard reads batches `shard.indices(start)`."""
        ...


class FixedSizeBatches(NamedTuple):
    """Batches of `size` samples. Batch k covers positions k size, ..., (k + 1) size - 1 in a stream of epochs, which
    are shuffled if there is a seed. A single pass is in index order.
    """

    samples: int
    size: int
    seed: int | None = None

    @property
    def epoch(self) -> float:
        """The number of batches per epoch."""
        return self.samples / self.size

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[RngKey, Int[np.ndarray, "B"]]]:
        for batch_index in shard.indices(start):
            positions = np.arange(batch_index * self.size, (batch_index + 1) * self.size)
            indices = (
                positions % self.samples if self.seed is None else shuffled_indices(positions, self.samples, self.seed)
            )
            yield RngKey(batch_index, positions), indices

    def single_pass(self, shard: Shard = FULL_SHARD) -> Iterator[Int[np.ndarray, "B"]]:
        for first in range(shard.rank * self.size, self.samples, shard.world * self.size):
            yield np.arange(first, min(first + self.size, self.samples))


class LengthBatches(NamedTuple):
    """Planned batches of samples with nearly equal lengths. Batch k is the k-th in a sequence of shuffled epochs. A
    single pass goes from short to long.
    """

    plan: PairBatches
    samples: int

    @property
    def epoch(self) -> float:
        """The number of batches per epoch."""
        return len(self.plan)

    def endless(self, shard: Shard, start: int) -> Iterator[tuple[RngKey, Int[np.ndarray, "B"]]]:
        batches, current_epoch = [], -1
        for batch_index in shard.indices(start):
            epoch, batch_number = divmod(batch_index, len(self.plan))
            if epoch != current_epoch:
                batches, current_epoch = self.plan.epoch(epoch), epoch
            yield RngKey(batch_index, epoch * self.samples + batches[batch_number]), batches[batch_number]

    def single_pass(self, shard: Shard = FULL_SHARD) -> Iterator[Int[np.ndarray, "B"]]:
        yield from self.plan.in_order()[shard.rank :: shard.world]


Order = FixedSizeBatches | LengthBatches
Contents = Mapping[str, Sequence[np.ndarray | Sequence[str]]]


class Samples(Protocol):
    """The samples in one split, indexed from 0."""

    def __len__(self) -> int: ...

    def take(self, indices: Int[np.ndarray, "B"], rng_key: RngKey | None = None) -> Batch:
        """These samples as a batch: a pure function of indices, seed and key. Without a key there is no randomness, or
        it depends only on the indices.
        """
        ...

    def training_order(self) -> TrainingOrder: ...

    def evaluation_order(self) -> Order: ...

    def limited_to(self, limit: int | None) -> Samples:
        """A representative subset with at most `limit` samples."""
        ...


class Examples:
    """A domain's data: samples in splits, and the preprocessing that inference needs."""

    default_split: str = "all"  # the split to evaluate when a finished model gets other data

    def of(self, split: str) -> Samples:
        """The samples in a split, or in "all". Raises UserError for an unknown or empty split."""
        raise NotImplementedError

    @property
    def final_split(self) -> str:
        """The split for the final evaluation: test, or validation if there is no test split."""
        raise NotImplementedError

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the possible splits."""
        return (*SPLITS, "all")

    def limited(self, split: str, limit: int | None) -> Self:
        """The same examples, with the split reduced to the `limit` samples that an evaluation uses."""
        return self

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for the report about changed or skipped data."""
        return ()

    def adapt(self, model: ModelConfig) -> ModelConfig:
        """`model` with the input settings that depend on the data: vocabulary size, channels, sizes. Raises UserError
        if there are no training or validation samples.
        """
        raise NotImplementedError

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        """Micro-batches from a split: endless from batch `start` for training, a single pass for other splits."""
        samples = self.of(split)
        if split == "train":
            for rng_key, indices in samples.training_order().endless(shard, start):
                yield samples.take(indices, rng_key)
        else:
            for indices in samples.evaluation_order().single_pass(shard):
                yield samples.take(indices)

    def count(self, split: str) -> int:
        """The number of samples in a split."""
        return len(self.of(split))

    def batches_per_epoch(self) -> float | None:
        """The number of training batches per epoch; None if the examples define their own batches."""
        if type(self).batches is not Examples.batches:
            return None
        return getattr(self.of("train").training_order(), "epoch", None)

    def contents(self) -> Contents:
        """The parts of the data by name ("texts", "labels"), without the splits. A resumed run compares them to detect
        different data. A digest may replace the content it was computed from.
        """
        return {}

    def preview(self, count: int) -> list[str]:
        """At most `count` samples, each as one line of text."""
        return []

    def class_counts(self) -> Mapping[str, int]:
        """The number of samples in each class; empty if samples have no classes."""
        return {}

    @property
    def data_splits(self) -> Splits | None:
        """The splits of the data, if samples are indexed."""
        splits = getattr(self, "splits", None)
        return splits if isinstance(splits, Splits) else None

    def split_sizes(self) -> Mapping[str, int]:
        """The number of samples in each split, or of targets if samples are not indexed; empty if it is unknown."""
        splits = self.data_splits
        return {} if splits is None else {name: len(rows) for name, rows in splits.indices.items()}

    def save(self, directory: Path) -> None:
        """Write what inference needs besides the weights: by default the codec, if there is one."""
        codec = getattr(self, "codec", None)
        if codec is not None:
            codec.save(directory)

    def input_statistics(self) -> TrainingStatistics | None:
        """Statistics of the training inputs, if the examples know them."""
        return None

    def close(self) -> None:
        """Release resources: simulators and their renderers."""


def split_notes(splits: Splits) -> tuple[str, ...]:
    """Sentences for the report about held-out groups, and about samples that are excluded from training."""
    notes: tuple[str, ...] = ()
    if splits.groups:
        counts = {split: len(names) for split, names in splits.groups.items()}
        held_out = "; ".join(
            f"{split}: {', '.join(splits.groups[split][:_MAX_GROUPS])}"
            + (f" and {counts[split] - _MAX_GROUPS:,} more" if counts[split] > _MAX_GROUPS else "")
            for split in ("validation", "test")
            if counts[split]
        )
        notes = (f"Each group is in one split: {counts['train']:,} in training; {held_out or 'none held out'}.",)
    if splits.removed:
        noun = f"{splits.removed:,} of the {splits.noun} to train on"
        they = "they, or others of their group," if splits.groups else "they"
        notes += (f"{noun} were skipped because {they} also occur in validation or test files.",)
    return notes


class SplitExamples(Examples):
    """Examples with the indices of each split. Without a test split, the validation split is the final one."""

    splits: Splits

    @property
    def final_split(self) -> str:
        return self.splits.final


class EpisodeExamples(SplitExamples):
    """Windows over the steps of episodes in `splits`."""

    @property
    def remarks(self) -> tuple[str, ...]:
        return split_notes(self.splits)

    def count(self, split: str) -> int:
        """Number of episodes, each of which has many windows."""
        return len(self.splits.rows(split))


class IndexedExamples(SplitExamples):
    """Samples of one table, each in one split. A domain defines the model inputs for table rows (`take`)."""

    seed: int
    batch_size: int
    eval_batch_size: int = 64

    def take(self, rows: Int[np.ndarray, "B"], rng_key: RngKey | None = None) -> Batch:
        raise NotImplementedError

    def describe_row(self, row: int) -> str:
        """A row as one line of text."""
        raise NotImplementedError

    def preview(self, count: int) -> list[str]:
        return [self.describe_row(int(row)) for row in spread_evenly(self.splits.all_indices, count)]

    def training_order(self, rows: np.ndarray) -> TrainingOrder:
        return FixedSizeBatches(len(rows), self.batch_size, self.seed)

    def evaluation_order(self, rows: np.ndarray) -> Order:
        return FixedSizeBatches(len(rows), self.eval_batch_size)

    def rows_of(self, split: str) -> np.ndarray:
        """The rows in a split. Raises UserError for an unknown or empty split."""
        return self.splits.rows(split)

    def limited_rows(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """A representative subset with at most `limit` rows."""
        return spread_evenly(rows, limit)

    def of(self, split: str) -> RowSubset:
        return RowSubset(self, self.rows_of(split))

    def limited(self, split: str, limit: int | None) -> Self:
        selected, examples = self.limited_rows(self.rows_of(split), limit), copy(self)
        examples.splits = self.splits._replace(indices={**self.splits.indices, split: selected})
        return examples

    @property
    def remarks(self) -> tuple[str, ...]:
        return split_notes(self.splits)

    @property
    def split_names(self) -> tuple[str, ...]:
        return (*self.splits.indices, "all")

    def spread_rows(self, count: int) -> np.ndarray:
        """Evenly spaced rows from the final split."""
        return spread_evenly(self.rows_of(self.final_split), count)


@dataclass(frozen=True)
class RowSubset:
    """A selection of table rows, in this order."""

    examples: IndexedExamples
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Int[np.ndarray, "B"], rng_key: RngKey | None = None) -> Batch:
        return self.examples.take(self.rows[indices], rng_key)

    def training_order(self) -> TrainingOrder:
        return self.examples.training_order(self.rows)

    def evaluation_order(self) -> Order:
        return self.examples.evaluation_order(self.rows)

    def limited_to(self, limit: int | None) -> Self:
        return replace(self, rows=self.examples.limited_rows(self.rows, limit))


class OnPolicyExamples(Examples):
    """Samples that the model generates with its current weights (on-policy reinforcement learning). Training batch k
    depends on all previous updates; checkpoints contain the exploration state as well as the weights.
    """

    measuring = False  # whether the model is a random one, whose speed is measured

    @property
    def rollout_batches(self) -> int:
        """The number of batches per rollout; only complete rollouts have a typical cost."""
        raise NotImplementedError

    def start_exploring(self, model: nn.Module) -> None:
        """Start with this model, which generates `batches("train")` from now on."""
        raise NotImplementedError

    def exploration_state(self) -> dict[str, Tensor]:
        """The state, besides the weights, that batches depend on and a checkpoint must contain."""
        raise NotImplementedError

    def load_exploration_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `exploration_state`. Raises UserError if it belongs to another task."""

        raise NotImplementedError
