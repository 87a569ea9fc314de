"""An agent's learning curves and film strips, for run reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from headway.domains.agents.acting import play
from headway.domains.agents.agent_codec import AgentCodec
from headway.environments import REPORT_SEEDS, VectorEnv
from headway.learn.report import Picture, line_chart
from headway.learn.report.film_strips import FilmedEpisode, FrameSampler, episode_pictures
from headway.nn.models import Transformer

_POINTS = 200  # maximum points of a curve


def learning_curve(curve: Sequence[tuple[float, float, float]]) -> list[Picture]:
    """Plot the mean return of finished episodes against the steps in all environments. Each line of `curve` has the
    steps, the mean return and the number of episodes.
    """
    lines = np.array(curve).reshape(-1, 3)
    points = []
    for group in np.array_split(lines, min(_POINTS, max(1, len(lines)))):
        weights = group[:, 2]
        if weights.sum():
            points.append((float(group[-1, 0]), float((np.nan_to_num(group[:, 1]) * weights).sum() / weights.sum())))
    if len(points) < 2:
        return []
    chart = line_chart({"training": points}, "environment steps", "return")
    caption = f"averages over {int(lines[:, 2].sum()):,} training episodes with sampled actions"
    return [Picture("Training returns", caption, chart)]


@episode_pictures
def film_strip(model: Transformer, codec: AgentCodec, environment: str) -> Iterator[FilmedEpisode]:
    """Yield an episode of the current policy."""
    reel = FrameSampler()
    with VectorEnv(environment, 1, render=True) as envs:
        played = play(model, codec, envs, [REPORT_SEEDS], reel)
    yield FilmedEpisode("An episode", f"return {float(played.returns[0]):.5g} in {played.lengths[0]} steps", reel)
