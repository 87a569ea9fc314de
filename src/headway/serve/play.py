"""Chess and episodes over HTTP: a move in a game, an action in an episode, and an episode as a film."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from headway.app.model import Model
from headway.app.predictors import predictor
from headway.environments.factory import check_environment_name
from headway.errors import UserError, nearest
from headway.nn.models import kinds
from headway.serve.child_process import run_command
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint
from headway.serve.media import image_of, with_client_name
from headway.serve.verbs import plain

_MAX_NODES = 2000  # search nodes of a move
_MAX_HISTORY = 10_000  # steps before an action
_MAX_FILM = 32 << 20  # bytes
_EPISODE_SECONDS = 300.0  # to play, draw and encode an episode
_MAX_EPISODES = 2  # episodes at once, each in a process of its own
_episode_slots = BoundedSemaphore(_MAX_EPISODES)

Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ChessMoveBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`position` is a FEN (default: the start of chess), `moves` those played since then, such as e2e4 or Nf3. With
    `play` false there is no move, only the state of the game, which needs no model.
    """

    position: str = ""
    moves: list[str] = []
    nodes: Annotated[int, Meta(ge=0, le=_MAX_NODES)] = 100
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top: Annotated[int, Meta(ge=1, le=218)] = 5
    seed: Seed | None = None
    play: bool = True
    model: str = ""


class ChessMoveAnswer(msgspec.Struct):
    """The `move` is that of headway.ChessMove without its game; `game` is headway.ChessGame after the move."""

    move: dict[str, Any] | None
    game: dict[str, Any]
    model: str


class ActBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`observation` is numbers or, for a robot, an object with `state`, `task`, and `cameras` of images as data: URLs.
    `history` has the earlier steps, oldest first, each an observation, an action and a reward.
    """

    observation: Any
    history: list[tuple[Any, Any, float]] = []
    target_return: float | None = None
    task: str | None = None
    seed: Seed = 0
    model: str = ""


class ActAnswer(msgspec.Struct):
    """The action in the environment's units: a choice, or numbers."""

    action: Any
    model: str


class EpisodeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`environment` is one of the model's (default: the first), and `target_return` that of a trajectory model."""

    environment: str = ""
    seed: Seed = 2_000_000
    target_return: float | None = None
    model: str = ""


class EpisodeAnswer(msgspec.Struct):
    """An episode: the reward of each step, its return, whether it succeeded (None: the environment does not report
    it), and a video as a data: URL.
    """

    environment: str
    seed: int
    rewards: list[float]
    episode_return: float
    success: bool | None
    film: str
    model: str


class EnvironmentList(msgspec.Struct):
    """The environments of a model, and the target return of a trajectory model (None: it takes none)."""

    environments: list[str]
    target_return: float | None


async def move(body: ChessMoveBody, context: Context) -> ChessMoveAnswer:
    """A move in a game, or the state of the game."""
    if not body.play:

        def state() -> Any:
            from headway.domains.chess.games import game_state, play_moves  # imports the extra `chess`

            return game_state(play_moves(body.position, body.moves))

        return ChessMoveAnswer(None, plain(await asyncio.to_thread(state)), body.model)
    settings = msgspec.structs.asdict(body)
    del settings["model"], settings["play"]
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "move")  # UserError for a model that does not play
        played = plain(await ready.batcher.run(lambda: ready.model.move(**settings)))
    return ChessMoveAnswer(played, played.pop("game"), ready.name)


async def act(body: ActBody, context: Context) -> ActAnswer:
    """The next action of an episode."""
    if len(body.history) > _MAX_HISTORY:
        raise StatusError(400, f"the history has {len(body.history):,} steps; send at most {_MAX_HISTORY:,}", "history")
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "act")  # UserError for a model that does not act

        def decide() -> Any:
            try:
                observations = [_observation(part) for part in (body.observation, *(step[0] for step in body.history))]
                for _, action, _ in body.history:
                    np.asarray(action)
            except (TypeError, ValueError, OverflowError):  # of numpy, for lists of unequal lengths
                raise UserError("the observation or the history is not lists of numbers; correct it") from None
            history = [(seen, *step[1:]) for seen, step in zip(observations[1:], body.history)]
            return ready.model.act(observations[0], history, body.target_return, body.task, body.seed)

        return ActAnswer(plain(await ready.batcher.run(decide)), ready.name)


