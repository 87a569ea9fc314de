"""Analyse how a model's behaviour depends on the target return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from headway.domains.trajectories.step_windows import Trajectories
from headway.domains.trajectories.trajectory_codec import TrajectoryCodec
from headway.domains.trajectories.trajectory_plots import Point
from headway.generate.prompts import device_of, evaluation_mode
from headway.nn.models import TrajectoryInputs

_IGNORES, _FOLLOWS = 0.1, 0.5  # increase in achieved return per increase in target return
_SAME = 0.01  # share of different actions, or their difference in standard deviations, that counts as none
_WINDOWS = 64


def return_effect(points: Sequence[Point]) -> str:
    """Describe how the achieved return depends on the target return; "" for fewer than two different targets."""
    targets = np.array([point.target for point in points])
    if len(points) < 2 or np.ptp(targets) == 0:
        return ""
    means = np.array([point.returns.mean() for point in points])
    share = float(np.polyfit(targets, means, 1)[0])
    targets_text = f"For target returns from {targets.min():.5g} to {targets.max():.5g}"
    reached_text = f"{means.min():.5g}" if np.ptp(means) == 0 else f"from {means.min():.5g} to {means.max():.5g}"
    sentence = f"{targets_text}, the model achieved {reached_text} on average"
    if share < _IGNORES:
        return f"{sentence}: the achieved return does not depend on the target."
    if share < _FOLLOWS:
        return f"{sentence}: it partly follows the target."
    return f"{sentence}: it follows the target."


@torch.no_grad()
def action_effect(
    model: nn.Module, examples: Trajectories, codec: TrajectoryCodec, split: str, targets: tuple[float, float]
) -> str:
    """Describe at how many steps in a split the action depends on the target return; "" without held-out episodes."""
    low, high = targets
    if not examples.splits.has_samples(split) or low == high:
        return ""
    windows = examples.of(split)
    indices = np.arange(min(_WINDOWS, len(windows)))
    batch = windows.take(indices).to(device_of(model))
    (inputs, layout), (actions, _) = batch.inputs, batch.targets
    episode_returns = examples.episodes.returns[windows.episodes[windows.evaluation_windows[2][indices]]]
    outputs = []
    with evaluation_mode(model):
        for target in targets:
            offset = torch.from_numpy(codec.returns(target - episode_returns)).to(inputs.returns.device)[:, None]
            encoded = model(TrajectoryInputs(inputs.returns + offset, *inputs[1:]), layout)
            head = model.get_submodule("heads.actions")
            outputs.append(head(encoded.x, encoded.layout)[layout.mask])
    question = f"With target returns of {low:.5g} and {high:.5g}, the model"
    if codec.choices is not None:
        share = float((outputs[0].argmax(-1) != outputs[1].argmax(-1)).float().mean())
        sentence = f"{question} takes different actions in {100 * share:.1f} % of held-out steps"
    else:
        spread = cast(torch.Tensor, actions)[layout.mask].std(0).mean()
        share = float((outputs[0] - outputs[1]).abs().mean() / spread)
        sentence = f"{question} takes actions that differ by {share:.2g} of their standard deviation on held-out steps"
    return f"{sentence}: the target makes no difference." if share < _SAME else f"{sentence}."
