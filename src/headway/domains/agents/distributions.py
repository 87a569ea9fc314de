"""Action distributions: categorical, or independent normal."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a normal distribution of standard deviation 1


class Categorical(NamedTuple):
    """One of C choices."""

    logits: Float[Tensor, "B C"]

    def log_probability(self, actions: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return self.logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]

    def entropy(self) -> Float[Tensor, "B"]:
        """In nats."""
        log = self.logits.log_softmax(-1)
        return -(log.exp() * log).sum(-1)


class Normal(NamedTuple):
    """A independent normal numbers."""

    mean: Float[Tensor, "B A"]
    log_std: Float[Tensor, "B A"]

    def log_probability(self, actions: Float[Tensor, "B A"]) -> Float[Tensor, "B"]:
        standardized = (actions - self.mean) * (-self.log_std).exp()
        return (-0.5 * standardized.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "B"]:
        """In nats."""
        return (self.log_std + _ENTROPY).sum(-1)


def distribution(output: Tensor, discrete: bool) -> Categorical | Normal:
    """Return the distribution of a policy head's output: logits, or means and log standard deviations."""
    return Categorical(output) if discrete else Normal(*output.chunk(2, -1))


def sample_actions(output: Float[np.ndarray, "B E"], discrete: bool, noise: np.ndarray) -> np.ndarray:
    """Sample actions from the policy's output: choices [B] with uniform `noise` [B] between 0 and 1, or vectors [B, A]
    with standard normal `noise` [B, A].
    """
    if not discrete:
        mean, log_std = np.split(output, 2, -1)
        return mean + np.exp(log_std) * noise
    odds = np.exp(output - output.max(-1, keepdims=True)).cumsum(-1)
    return (odds < noise[:, None] * odds[:, -1:]).sum(-1)


def most_probable(output: Float[np.ndarray, "B E"], discrete: bool) -> np.ndarray:
    """Return the most probable choices, or the means."""
    return output.argmax(-1) if discrete else np.split(output, 2, -1)[0]


def sample_noise(generator: np.random.Generator, shape: tuple[int, ...], discrete: bool, actions: int) -> np.ndarray:
    """Sample the float32 noise that `sample_actions` needs."""
    if discrete:
        return generator.random(shape, np.float32)
    return generator.standard_normal((*shape, actions), np.float32)