def _observation(value: Any) -> Any:
    """An observation from JSON; the cameras of a robot are pixels, or images as data: URLs. TypeError, ValueError or
    OverflowError for anything but numbers.
    """
    if not isinstance(value, dict):
        np.asarray(value)  # which a policy does later
        return value
    cameras, task = value.get("cameras") or {}, value.get("task") or ""
    if not isinstance(cameras, dict) or not isinstance(task, str):
        raise TypeError
    for name in value.keys() - {"cameras", "task"}:
        np.asarray(value[name], np.float32 if name.endswith("state") else None)
    images = {
        name: image_of(image, f"the image of camera {name!r}") if isinstance(image, str) else np.array(image, np.uint8)
        for name, image in cameras.items()
    }
    return {**value, "cameras": images} if "cameras" in value else value


async def list_environments(body: None, context: Context) -> EnvironmentList:
    """The environments in which a model can play."""
    async with context.served.using(context.path["name"]) as ready:
        predictor(ready.model, "rollout")  # UserError for a model that does not play
        return await asyncio.to_thread(_environments, ready.model)


def _environments(model: Model) -> EnvironmentList:
    from headway.domains.agents.agent_policy import AgentCodec
    from headway.domains.robotics.robot_codec import load_codec
    from headway.domains.trajectories.trajectory_player import TrajectoryCodec

    if kinds.is_robot(model.module):
        return EnvironmentList(load_codec(model.directory, model.usage).environment_names, None)
    if kinds.is_agent(model.module):
        return EnvironmentList(AgentCodec.read(model.directory).environment_names, None)
    codec = TrajectoryCodec.read(model.directory)
    return EnvironmentList(codec.environment_names, codec.target if model.module.config.embed.returns else None)


async def play_episode(body: EpisodeBody, context: Context) -> EpisodeAnswer:
    """An episode, played and filmed in a process of its own, which ends with the request."""
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "rollout")  # UserError for a model that does not play
        name, directory = ready.name, ready.model.directory
        known = (await asyncio.to_thread(_environments, ready.model)).environments
    if not known:
        raise UserError(f"{name} does not name its environment; play it with headway rollout RUN --env NAME")
    environment = body.environment or known[0]
    if environment not in known:  # a client must not choose what this machine runs
        raise UserError(f"{name} does not play in {environment[:100]!r}; {nearest(environment, known)}")
    check_environment_name(environment)
    if not _episode_slots.acquire(blocking=False):
        raise StatusError(429, f"{_MAX_EPISODES} episodes are being played; try again later", retry_after=10)
    try:
        with TemporaryDirectory(prefix="headway-") as folder:
            film = Path(folder) / "episode.mp4"
            command = ["rollout", str(directory), "--env", environment, "--seed", str(body.seed), "--episodes", "1"]
            command += ["--render", str(film), "--json"]
            if body.target_return is not None:
                command += [f"--target-return={body.target_return!r}"]
            with with_client_name(directory, name):
                report = await _run_command(command)
            if film.stat().st_size > _MAX_FILM:
                raise UserError(f"the film has more than {_MAX_FILM >> 20} MB; play it with headway rollout --render")
            encoded = base64.b64encode(film.read_bytes()).decode()
    finally:
        _episode_slots.release()
    success = report.get("success_rate")
    rewards = report["rewards"][0]
    return EpisodeAnswer(
        environment,
        body.seed,
        rewards,
        sum(rewards),
        None if success is None else success > 0,
        f"data:video/mp4;base64,{encoded}",
        name,
    )


async def _run_command(arguments: Sequence[str]) -> Any:
    """The JSON that a command of headway prints. UserError with its message if it refuses its arguments, and for one
    that takes too long. The process ends with this coroutine.
    """
    try:
        result = await run_command([sys.executable, "-m", "headway", *arguments], _EPISODE_SECONDS)
    except TimeoutError:
        raise UserError(
            f"the episode took longer than {_EPISODE_SECONDS:g} s; play it with headway rollout --render"
        ) from None
    lines = result.messages.strip().splitlines() or [f"exit status {result.code}"]
    if result.code == 2:
        raise UserError(lines[-1].removeprefix("headway: ").removeprefix("error: "))
    if result.code:
        raise StatusError(
            500, f"the episode failed ({lines[-1][:300]}); see the log of headway rollout", code="episode"
        )
    return json.loads(result.output.splitlines()[-1])


ENDPOINTS = (
    Endpoint("POST", "/v1/chess/move", move, "a move of chess", ChessMoveBody, ChessMoveAnswer),
    Endpoint("POST", "/v1/act", act, "the next action of an episode", ActBody, ActAnswer),
    Endpoint("POST", "/v1/episodes", play_episode, "an episode as a film", EpisodeBody, EpisodeAnswer),
    Endpoint("GET", "/v1/environments/{name:path}", list_environments, "a model's environments", None, EnvironmentList),
)
