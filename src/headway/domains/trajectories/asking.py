"""Analyse how a model's behaviour depends on the target return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from headway.domains.trajectories.codec import TrajectoryCodec
from headway.domains.trajectories.pictures import Point
from headway.domains.trajectories.windows import Trajectories
from headway.generate.prompts import device_of, evaluating
from headway.nn.models import TrajectoryInputs

_IGNORES, _FOLLOWS = 0.1, 0.5  # increase in achieved return per increase in target return
_SAME = 0.01  # share of different actions, or their difference in standard deviations, that counts as none
_WINDOWS = 64


def by_returns(points: Sequence[Point]) -> str:
    """Describe how the achieved return depends on the target return; "" for fewer than two different targets."""
    targets = np.array([point.target for point in points])
    if len(points) < 2 or np.ptp(targets) == 0:
        return ""
    means = np.array([point.returns.mean() for point in points])
    share = float(np.polyfit(targets, means, 1)[0])
    asked = f"For target returns from {targets.min():.5g} to {targets.max():.5g}"
    reached = f"{means.min():.5g}" if np.ptp(means) == 0 else f"from {means.min():.5g} to {means.max():.5g}"
    found = f"{asked}, the model achieved {reached} on average"
    if share < _IGNORES:
        return f"{found}: the achieved return does not depend on the target."
    if share < _FOLLOWS:
        return f"{found}: it follows the target in part."
    return f"{found}: it follows the target."


@torch.no_grad()
def by_actions(
    model: nn.Module, examples: Trajectories, codec: TrajectoryCodec, split: str, targets: tuple[float, float]
) -> str:
    """Describe in how many steps of a split the action depends on the target return; "" without held-out episodes."""
    low, high = targets
    if not examples.splits.holds(split) or low == high:
        return ""
    windows = examples.of(split)
    some = np.arange(min(_WINDOWS, len(windows)))
    batch = windows.take(some).to(device_of(model))
    (inputs, layout), (actions, _) = batch.inputs, batch.targets
    own = examples.episodes.returns[windows.episodes[windows.judged[2][some]]]
    said = []
    with evaluating(model):
        for target in targets:
            more = torch.from_numpy(codec.returns(target - own)).to(inputs.returns.device)[:, None]
            encoded = model(TrajectoryInputs(inputs.returns + more, *inputs[1:]), layout)
            head = model.get_submodule("heads.actions")
            said.append(head(encoded.x, encoded.layout)[layout.keep])
    question = f"For target returns of {low:.5g} and {high:.5g}, the model"
    if codec.choices is not None:
        share = float((said[0].argmax(-1) != said[1].argmax(-1)).float().mean())
        found = f"{question} takes different actions in {100 * share:.1f} % of held-out steps"
    else:
        spread = cast(torch.Tensor, actions)[layout.keep].std(0).mean()
        share = float((said[0] - said[1]).abs().mean() / spread)
        found = f"{question} takes actions that differ by {share:.2g} of their standard deviation on held-out steps"
    return f"{found}: the target makes no difference." if share < _SAME else f"{found}."
