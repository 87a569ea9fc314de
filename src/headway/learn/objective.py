"""Training objectives: batch losses and evaluation scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.learn.examples import Batch, Examples, Samples
from headway.nn.mixers import State
from headway.nn.models import Loss, ModelConfig, evaluation_mode

if TYPE_CHECKING:
    from headway.learn.report import Picture

E = TypeVar("E", bound=Examples)


class Baseline(NamedTuple):
    """The validation score of a quick classical method: what it is called, the metric, the score, and the highest score
    that is possible, if a metric without fixed bounds has one.
    """

    method: str
    metric: str
    score: float
    highest: float | None = None


class FinishedHead(NamedTuple):
    """What became of a head after training: the number of samples that it was refitted to, and a line for people about
    what was added to it (None: nothing).
    """

    refitted: int = 0
    added: str | None = None


class Objective(Generic[E]):
    """A training objective on examples E, independent of what a sample consists of.

    `goal` names the score that selects the best model, `goal_better` is its better direction, and `unit` is the unit
    that the loss is averaged over, for people.
    """

    goal: str = "loss"
    goal_better: Literal["min", "max"] = "min"
    unit: str = "token"
    small_data_lr: bool = False  # whether fine-tuning on fewer samples uses a smaller learning rate
    evaluates_start: bool = False  # whether the initial model is evaluated before the first step
    shares_evaluation: bool = False  # whether several processes may call `evaluate` together (evaluate_batches)

    @property
    def measure(self) -> str:
        """The loss unit, for people."""
        return f"nats per {self.unit}"

    def adapt(self, model: ModelConfig, examples: E) -> ModelConfig:
        """`model`, whose inputs already fit the examples, with the outputs that depend on the data: heads and
        classes.
        """
        return model

    def counts(self, batch: Batch) -> dict[str, int]:
        """The counts that `loss` will return, by name; empty if all losses share one count. If counts differ, each loss
        is divided by its own count over the whole step, so the counts must be known before the first backward pass.
        """
        return {}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Sums and counts by name. The trainer divides each sum by its count over the whole step and adds them."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, examples: E, split: str, limit: int | None = None) -> dict[str, Any]:
        """Scores on at most `limit` samples from a split, including `goal`."""
        raise NotImplementedError

    def count(self, examples: E, split: str) -> int:
        """The number of samples that `evaluate` uses for a complete split, in the same unit as its `limit`; for agents,
        episodes.
        """
        return examples.count(split)

    def evaluate_strided(
        self, model: nn.Module, examples: E, split: str, stride: int, limit: int | None = None
    ) -> dict[str, Any]:
        """`evaluate` in text windows that advance by `stride`. Raises UserError for objectives without windows."""
        raise UserError("only language models can be evaluated in windows; remove the stride")

    def fit_head(self, model: nn.Module, examples: E, fresh: Collection[str], limit: int) -> bool:
        """Fit a pretrained model's newly initialised head (its parameters are in `fresh`) to at most `limit` training
        samples before the first step. Returns False if there is nothing to fit.
        """
        return False

    def finish_head(self, model: nn.Module, examples: E, fresh: Collection[str], limit: int) -> FinishedHead:
        """After training, refit such a head to the training and validation samples together, if there are at most
        `limit` of them and there are test samples for the final score. Fit what the head adds to its outputs.
        """
        return FinishedHead()

    def calibrate(self, model: nn.Module, examples: E, directory: Path) -> list[str]:
        """Choose the finished model's decision settings (thresholds, mixtures) on the validation split, and write them
        into its directory or leave that to `save`. Returns lines for people.
        """
        return []

    def depth(self, model: nn.Module, examples: E, limit: int) -> int | None:
        """How many layers are worth training in a pretrained model, measured on at most `limit` samples; None if the
        objective cannot decide.
        """
        return None

    def baseline(self, examples: E, limit: int) -> Baseline | None:
        """The score of a quick classical method on the validation split, learned from at most `limit` training samples;
        None if the objective has none.
        """
        return None

    def failure_reason(self, scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
        """Why a model with these scores is unusable whatever its goal, given the `best` scores so far. A reason ends
        training.
        """
        return None

    def stop_reason(self, scores: Mapping[str, Any]) -> str | None:
        """Why a model with these scores needs no more training."""
        return None

    def samples(self, model: nn.Module, examples: E, count: int) -> list[dict[str, str]]:
        """Held-out samples to show to people, by column: prompt and output, or source, output and reference."""
        return []

    def remark(self, model: nn.Module, examples: E) -> str:
        """One sentence that a user should know about the finished model besides its scores; "" if there is none."""
        return ""

    def pictures(self, model: nn.Module, examples: E) -> list[Picture]:
        """Pictures for a run's report."""
        return []

    def evaluation_growth(self, scores: Mapping[str, Any]) -> float:
        """The factor by which evaluations will take longer than the one with `scores` once the model has learned. For
        example, agents that play better play longer episodes.
        """
        return 1.0

    def report_cost(self) -> float:
        """The time for the report's samples and pictures, as a multiple of the time for an evaluation."""
        return 0.0

    def save(self, directory: Path) -> None:
        """Write what inference needs to know about the targets, such as labels."""

    def close(self) -> None:
        """Release resources: simulators for evaluation."""


class StatefulObjective(Objective[E]):
    """An objective over streams (truncated back-propagation through time). Training batch k continues where batch k -
    train.accumulate ended. The learner keeps the states between batches, and checkpoints contain them.
    """

    def initial_state(self, model: nn.Module, rows: int) -> State:
        """The initial states for `rows` rows."""
        raise NotImplementedError

    def stateful_loss(self, model: nn.Module, batch: Batch, states: State | None) -> tuple[dict[str, Loss], State]:
        """`loss` for a batch that continues from `states`, and the states after it. A batch that starts an epoch
        ignores `states`.
        """
        raise NotImplementedError


def evaluate_batches(
    model: nn.Module, samples: Samples, compute: Callable[[np.ndarray, Batch], Sequence[Any]]
) -> Iterator[tuple[Any, ...]]:
    """`compute(indices, batch)`, a few numbers and tensors, for the batches of `evaluation_batches`, which the
    processes of a run share.
    """
    from headway.learn.parallel.evaluation import share_batches  # loading a model for inference does not need it

    device = device_of(model)
    with evaluation_mode(model), torch.no_grad():
        yield from share_batches(
            list(samples.evaluation_order().single_pass()),
            lambda indices: compute(indices, samples.take(indices).to(device)),
        )


def evaluation_batches(model: nn.Module, samples: Samples) -> Iterator[tuple[np.ndarray, Batch]]:
    """Iterate once over the samples and their indices, in batches on the model's device, without dropout or
    gradients.
    """
    with evaluation_mode(model), torch.no_grad():
        for indices in samples.evaluation_order().single_pass():
            yield indices, samples.take(indices).to(device_of(model))
