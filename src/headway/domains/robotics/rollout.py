"""Rollouts of a policy in simulators, and success rates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from headway.domains.robotics.chunk_windows import make_observations
from headway.domains.robotics.policy import PolicyRunner
from headway.domains.robotics.robot_codec import RobotCodec
from headway.environments import VectorEnv
from headway.environments.rollouts import EpisodeWatch, parallel_groups
from headway.errors import UserError
from headway.metrics import bootstrap_mean, wilson_interval
from headway.nn.models import Observations, RobotPolicy

MAX_PARALLEL = 25  # parallel episodes
_TIMES = 2  # step limit as a multiple of the longest demonstration, if the environment has none


class PlayedEpisodes(NamedTuple):
    """E episodes: the step, from 1, at which each succeeded (0 if it did not; None if the environment does not report
    success), their lengths, and the sums of their rewards.
    """

    succeeded: np.ndarray | None
    lengths: np.ndarray
    returns: np.ndarray


def open_envs(codec: RobotCodec, name: str, count: int, render: bool = False) -> VectorEnv:
    """Open parallel environments with a policy's cameras. UserError if they do not match."""
    sizes = {camera.recorded for camera in codec.cameras}
    if len(sizes) > 1:
        raise UserError(
            f"this policy's cameras have {len(sizes)} image sizes, but environments render only one; set "
            "task.episodes=0 to evaluate it on held-out demonstrations"
        )
    names = [camera.name for camera in codec.cameras]
    envs = VectorEnv(name, count, render=render, cameras=names, **({"size": sizes.pop()} if sizes else {}))
    try:
        check_fits(codec, envs)
    except UserError:
        envs.__exit__()
        raise
    return envs


