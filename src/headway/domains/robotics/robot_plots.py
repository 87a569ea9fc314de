"""Success rates, episodes as film strips, and predicted next to demonstrated chunks, for run reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from headway.domains.robotics.chunk_windows import DemonstrationExamples
from headway.domains.robotics.policy import PolicyRunner
from headway.domains.robotics.robot_codec import RobotCodec
from headway.domains.robotics.rollout import open_envs, play
from headway.environments import REPORT_SEEDS
from headway.learn.report import Picture, Stroke, bar_chart, line_chart
from headway.learn.report.film_strips import FilmedEpisode, FrameSampler, episode_pictures
from headway.nn.models import RobotPolicy

_PLOTTED_VALUES = 3  # plotted values per action


def success(results: Mapping[str, Mapping[str, Any]]) -> list[Picture]:
    """Plot each task's success rate with its interval."""
    reported = {name: result for name, result in results.items() if "success_rate" in result}
    if not reported:
        return []
    rates = {name: 100 * result["success_rate"] for name, result in reported.items()}
    spread = {name: tuple(100 * edge for edge in result["success_rate_interval"]) for name, result in reported.items()}
    episodes = next(iter(reported.values()))["samples"]
    chart = bar_chart(rates, "success rate (%)", spread, share=True)  # type: ignore[arg-type]
    return [Picture("Success", f"{episodes} episodes per task, with 95 % intervals", chart)]


@episode_pictures
def film_strips(model: RobotPolicy, codec: RobotCodec, tasks: Sequence[str]) -> Iterator[FilmedEpisode]:
    """Yield an episode of each task."""
    environments = dict(zip(codec.names, codec.environments))
    for task in tasks:
        reel = FrameSampler()
        with open_envs(codec, environments[task], 1, render=True) as envs:
            played = play(model, codec, envs, task, [REPORT_SEEDS], reel)
        if played.succeeded is None:
            caption = f"{played.lengths[0]} steps, return {float(played.returns[0]):.5g}"
        else:
            caption = f"succeeds after {played.succeeded[0]} steps" if played.succeeded[0] else "does not succeed"
        yield FilmedEpisode(f"An episode: {task}", caption, reel)


def chunk_comparison(model: RobotPolicy, examples: DemonstrationExamples, episode: int) -> list[Picture]:
    """Plot the prediction at a step a third into a demonstration, next to the demonstrated actions."""
    data, codec = examples.data, examples.codec
    step = int(data.starts[episode] + data.lengths[episode] // 3)
    predicted = PolicyRunner(model, codec, [REPORT_SEEDS]).chunk(examples.observations(np.array([step])))[0]
    chunks = examples.chunks(np.array([step]))
    actions, mask = (tensor[0, examples.model.history - 1 :] for tensor in chunks)
    done = codec.decode_actions(actions[mask].numpy())
    moving = np.argsort(-np.ptp(done, 0), kind="stable")[:_PLOTTED_VALUES]
    series, strokes = {}, {}
    for colour, number in enumerate(sorted(moving.tolist())):
        for label, values in (("demonstrated", done), ("predicted", predicted[: int(torch.count_nonzero(mask))])):
            name = f"{number} {label}"
            series[name] = [(float(index), float(value)) for index, value in enumerate(values[:, number])]
            strokes[name] = Stroke(colour, dashed=label == "predicted")
    where = f"{data.task_names[data.tasks[episode]]}, step {step - data.starts[episode]} in a demonstration"
    chart = line_chart(series, "step of the chunk", "action values", strokes=strokes)
    return [Picture("A chunk of actions", where, chart)] if chart else []
