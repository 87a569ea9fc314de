"""Rollouts with a trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headway.data.episodes import actions_text, numbers_text
from headway.domains.trajectories.trajectory_player import Actor, TrajectoryCodec, play
from headway.environments.acting_codec import past_steps
from headway.environments.factory import check_environment_name, single_environment
from headway.environments.rollouts import (
    MAX_PARALLEL,
    PlayedEpisodes,
    SeparateRows,
    check_no_chunking,
    film_config,
    first_seed,
    open_film,
    return_scores,
    target_returns,
)
from headway.environments.vector_env import VectorEnv
from headway.errors import UserError
from headway.io.arguments import check_types
from headway.nn.models import TrajectoryEmbedConfig
from headway.predict.model_handle import ModelHandle


@check_types
def act(
    model: ModelHandle,
    observation: Any,
    history: Sequence[Any] = (),
    target_return: float | None = None,
    task: str | None = None,
    seed: int | None = None,
) -> int | np.ndarray:
    codec, embed = TrajectoryCodec.read(model.directory), model.module.config.embed
    _check_scales(embed, codec, model.directory)
    if task is not None:
        raise UserError(f"{model.directory} is a model for one environment; omit task")
    if target_return is not None and not embed.returns:
        raise UserError(f"{model.directory} does not use target returns; omit target_return")
    steps = past_steps(history)
    if len(steps) >= embed.timesteps:
        raise UserError(f"the history has {len(steps):,} steps, but the model has {embed.timesteps:,}; pass fewer")
    actor = Actor(model.module, codec, [codec.target if target_return is None else target_return], [seed or 0])
    for earlier, action, reward in steps:
        actor.act([0], codec.check_state(earlier)[None])
        actor.observe([0], codec.check_action(action)[None], np.array([reward]))
    chosen = actor.act([0], codec.check_state(observation)[None])[0]
    return int(chosen) if codec.choices is not None else chosen


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
    targets = target_returns(target_return)
    directory, embed = model.directory, model.module.config.embed
    check_no_chunking(execute, ensemble, str(directory))
    requested = single_environment(env, str(directory))
    codec = TrajectoryCodec.read(directory)
    _check_scales(embed, codec, directory)
    if targets and not embed.returns:
        raise UserError(f"{directory} does not use target returns; remove --target-return")
    if draw and codec.choices is None:
        raise UserError(f"{directory} outputs actions of {codec.action_text}, which are not sampled; remove --draw")
    codec = codec if draw is None else replace(codec, draw=draw)
    name = requested or check_environment_name(codec.environment)
    if not name:
        raise UserError(f"{directory} has no environment; choose one with --env")
    film = film_config(render, min(render_episodes, episodes), speed)
    seeds = range(start, start + episodes)
    results: list[dict[str, Any]] = []
    all_played: list[tuple[float, PlayedEpisodes]] = []
    with VectorEnv(name, min(MAX_PARALLEL, episodes), render=film is not None) as envs:
        codec.check_environment(envs)
        with open_film(film, envs.frame_rate) as watch:
            for target in targets or [codec.target]:
                if watch is not None and embed.returns:
                    watch.caption_suffix = f", target {target:.5g}"
                all_played.append((target, play(model.module, codec, envs, target, seeds, watch)))
        for target, played in all_played:
            scores = return_scores(played, envs.name)
            results.append({"target_return": target, **scores, "returns": played.returns.tolist()})
    first = {key: value for key, value in results[0].items() if key != "returns"}
    report = {"environment": name, "seed": start, **first, "results": results}
    return {**report, "render": film and film.path, "rewards": watch and watch.rewards}


def recording_policy(model: ModelHandle, envs: VectorEnv, horizon: int | None) -> SeparateRows:
    """Return a run's model as a policy for `headway data collect`, with the run's target return. UserError for an
    environment that does not match, or if episodes of up to `horizon` steps may be too long for the model.
    """
    codec, embed = TrajectoryCodec.read(model.directory), model.module.config.embed
    _check_scales(embed, codec, model.directory)
    codec.check_environment(envs)
    max_steps = min(limit for limit in (horizon, envs.horizon, math.inf) if limit is not None)
    if max_steps > embed.timesteps:
        raise UserError(
            f"the model in {model.directory} has {embed.timesteps:,} timesteps, but an episode of {envs.name!r} may "
            f"have more; pass --horizon {embed.timesteps}"
        )
    return SeparateRows(lambda seeds: Actor(model.module, codec, [codec.target] * len(seeds), seeds))


def _check_scales(embed: TrajectoryEmbedConfig, codec: TrajectoryCodec, directory: Path) -> None:
    """UserError for scales that do not match the model's states or actions."""
    model_text, codec_text = (
        f"states of {numbers_text(*shape)} and actions of {actions_text(count if discrete else None, count)}"
        for shape, count, discrete in (
            (embed.states.shape, embed.actions, embed.discrete),
            (codec.input_shape, codec.actions, codec.choices is not None),
        )
    )
    if model_text != codec_text:
        raise UserError(
            f"the model in {directory} takes {model_text}, but its {codec.FILE} has {codec_text}; copy that file from "
            "the model's run"
        )
