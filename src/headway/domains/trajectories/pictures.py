"""What is reached against what is asked for, and episodes as strips of film, for the page of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from headway.domains.trajectories.acting import play
from headway.domains.trajectories.codec import TrajectoryCodec
from headway.environments import AT_ONCE, PICTURED, Copies
from headway.learn.report import Picture, line_chart
from headway.learn.report.films import FilmedEpisode, Reel, filmed
from headway.metrics import bootstrap_mean
from headway.nn.models import Transformer

_EPISODES = 4  # for each return that is asked for
_POINTS = 50  # of a curve at most


class Point(NamedTuple):
    """Returns [E] of episodes that were asked for one return."""

    target: float
    returns: np.ndarray

    def shown(self) -> dict[str, str]:
        low, high = bootstrap_mean(self.returns)
        mean = float(self.returns.mean())
        return {"asked for": f"{self.target:.5g}", "return": f"{mean:.5g} (95 % from {low:.5g} to {high:.5g})"}


def asked(model: Transformer, codec: TrajectoryCodec, copies: Copies, targets: Sequence[float]) -> list[Point]:
    """A few episodes for each target, the same starts for all."""
    seeds = range(PICTURED, PICTURED + min(_EPISODES, AT_ONCE, len(copies)))
    return [Point(target, play(model, codec, copies, target, seeds).returns) for target in targets]


def curve(points: Sequence[Point]) -> list[Picture]:
    """The mean return over the one that was asked for, beside the line where both are equal."""
    if len(points) < 2:
        return []
    reached = [(point.target, float(point.returns.mean())) for point in points]
    chart = line_chart(
        {"reached": reached, "asked for": [(point.target, point.target) for point in points]},
        "return asked for",
        "return",
        dots=True,
    )
    return [Picture("Returns", f"means of {len(points[0].returns)} episodes for each return asked for", chart)]


def own_episodes(played: Sequence[tuple[float, float, float]]) -> list[Picture]:
    """The mean return of a model's own episodes over their number, beside what was asked for: `played` holds of each
    what was asked for, its return and its steps.
    """
    if len(played) < 2:
        return []
    some = np.array_split(np.array(played), min(_POINTS, len(played)))
    numbers = np.cumsum([len(each) for each in some]).tolist()
    lines = {
        name: [(float(number), float(each[:, column].mean())) for number, each in zip(numbers, some)]
        for column, name in ((1, "reached"), (0, "asked for"))
    }
    caption = f"means of {len(played):,} episodes that it played to learn from, with actions drawn or noise added"
    return [Picture("Returns while it learnt", caption, line_chart(lines, "episodes played", "return"))]


@filmed
def film_strips(
    model: Transformer, codec: TrajectoryCodec, environment: str, targets: Sequence[float]
) -> Iterator[FilmedEpisode]:
    """An episode for each target."""
    with Copies(environment, 1, drawn=True) as copies:
        for target in targets:
            reel = Reel()
            played = play(model, codec, copies, target, [PICTURED], reel)
            caption = f"reached {float(played.returns[0]):.5g} in {played.lengths[0]} steps"
            yield FilmedEpisode(f"An episode that is asked for {target:.5g}", caption, reel)
