"""Success rates, episodes as film strips, and predicted next to demonstrated chunks, for the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headway.domains.robotics.codec import RobotCodec
from headway.domains.robotics.policy import Acting
from headway.domains.robotics.rollout import open_copies, play
from headway.domains.robotics.windows import Demonstrated
from headway.environments import PICTURED
from headway.learn.report import Picture, Stroke, bar_chart, line_chart
from headway.learn.report.films import FilmedEpisode, Reel, filmed
from headway.nn.models import RobotPolicy

_NUMBERS = 3  # plotted values of an action


def success(results: Mapping[str, Mapping[str, Any]]) -> list[Picture]:
    """Plot the success rate of each task with its interval."""
    told = {name: result for name, result in results.items() if "success_rate" in result}
    if not told:
        return []
    rates = {name: 100 * result["success_rate"] for name, result in told.items()}
    spread = {name: tuple(100 * edge for edge in result["success_rate_interval"]) for name, result in told.items()}
    episodes = next(iter(told.values()))["samples"]
    chart = bar_chart(rates, "success rate (%)", spread, share=True)  # type: ignore[arg-type]
    return [Picture("Success", f"{episodes} episodes per task, with 95 % intervals", chart)]


@filmed
def film_strips(model: RobotPolicy, codec: RobotCodec, tasks: Sequence[str]) -> Iterator[FilmedEpisode]:
    """Yield an episode of each task."""
    places = dict(zip(codec.names, codec.environments))
    for task in tasks:
        reel = Reel()
        with open_copies(codec, places[task], 1, drawn=True) as copies:
            played = play(model, codec, copies, task, [PICTURED], reel)
        if played.succeeded is None:
            caption = f"{played.lengths[0]} steps, a return of {float(played.returns[0]):.5g}"
        else:
            caption = f"succeeds after {played.succeeded[0]} steps" if played.succeeded[0] else "does not succeed"
        yield FilmedEpisode(f"An episode: {task}", caption, reel)


def chunk_beside(model: RobotPolicy, examples: Demonstrated, episode: int) -> list[Picture]:
    """Plot the prediction at one step of a demonstration, a third into it, next to the demonstrated actions."""
    data, codec = examples.data, examples.codec
    step = int(data.starts[episode] + data.lengths[episode] // 3)
    said = Acting(model, codec, [PICTURED]).chunk(examples.seen(np.array([step])))[0]
    chunks = examples.chunks(np.array([step]))
    actions, keep = (each[0, examples.model.history - 1 :] for each in chunks)
    done = codec.said_actions(actions[keep].numpy())
    moving = np.argsort(-np.ptp(done, 0), kind="stable")[:_NUMBERS]
    series, strokes = {}, {}
    for colour, number in enumerate(sorted(moving.tolist())):
        for what, values in (("demonstrated", done), ("predicted", said[: int(torch.count_nonzero(keep))])):
            name = f"{number} {what}"
            series[name] = [(float(place), float(value)) for place, value in enumerate(values[:, number])]
            strokes[name] = Stroke(colour, dashed=what == "predicted")
    where = f"{data.names[data.tasks[episode]]}, step {step - data.starts[episode]} of a demonstration"
    chart = line_chart(series, "step of the chunk", "values of the action", strokes=strokes)
    return [Picture("A chunk of actions", where, chart)] if chart else []
