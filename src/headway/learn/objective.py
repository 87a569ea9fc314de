"""What is learned: the loss of a batch, and the scores by which a model is judged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.learn.examples import Batch, Examples, Samples
from headway.nn.mixers import State
from headway.nn.models import Loss, ModelConfig

if TYPE_CHECKING:
    from headway.learn.report import Picture

E = TypeVar("E", bound=Examples)


class Objective(Generic[E]):
    """What is learned of the examples E. It never asks what a sample is made of.

    `goal` names the score that picks the best model, `goal_better` which way is better, `unit` what the loss is counted
    by, for people.
    """

    goal: str = "loss"
    goal_better: Literal["min", "max"] = "min"
    unit: str = "token"
    gentle: bool = False  # whether fine-tuning on fewer samples takes a smaller learning rate
    judges_start: bool = False  # whether the model that training starts from is evaluated before the first step

    @property
    def measure(self) -> str:
        """What the loss is, for people."""
        return f"nats {'an' if self.unit[0] in 'aeiou' else 'a'} {self.unit}"

    def adapt(self, model: ModelConfig, examples: E) -> ModelConfig:
        """`model`, whose inputs fit the examples, with what only the data decide of its outputs: heads and classes."""
        return model

    def counts(self, batch: Batch) -> dict[str, int]:
        """The counts that `loss` will give, by name; empty where one count serves all losses. Losses of different
        counts are each divided by theirs over the whole step, which has to be known before the first backward pass.
        """
        return {}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Sums and counts by name. The trainer divides each by its count over the whole step and adds them up."""
        raise NotImplementedError

    def judge(self, model: nn.Module, examples: E, split: str, limit: int | None = None) -> dict[str, Any]:
        """Scores on at most `limit` samples of a split; `goal` is one of them."""
        raise NotImplementedError

    def count(self, examples: E, split: str) -> int:
        """What `judge` judges on all of a split, in the samples of its `limit`: episodes, where it plays."""
        return examples.count(split)

    def strided(
        self, model: nn.Module, examples: E, split: str, stride: int, limit: int | None = None
    ) -> dict[str, Any]:
        """`judge` in windows of texts that advance by `stride`. UserError where no texts go on."""
        raise UserError("this is not a language model, so it has no windows; leave the stride out")

    def fit_head(self, model: nn.Module, examples: E, fresh: Collection[str], limit: int) -> bool:
        """Fit a head whose parameters are among the `fresh` ones of a model that has learned before to at most `limit`
        training samples, before the first step; False if there is nothing to fit.
        """
        return False

    def refit_head(self, model: nn.Module, examples: E, fresh: Collection[str], limit: int) -> int:
        """Once training has ended, fit such a head to the training and validation samples together, if they are few, at
        most `limit`, and test samples are left for the final score; how many samples it was fitted to.
        """
        return 0

    def calibrate(self, model: nn.Module, examples: E, directory: Path) -> list[str]:
        """Choose on validation how a finished model is used (thresholds, mixtures), and write it into its directory or
        leave that to `save`; lines for people.
        """
        return []

    def depth(self, model: nn.Module, examples: E, limit: int) -> int | None:
        """How many layers of a model that has learned before are worth training, by what their outputs tell of at most
        `limit` samples; None if the objective cannot say.
        """
        return None

    def fault(self, scores: Mapping[str, Any], best: Mapping[str, Any] | None) -> str | None:
        """Why a model with these scores is unusable, whatever its goal, where the `best` one so far is not; it ends the
        training.
        """
        return None

    def finished(self, scores: Mapping[str, Any]) -> str | None:
        """Why a model with these scores needs no more training."""
        return None

    def samples(self, model: nn.Module, examples: E, count: int) -> list[dict[str, str]]:
        """Held-out samples for people: columns by name, such as prompt and output, or source, output and reference."""
        return []

    def remark(self, model: nn.Module, examples: E) -> str:
        """What a user should know of the finished model beside its scores, in a sentence; "" for nothing."""
        return ""

    def pictures(self, model: nn.Module, examples: E) -> list[Picture]:
        """For the page of a run."""
        return []

    def lengthening(self, scores: Mapping[str, Any]) -> float:
        """How many times as long as the evaluation that gave `scores` one will take once the model has learnt: where
        it is judged by playing, longer the longer it stays in the game.
        """
        return 1.0

    def showing(self) -> float:
        """How many times as long as an evaluation it takes to make what is shown of the finished model."""
        return 0.0

    def save(self, directory: Path) -> None:
        """Write what using the model needs of what it was to say: labels."""

    def close(self) -> None:
        """Give back what is held: simulators in which it is judged."""


class Carrying(Objective[E]):
    """An objective over streams (truncated back-propagation through time): batch k of training goes on where batch
    k - train.accumulate ended. The learner keeps the states between them, and checkpoints hold them.
    """

    def begin(self, model: nn.Module, rows: int) -> State:
        """The states of so many rows before anything was read."""
        raise NotImplementedError

    def carry(self, model: nn.Module, batch: Batch, states: State | None) -> tuple[dict[str, Loss], State]:
        """`loss` of a batch that goes on from `states`, and the states in which it ends. A batch that begins an epoch
        pays no heed to them.
        """
        raise NotImplementedError


def judged(model: nn.Module, samples: Samples) -> Iterator[tuple[np.ndarray, Batch]]:
    """The samples once, in batches on the model's device, each with its numbers; without dropout and gradients."""
    with evaluating(model), torch.no_grad():
        for numbers in samples.judging().once():
            yield numbers, samples.take(numbers).to(device_of(model))
