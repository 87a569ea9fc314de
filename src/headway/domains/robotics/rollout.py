"""Rollouts of a policy in simulators, and success rates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from headway.domains.robotics.codec import RobotCodec
from headway.domains.robotics.policy import Acting
from headway.domains.robotics.windows import observed
from headway.environments import Copies
from headway.environments.playing import EpisodeWatch, side_by_side
from headway.errors import UserError
from headway.metrics import bootstrap_mean, wilson
from headway.nn.models import Observations, RobotPolicy

AT_ONCE = 25  # parallel episodes
_TIMES = 2  # step limit in lengths of the longest demonstration, if the environment has none


class PlayedEpisodes(NamedTuple):
    """E episodes: the step, from 1, at which each succeeded, 0 if it did not (None: the environment does not report
    success), their lengths, and the sums of their rewards.
    """

    succeeded: np.ndarray | None
    lengths: np.ndarray
    returns: np.ndarray


def open_copies(codec: RobotCodec, name: str, count: int, drawn: bool = False) -> Copies:
    """Open parallel environments with the cameras of a policy. UserError if they do not fit."""
    sizes = {camera.recorded for camera in codec.cameras}
    if len(sizes) > 1:
        raise UserError(
            f"the cameras of this policy have {len(sizes)} image sizes, but environments render one; evaluate it on "
            "held-out demonstrations (task.episodes=0)"
        )
    names = [camera.name for camera in codec.cameras]
    copies = Copies(name, count, drawn=drawn, cameras=names, **({"size": sizes.pop()} if sizes else {}))
    try:
        check_fits(codec, copies)
    except UserError:
        copies.__exit__()
        raise
    return copies


def open_each(codec: RobotCodec, names: Sequence[str], episodes: int, drawn: bool = False) -> list[Copies]:
    """Open several environments for this many episodes of each; `render` allows filming the first. An instance takes
    about 28 MB, so the more environments there are, the fewer instances each has. UserError if one does not fit the
    policy.
    """
    count = max(1, min(AT_ONCE, 2 * AT_ONCE // max(1, len(names)), episodes))
    with ExitStack() as stack:
        found = [stack.enter_context(open_copies(codec, name, count, drawn and not n)) for n, name in enumerate(names)]
        stack.pop_all()
    return found


def limit_of(codec: RobotCodec, copies: Copies) -> int:
    """Return the maximum steps of an episode, which is also the length of a failed one."""
    return copies.horizon or _TIMES * codec.longest


def check_fits(codec: RobotCodec, copies: Copies) -> None:
    """UserError for an environment whose states or actions differ from the policy's."""
    spaces = copies.spaces
    if spaces.numbers != len(codec.scale):
        raise UserError(
            f"the environment {copies.name!r} takes actions of {spaces.told}, this policy outputs {len(codec.scale)} "
            "numbers; choose an environment that fits (--env), or train on demonstrations of this one"
        )
    if spaces.image or spaces.shape[0] < codec.recorded or (spaces.shape[0] > codec.recorded and not codec.cameras):
        seen = " x ".join(map(str, spaces.shape))
        raise UserError(
            f"the environment {copies.name!r} has states of {seen} numbers, but this policy takes {codec.recorded}; "
            "choose an environment that fits (--env), or train on demonstrations of this one"
        )


def play(
    model: RobotPolicy,
    codec: RobotCodec,
    copies: Copies,
    task: str,
    seeds: Sequence[int],
    watch: EpisodeWatch | None = None,
) -> PlayedEpisodes:
    """Play an episode of a task from each seed, until it succeeds or ends; `watch` observes the first of them."""
    groups = side_by_side(len(seeds), len(copies), watch)
    parts = [_side_by_side(model, codec, copies, task, seeds, some, watch) for some in groups]
    order = np.argsort(np.concatenate(groups))
    succeeded, lengths, returns = zip(*parts)
    known = None
    if any(each is not None for each in succeeded):
        known = np.concatenate([np.zeros_like(own) if each is None else each for each, own in zip(succeeded, lengths)])
    known = None if known is None else known[order]
    return PlayedEpisodes(known, np.concatenate(lengths)[order], np.concatenate(returns)[order])


