"""What is learned: to do more often what turned out better than expected, and to expect better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.domains.agents.distributions import Categorical, Normal
from headway.domains.agents.experience import Steps
from headway.domains.agents.windows import layout_of
from headway.layout import Layout

_EPS = 1e-8


@dataclass(frozen=True)
class ExperienceBatch:
    """B steps of those that one policy did, and the `targets` of their values. `tokens` counts them, `computed` the
    states that the model reads.
    """

    steps: Steps
    targets: Float[Tensor, "B"]
    layout: Layout
    tokens: int
    computed: int

    def to(self, device: torch.device | str) -> Self:
        if self.steps.values.device == torch.device(device):
            return self
        moved = Steps(*(each.to(device) for each in self.steps))
        return type(self)(moved, self.targets.to(device), self.layout.to(device), self.tokens, self.computed)


def batch_of(steps: Steps, rows: Int[Tensor, "B"], normalise: bool = True) -> ExperienceBatch:
    """Some of the steps; `normalise` brings their advantages to mean 0 and standard deviation 1."""
    chosen = Steps(*(each[rows] for each in steps))
    targets = chosen.advantages + chosen.values
    if normalise:
        centred = chosen.advantages - chosen.advantages.mean()
        chosen = chosen._replace(advantages=centred / (centred.square().mean().sqrt() + _EPS))
    context = chosen.windows.shape[1]
    layout = layout_of(chosen.lengths.numpy(), context)
    return ExperienceBatch(chosen, targets, layout, len(rows), len(rows) * context)


def surrogate(
    policy: Categorical | Normal,
    actions: Tensor,
    before: Float[Tensor, "B"],
    advantages: Float[Tensor, "B"],
    clip: float,
) -> Float[Tensor, "B"]:
    """Schulman et al. 2017, equation 7, with its sign turned: what is to be small. `before` are the logarithms of the
    probabilities with which the actions were done.
    """
    ratio = (policy.log_probability(actions) - before).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def value_error(
    values: Float[Tensor, "B"], before: Float[Tensor, "B"], targets: Float[Tensor, "B"], clip: float | None
) -> Float[Tensor, "B"]:
    """Half the squared error; with a `clip` the larger one of it and that of a value which went no farther than so from
    the one `before`.
    """
    error = (values - targets).square()
    if clip is not None:
        near = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (near - targets).square())
    return 0.5 * error
