"""Achieved against target returns, and episodes as film strips, for run reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from headway.domains.trajectories.acting import play
from headway.domains.trajectories.trajectory_codec import TrajectoryCodec
from headway.environments import MAX_PARALLEL, REPORT_SEEDS, VectorEnv
from headway.learn.report import Picture, line_chart
from headway.learn.report.film_strips import FilmedEpisode, FrameSampler, episode_pictures
from headway.metrics import bootstrap_mean
from headway.nn.models import Transformer

_EPISODES = 4  # episodes per target return
_POINTS = 50  # maximum points of a curve


class Point(NamedTuple):
    """Returns [E] of the episodes played with a target return."""

    target: float
    returns: np.ndarray

    def display(self) -> dict[str, str]:
        low, high = bootstrap_mean(self.returns)
        mean = float(self.returns.mean())
        return {"asked for": f"{self.target:.5g}", "return": f"{mean:.5g} (95 % from {low:.5g} to {high:.5g})"}


def play_targets(model: Transformer, codec: TrajectoryCodec, envs: VectorEnv, targets: Sequence[float]) -> list[Point]:
    """Play a few episodes per target, with the same starts for all."""
    seeds = range(REPORT_SEEDS, REPORT_SEEDS + min(_EPISODES, MAX_PARALLEL, len(envs)))
    return [Point(target, play(model, codec, envs, target, seeds).returns) for target in targets]


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