def _side_by_side(
    model: RobotPolicy,
    codec: RobotCodec,
    copies: Copies,
    task: str,
    seeds: Sequence[int],
    numbers: Sequence[int],
    watch: EpisodeWatch | None,
) -> PlayedEpisodes:
    """Play the episodes with these indices in parallel."""
    acting = Acting(model, codec, [seeds[number] for number in numbers])
    limit = limit_of(codec, copies)
    rows = np.arange(len(numbers))
    states = np.stack([copies.reset(row, seeds[number]) for row, number in enumerate(numbers)])
    succeeded, told = np.zeros(len(rows), np.int64), False
    lengths, returns = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    watch = watch if watch is not None and numbers[0] < watch.episodes else None
    while len(rows):
        if watch is not None and rows[0] == 0:
            watch.step(copies.frame, numbers[0], float(returns[0]))
        here, present = rows, states
        actions = acting.act(lambda: _looked(codec, copies, task, here, present))  # noqa: B023 (called at once)
        steps = [copies.step(row, action) for row, action in zip(rows.tolist(), actions)]
        returns[rows] += [step.reward for step in steps]
        lengths[rows] += 1
        told |= any(step.success is not None for step in steps)  # some report success only when an episode terminates
        done = np.array([bool(step.success) for step in steps])
        succeeded[rows[done]] = lengths[rows[done]]
        over = done | np.array([step.ended or step.cut for step in steps]) | (lengths[rows] >= limit)
        going = np.flatnonzero(~over)
        if watch is not None and rows[0] == 0 and 0 not in going:
            watch.end(copies.frame, numbers[0], float(returns[0]))
        if len(going) < len(rows):
            acting.select(going)
        rows, states = rows[going], np.array([steps[place].state for place in going])
    return PlayedEpisodes(succeeded if told else None, lengths, returns)


def _looked(codec: RobotCodec, copies: Copies, task: str, rows: np.ndarray, states: np.ndarray) -> Observations:
    """Return the current observations of some rows."""
    each = [copies.pictures(row) for row in rows.tolist()] if codec.cameras else []
    pictures = {camera.name: np.stack([one[camera.name] for one in each]) for camera in codec.cameras}
    return observed(codec, codec.states(states), pictures, [task] * len(rows))


def worth(played: PlayedEpisodes, horizon: int) -> dict[str, Any]:
    """Return the success rate with Wilson's interval, and the mean steps to success (`horizon` for failures); without
    success reports, the mean return.
    """
    count = len(played.lengths)
    if played.succeeded is None:
        return _returned([played])
    right = played.succeeded > 0
    return {
        "success_rate": float(right.mean()),
        "success_rate_interval": wilson(int(right.sum()), count),
        "steps_mean": float(np.where(right, played.succeeded, horizon).mean()),
        "samples": count,
    }


def _returned(played: Sequence[PlayedEpisodes]) -> dict[str, Any]:
    returns = np.concatenate([each.returns for each in played])
    return {
        "return_mean": float(returns.mean()),
        "return_mean_interval": bootstrap_mean(returns),
        "length_mean": float(np.concatenate([each.lengths for each in played]).mean()),
        "samples": len(returns),
    }


def together(results: Sequence[dict[str, Any]], played: Sequence[PlayedEpisodes]) -> dict[str, Any]:
    """Return the scores over several tasks, with equal weight per episode: success or, if not all tasks report it,
    returns. `results` are the scores of each.
    """
    if any(each.succeeded is None for each in played):
        return _returned(played)
    count = sum(result["samples"] for result in results)

    def mean(name: str) -> float:
        return sum(result[name] * result["samples"] for result in results) / count

    right = round(sum(result["success_rate"] * result["samples"] for result in results))
    return {
        "success_rate": right / count,
        "success_rate_interval": wilson(right, count),
        "steps_mean": mean("steps_mean"),
        "samples": count,
    }
