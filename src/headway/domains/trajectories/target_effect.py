"""How a model's behaviour depends on the target return: in plots, film strips and sentences, for run reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from headway.domains.trajectories.step_windows import Trajectories
from headway.domains.trajectories.trajectory_player import TrajectoryCodec, play
from headway.environments.rollouts import REPORT_SEEDS
from headway.environments.vector_env import VectorEnv
from headway.generate.prompts import device_of, evaluation_mode
from headway.learn.report import Picture, line_chart
from headway.learn.report.film_strips import FilmedEpisode, FrameSampler, episode_pictures
from headway.metrics import bootstrap_mean
from headway.nn.models import TrajectoryInputs, Transformer

_POINTS = 50  # maximum points of a curve
_IGNORES, _FOLLOWS = 0.1, 0.5  # increase in achieved return per increase in target return
_SAME = 0.01  # share of different actions, or their difference in standard deviations, that counts as none
_WINDOWS = 64


class Point(NamedTuple):
    """Returns [E] of the episodes played with a target return."""

    target: float
    returns: np.ndarray

    def display(self) -> dict[str, str]:
        low, high = bootstrap_mean(self.returns)
        mean = float(self.returns.mean())
        return {"asked for": f"{self.target:.5g}", "return": f"{mean:.5g} (95 % from {low:.5g} to {high:.5g})"}


def target_curve(points: Sequence[Point]) -> list[Picture]:
    """Plot the mean return against the target return, with the line where both are equal."""
    if len(points) < 2:
        return []
    reached = [(point.target, float(point.returns.mean())) for point in points]
    chart = line_chart(
        {"achieved": reached, "target": [(point.target, point.target) for point in points]},
        "target return",
        "return",
        dots=True,
    )
    return [Picture("Returns", f"averages over {len(points[0].returns)} episodes per target return", chart)]


def online_curve(played: Sequence[tuple[float, float, float]]) -> list[Picture]:
    """Plot the mean return of a model's own episodes against their number, with their target returns. `played` has each
    episode's target return, return and steps.
    """
    if len(played) < 2:
        return []
    groups = np.array_split(np.array(played), min(_POINTS, len(played)))
    counts = np.cumsum([len(group) for group in groups]).tolist()
    lines = {
        name: [(float(number), float(group[:, column].mean())) for number, group in zip(counts, groups)]
        for column, name in ((1, "achieved"), (0, "target"))
    }
    caption = f"averages over {len(played):,} episodes played in training, with sampled or noisy actions"
    return [Picture("Training returns", caption, line_chart(lines, "episodes played", "return"))]


@episode_pictures
def film_strips(
    model: Transformer, codec: TrajectoryCodec, environment: str, targets: Sequence[float]
) -> Iterator[FilmedEpisode]:
    """Yield an episode per target return."""
    with VectorEnv(environment, 1, render=True) as envs:
        for target in targets:
            reel = FrameSampler()
            played = play(model, codec, envs, target, [REPORT_SEEDS], reel)
            caption = f"achieved {float(played.returns[0]):.5g} in {played.lengths[0]} steps"
            yield FilmedEpisode(f"An episode with target return {target:.5g}", caption, reel)


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
