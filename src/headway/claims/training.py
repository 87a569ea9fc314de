"""The trainer of the experiments: fresh examples for each step, AdamW, and the rate's line to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from headway.kernels import IGNORED
from headway.layout import Layout
from headway.models import Transformer
from headway.train import AdamWConfig, ScheduleConfig, WSDConfig
from headway.train.optim import Optimizer


class Examples(NamedTuple):
    """Inputs with their layout, and what the answers should be: classes (whole numbers) or numbers.

    A head that answers several questions at once gives the scores of one after those of the other.
    """

    inputs: Any
    layout: Layout
    targets: Tensor


Draw = Callable[[Generator], Examples]


@dataclass(frozen=True)
class Training:
    """How long and how: the same for all variants of an experiment."""

    steps: int = 400
    lr: float = 4e-3
    schedule: ScheduleConfig = WSDConfig(warmup=0.05, decay=0.5)
    clip: float = 1.0


def generator(*parts: int) -> Generator:
    """A stream of random numbers of its own for each tuple of numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (1 << 62)
    return Generator().manual_seed(seed)


def train(model: Transformer, draw: Draw, training: Training, seed: int) -> list[float]:
    """Train in place on `draw`'s examples, the same for all variants of a seed; the loss of each step."""
    source = generator(seed, 1)
    return list(descend(model, lambda: loss_of(model, draw(source)), training))


def descend(model: nn.Module, loss: Callable[[], Tensor], training: Training) -> Iterator[float]:
    """Train in place, a step each time that the next loss is asked for; `loss` gives that of a batch."""
    optimizer = Optimizer(AdamWConfig(training.lr, betas=(0.9, 0.99), weight_decay=0.0), model)
    for step in range(training.steps):
        optimizer.flat.zero_grads()
        found = loss()
        found.backward()
        norm = float(torch.linalg.vector_norm(optimizer.flat.grads))
        optimizer.flat.grads.mul_(min(1.0, training.clip / (norm + 1e-12)))
        optimizer.step(training.schedule.factor(step, training.steps))
        yield float(found.detach())


def loss_of(model: Transformer, examples: Examples) -> Tensor:
    """Cross-entropy in nats for classes, the mean squared error for numbers."""
    answer = model.output("answer", examples.inputs, examples.layout)
    if examples.targets.is_floating_point():
        return F.mse_loss(answer[..., 0], examples.targets)
    scores = answer.reshape(examples.targets.numel(), -1)
    return F.cross_entropy(scores, examples.targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def accuracy(model: Transformer, draw: Draw, seed: int, batches: int = 4) -> float:
    """The share of right answers on examples that training did not see."""
    source, right, asked = generator(seed, 2), 0, 0
    for _ in range(batches):
        examples = draw(source)
        answer = model.output("answer", examples.inputs, examples.layout)
        said = answer.reshape(*examples.targets.shape, -1).argmax(-1)
        counted = examples.targets != IGNORED
        right += int(((said == examples.targets) & counted).sum())
        asked += int(counted.sum())
    return right / asked


@torch.no_grad()
def error(model: Transformer, draw: Draw, seed: int, batches: int = 4) -> float:
    """The mean squared error on examples that training did not see."""
    source = generator(seed, 2)
    return sum(float(loss_of(model, draw(source))) for _ in range(batches)) / batches
