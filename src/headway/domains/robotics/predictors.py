"""Inference with a trained policy: step by step, or rollouts in a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from headway.data.episodes import task_name
from headway.domains.robotics.policy import (
    RobotController,
    combine_scores,
    limit_of,
    open_envs,
    play,
    success_scores,
)
from headway.domains.robotics.robot_codec import RobotCodec, load_codec
from headway.environments.factory import check_environment_name
from headway.environments.rollouts import check_episodes, film_config, first_seed, open_film, target_returns
from headway.errors import UserError
from headway.io.arguments import check_types
from headway.nn.models import RobotPolicy
from headway.predict.model_handle import ModelHandle


@check_types
def policy(model: ModelHandle, task: str | None = None, seed: int = 0) -> RobotController:
    return RobotController(model.module, load_codec(model.directory, model.usage), task, seed)


@check_types
def rollout(
    model: ModelHandle,
    env: str | Sequence[str] | None = None,
    episodes: int = 10,
    target_return: float | Sequence[float] = (),
    seed: int | None = None,
    render: str | Path | None = None,
    draw: bool | None = None,
    execute: int | None = None,
    ensemble: float | Literal["run"] | None = "run",
    render_episodes: int = 3,
    speed: float = 1.0,
) -> dict[str, Any]:
    check_episodes(episodes, seed)
    directory = model.directory
    if draw is not None or target_returns(target_return):
        raise UserError(
            f"{directory} is a robot policy, which has no target returns and no sampling; omit these options"
        )
    envs = [env] if isinstance(env, str) else list(env or ())
    film = film_config(render, min(render_episodes, episodes), speed)
    codec = _with_execution(load_codec(directory, model.usage), model.module, execute, ensemble)
    known = _known_environments(codec, directory, bool(envs))
    names = envs or list(known.values())
    start = first_seed(seed)
    seeds = range(start, start + episodes)
    results, all_played = [], []
    with ExitStack() as stack:
        all_envs = open_envs(codec, names, episodes, film is not None)  # check all before playing the first
        for vector_env in all_envs:
            stack.enter_context(vector_env)
        tasks = [_task_of(name, codec, known) for name in envs] or list(known)
        for number, (task, name, vector_env) in enumerate(zip(tasks, names, all_envs)):
            with open_film(None if number else film, vector_env.frame_rate or codec.rate) as watch:
                played = play(model.module, codec, vector_env, task, seeds, watch)
            success = played.succeeded
            steps = None if success is None else [int(step) or None for step in success]
            scores = success_scores(played, limit_of(codec, vector_env))
            results.append({"environment": name, "task": task, **scores, "success_steps": steps})
            all_played.append(played)
    environment = names[0] if len(names) == 1 else names
    totals = combine_scores(results, all_played)
    return {"environment": environment, "seed": start, **totals, "results": results, "render": film and film.path}


def _with_execution(
    codec: RobotCodec, model: RobotPolicy, execute: int | None, ensemble: float | Literal["run"] | None
) -> RobotCodec:
    chunk = model.config.chunk
    if execute is not None and not 1 <= execute <= chunk:
        raise UserError(f"cannot execute {execute} actions of a chunk of {chunk}; choose 1 to {chunk}")
    codec = codec if execute is None else replace(codec, execute=execute)
    return codec if ensemble == "run" else replace(codec, ensemble=ensemble)


def _known_environments(codec: RobotCodec, directory: Path, has_envs: bool) -> dict[str, str]:
    """Return each task's environment. UserError if none is known and no others are passed (`has_envs`)."""
    environments = {task: name for task, name in zip(codec.names, codec.environments) if name}
    if has_envs:
        return environments
    if not environments:
        raise UserError(f"{directory} has no environment; choose one with --env")
    return {task: check_environment_name(name) for task, name in environments.items()}


def _task_of(name: str, codec: RobotCodec, known: Mapping[str, str]) -> str:
    """Return the task to play in an environment: the one evaluated there, the only one, or the one that the
    environment's name contains. UserError if all its words are unknown.
    """
    for task, environment in known.items():
        if environment == name:
            return task
    fallback = codec.names[0] if len(codec.names) == 1 else task_name(name)
    if codec.words:
        codec.word_ids(fallback)
    return fallback