def open_all_envs(codec: RobotCodec, names: Sequence[str], episodes: int, render: bool = False) -> list[VectorEnv]:
    """Open several environments for this many episodes of each; `render` allows filming the first. An instance takes
    about 28 MB, so the more environments there are, the fewer instances each has. UserError if one does not match the
    policy.
    """
    count = max(1, min(MAX_PARALLEL, 2 * MAX_PARALLEL // max(1, len(names)), episodes))
    with ExitStack() as stack:
        all_envs = [
            stack.enter_context(open_envs(codec, name, count, render and not n)) for n, name in enumerate(names)
        ]
        stack.pop_all()
    return all_envs


def limit_of(codec: RobotCodec, envs: VectorEnv) -> int:
    """Return the maximum number of steps per episode, which is also the length of a failed one."""
    return envs.horizon or _TIMES * codec.longest


def check_fits(codec: RobotCodec, envs: VectorEnv) -> None:
    """UserError for an environment whose states or actions differ from the policy's."""
    spaces = envs.spaces
    if spaces.action_size != len(codec.scale):
        raise UserError(
            f"the environment {envs.name!r} takes actions of {spaces.action_text}, but this policy outputs "
            f"{len(codec.scale)} numbers; choose a matching environment with --env, or train on demonstrations from "
            "this one"
        )
    if spaces.image or spaces.shape[0] < codec.recorded or (spaces.shape[0] > codec.recorded and not codec.cameras):
        shape = " x ".join(map(str, spaces.shape))
        raise UserError(
            f"the environment {envs.name!r} has states of {shape} numbers, but this policy takes {codec.recorded}; "
            "choose a matching environment with --env, or train on demonstrations from this one"
        )


def play(
    model: RobotPolicy,
    codec: RobotCodec,
    envs: VectorEnv,
    task: str,
    seeds: Sequence[int],
    watch: EpisodeWatch | None = None,
) -> PlayedEpisodes:
    """Play an episode of a task from each seed, until it succeeds or ends; `watch` observes the first of them."""
    groups = parallel_groups(len(seeds), len(envs), watch)
    parts = [_play_group(model, codec, envs, task, seeds, group, watch) for group in groups]
    order = np.argsort(np.concatenate(groups))
    succeeded, lengths, returns = zip(*parts)
    known = None
    if any(part is not None for part in succeeded):
        known = np.concatenate(
            [np.zeros_like(part_lengths) if part is None else part for part, part_lengths in zip(succeeded, lengths)]
        )
    known = None if known is None else known[order]
    return PlayedEpisodes(known, np.concatenate(lengths)[order], np.concatenate(returns)[order])


def _play_group(
    model: RobotPolicy,
    codec: RobotCodec,
    envs: VectorEnv,
    task: str,
    seeds: Sequence[int],
    indices: Sequence[int],
    watch: EpisodeWatch | None,
) -> PlayedEpisodes:
    """Play the episodes with these indices in parallel."""
    acting = PolicyRunner(model, codec, [seeds[number] for number in indices])
    limit = limit_of(codec, envs)
    rows = np.arange(len(indices))
    states = np.stack([envs.reset(row, seeds[number]) for row, number in enumerate(indices)])
    succeeded, reported = np.zeros(len(rows), np.int64), False
    lengths, returns = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    watch = watch if watch is not None and indices[0] < watch.episodes else None
    while len(rows):
        if watch is not None and rows[0] == 0:
            watch.step(envs.frame, indices[0], float(returns[0]))
        here, present = rows, states
        actions = acting.act(lambda: _observe(codec, envs, task, here, present))  # noqa: B023 (called at once)
        steps = [envs.step(row, action) for row, action in zip(rows.tolist(), actions)]
        returns[rows] += [step.reward for step in steps]
        lengths[rows] += 1
        reported |= any(
            step.success is not None for step in steps
        )  # some report success only when an episode terminates
        done = np.array([bool(step.success) for step in steps])
        succeeded[rows[done]] = lengths[rows[done]]
        over = done | np.array([step.terminated or step.truncated for step in steps]) | (lengths[rows] >= limit)
        going = np.flatnonzero(~over)
        if watch is not None and rows[0] == 0 and 0 not in going:
            watch.end(envs.frame, indices[0], float(returns[0]))
        if len(going) < len(rows):
            acting.keep_rows(going)
        rows, states = rows[going], np.array([steps[index].state for index in going])
    return PlayedEpisodes(succeeded if reported else None, lengths, returns)


def _observe(codec: RobotCodec, envs: VectorEnv, task: str, rows: np.ndarray, states: np.ndarray) -> Observations:
    """Return the current observations of some rows."""
    images = [envs.images(row) for row in rows.tolist()] if codec.cameras else []
    pictures = {camera.name: np.stack([image[camera.name] for image in images]) for camera in codec.cameras}
    return make_observations(codec, codec.states(states), pictures, [task] * len(rows))


def success_scores(played: PlayedEpisodes, horizon: int) -> dict[str, Any]:
    """Return the success rate with its Wilson interval, and the mean steps to success (`horizon` for failures); if
    success is not reported, the mean return.
    """
    count = len(played.lengths)
    if played.succeeded is None:
        return _return_scores([played])
    succeeded = played.succeeded > 0
    return {
        "success_rate": float(succeeded.mean()),
        "success_rate_interval": wilson_interval(int(succeeded.sum()), count),
        "steps_mean": float(np.where(succeeded, played.succeeded, horizon).mean()),
        "samples": count,
    }


def _return_scores(played: Sequence[PlayedEpisodes]) -> dict[str, Any]:
    returns = np.concatenate([part.returns for part in played])
    return {
        "return_mean": float(returns.mean()),
        "return_mean_interval": bootstrap_mean(returns),
        "length_mean": float(np.concatenate([part.lengths for part in played]).mean()),
        "samples": len(returns),
    }


def combine_scores(results: Sequence[dict[str, Any]], played: Sequence[PlayedEpisodes]) -> dict[str, Any]:
    """Return the scores over several tasks, with equal weight per episode: success or, if not all tasks report it,
    returns. `results` are each task's scores.
    """
    if any(episodes.succeeded is None for episodes in played):
        return _return_scores(played)
    count = sum(result["samples"] for result in results)

    def mean(name: str) -> float:
        return sum(result[name] * result["samples"] for result in results) / count

    successes = round(sum(result["success_rate"] * result["samples"] for result in results))
    return {
        "success_rate": successes / count,
        "success_rate_interval": wilson_interval(successes, count),
        "steps_mean": mean("steps_mean"),
        "samples": count,
    }
