"""Inference with a trained policy: step by step, or rollouts in a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headway.data.episodes import task_name
from headway.domains.robotics.policy import RobotController, combine_scores, limit_of, open_envs, play, success_scores
from headway.domains.robotics.robot_codec import load_codec
from headway.environments.acting_codec import past_steps
from headway.environments.factory import check_environment_name
from headway.environments.rollouts import film_config, first_seed, open_film, target_returns
from headway.errors import UserError
from headway.io.arguments import check_types
from headway.predict.model_handle import ModelHandle


@check_types
def policy(model: ModelHandle, task: str | None = None, seed: int = 0) -> RobotController:
    return RobotController(model.module, load_codec(model.directory, model.usage), task, seed)


@check_types
def act(
    model: ModelHandle,
    observation: Any,
    history: Sequence[Any] = (),
    target_return: float | None = None,
    task: str | None = None,
    seed: int | None = None,
) -> int | np.ndarray:
    if target_return is not None:
        raise UserError(f"{model.directory} is a robot policy, which has no target returns; omit target_return")
    controller = policy(model, task, seed or 0)
    for earlier, _, _ in past_steps(history):
        controller.select_action(earlier)
    return controller.select_action(observation)


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
    start = first_seed(seed, episodes)
    directory = model.directory
    if draw is not None or target_returns(target_return):
        raise UserError(
            f"{directory} is a robot policy, which has no target returns and no sampling; omit these options"
        )
    envs = [env] if isinstance(env, str) else list(env or ())
    film = film_config(render, min(render_episodes, episodes), speed)
    codec = load_codec(directory, model.usage)
    chunk = model.module.config.chunk
    if execute is not None and not 1 <= execute <= chunk:
        raise UserError(f"cannot execute {execute} actions of a chunk of {chunk}; choose 1 to {chunk}")
    codec = codec if execute is None else replace(codec, execute=execute)
    codec = codec if ensemble == "run" else replace(codec, ensemble=ensemble)
    known = {task: name for task, name in zip(codec.names, codec.environments) if name}
    if not envs and not known:
        raise UserError(f"{directory} has no environment; choose one with --env")
    names = envs or [check_environment_name(name) for name in known.values()]
    seeds = range(start, start + episodes)
    results, all_played, rewards = [], [], None
    with ExitStack() as stack:
        all_envs = open_envs(codec, names, episodes, film is not None)  # check all before playing the first
        for vector_env in all_envs:
            stack.enter_context(vector_env)
        tasks = [] if envs else list(known)
        for name in envs:  # the task evaluated there, the only one, or the one that the environment's name contains
            task = next((task for task, environment in known.items() if environment == name), None)
            if task is None:
                task = codec.names[0] if len(codec.names) == 1 else task_name(name)
                if codec.words:
                    codec.word_ids(task)
            tasks.append(task)
        for number, (task, name, vector_env) in enumerate(zip(tasks, names, all_envs)):
            with open_film(None if number else film, vector_env.frame_rate or codec.rate) as watch:
                played = play(model.module, codec, vector_env, task, seeds, watch)
                rewards = rewards if watch is None else watch.rewards
            success = played.succeeded
            steps = None if success is None else [int(step) or None for step in success]
            scores = success_scores(played, limit_of(codec, vector_env))
            results.append({"environment": name, "task": task, **scores, "success_steps": steps})
            all_played.append(played)
    environment = names[0] if len(names) == 1 else names
    totals = combine_scores(results, all_played)
    report = {"environment": environment, "seed": start, **totals, "results": results}
    return {**report, "render": film and film.path, "rewards": rewards}
