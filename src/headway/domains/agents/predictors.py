"""Predictors of a trained agent: step by step, or rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headway.data.episodes import numbers_text
from headway.domains.agents.agent_policy import AgentCodec, AgentPolicy, Agents, play
from headway.environments.acting_codec import past_steps
from headway.environments.factory import check_environment_name, single_environment
from headway.environments.rollouts import (
    MAX_PARALLEL,
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
from headway.predict.model_handle import ModelHandle


@check_types
def policy(model: ModelHandle, task: str | None = None, seed: int = 0) -> AgentPolicy:
    """The policy of an agent or a robot, with `reset()`, `select_action(observation)` and, for a robot,
    `predict_action_chunk(observation)`.

    task: the task of a multi-task robot, unless the observations contain it.
    seed: the seed of a diffusion policy's noise and of an agent's sampled actions.

    Raises UserError for a model that is not a policy.
    """
    if task is not None:
        raise UserError(f"{model.directory} is an agent for one environment; omit task")
    return AgentPolicy(model.module, _codec(model), seed)


@check_types
def act(
    model: ModelHandle,
    observation: Any,
    history: Sequence[Any] = (),
    target_return: float | None = None,
    task: str | None = None,
    seed: int | None = None,
) -> int | np.ndarray:
    """Choose the next action of an episode: a choice, or numbers, in the environment's units.

    observation: the current observation: numbers, or for a robot the mapping that its policy takes.
    history: the earlier steps of the episode, oldest first, each an observation, an action and a reward.
    target_return: the return that a trajectory model aims for (default: the run's).
    task: the task of a multi-task robot.
    seed: seed of sampled actions, and of a diffusion policy's noise (default: 0).

    Raises UserError for an unsuitable observation, and for arguments of other kinds of models.
    """
    if target_return is not None:
        raise UserError(f"{model.directory} is an agent without target returns; omit target_return")
    agent = policy(model, task, seed or 0)
    for earlier, _, _ in past_steps(history):
        agent.select_action(earlier)
    return agent.select_action(observation)


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
    """Play episodes in an environment. Returns the mean return with its interval for agents and trajectory models,
    and the success rate for a robot policy; `results` has them per target return or task,
    and `rewards` those of each step of the episodes in a video.

    env: a Gymnasium id, metaworld/NAME, or module:Name (None: the run's); several for a robot policy.
    episodes: episodes per target return or task.
    seed: episode i starts from this seed + i.
    render: the path for a video of the first `render_episodes` episodes, at `speed` times real time.
    target_return: the target return of a trajectory model.
    draw: sample actions instead of taking the best (default: as in the run).
    execute: robot policy: actions to execute from each predicted chunk (default: as in the run).
    ensemble: robot policy: temporal ensembling coefficient (default: as in the run).

    Raises UserError for a model that does not act in environments, and for arguments of other kinds of models.
    """
    start = first_seed(seed, episodes)
    source = str(model.directory)
    check_no_chunking(execute, ensemble, source)
    requested = single_environment(env, source)
    if target_returns(target_return):
        raise UserError(f"{source} is an agent without target returns; omit target_return")
    codec = _codec(model)
    codec = codec if draw is None else replace(codec, draw=draw)
    name = requested or check_environment_name(codec.environment)
    film = film_config(render, min(render_episodes, episodes), speed)
    with VectorEnv(name, min(MAX_PARALLEL, episodes), render=film is not None) as envs:
        codec.check_environment(envs)
        with open_film(film, envs.frame_rate) as watch:
            played = play(model.module, codec, envs, range(start, start + episodes), watch)
    scores = return_scores(played, name)
    results = [{**scores, "returns": played.returns.tolist()}]
    report = {"environment": name, "seed": start, **scores, "results": results}
    return {**report, "render": film and film.path, "rewards": watch and watch.rewards}


def recording_policy(model: ModelHandle, envs: VectorEnv, horizon: int | None) -> Agents:
    """A run's agent as a policy for `headway data collect`. UserError for an environment that does not match."""
    codec = _codec(model)
    codec.check_environment(envs)
    return Agents(model.module, codec, [0] * len(envs))


def _codec(model: ModelHandle) -> AgentCodec:
    """Return the codec stored next to a model. UserError if its states differ from the model's."""
    codec, embed = AgentCodec.read(model.directory), model.module.config.embed
    if embed.states.size != codec.states:
        raise UserError(
            f"the model in {model.directory} takes {numbers_text(embed.states.size)}, but its {codec.FILE} has "
            f"{codec.states}; copy that file from the model's run"
        )
    return codec
