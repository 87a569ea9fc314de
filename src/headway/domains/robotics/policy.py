"""Run a policy: predict chunks of actions, average overlapping predictions, and play tasks in simulators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from headway.data.episodes import numbers_text
from headway.domains.robotics.chunk_windows import make_observations
from headway.domains.robotics.robot_codec import RobotCodec
from headway.environments.rollouts import EpisodeWatch, PlayedEpisodes, Player, play_episodes, return_scores
from headway.environments.vector_env import VectorEnv
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.io.arguments import format_value
from headway.metrics import wilson_interval
from headway.nn.models import ChunkNoise, Observations, RobotPolicy, evaluation_mode
from headway.nn.models.robot import stack_steps

_RNG_STREAM = 12  # random stream, independent of the environments' for the same seed
_FLAT_PREFIX = "observation."
_MAX_PARALLEL = 25  # parallel episodes
_TIMES = 2  # step limit as a multiple of the longest demonstration, if the environment has none

Observation = Mapping[str, Any]
"""{"state": [S], "cameras": {name: uint8 [H, W, 3]}, "task": text}, or LeRobot's flat keys: "observation.state",
"observation.environment_state", "observation.images.NAME", "task". Unused entries may be omitted."""


class PolicyRunner:
    """Acts in B episodes of the same age. A diffusion policy's noise depends only on each row's seed."""

    def __init__(self, model: RobotPolicy, codec: RobotCodec, seeds: Sequence[int]) -> None:
        self.model, self.codec = model, codec
        self._rngs = [np.random.default_rng([_RNG_STREAM, seed]) for seed in seeds]
        self._device = device_of(model)
        self._chunks: list[tuple[int, np.ndarray]] = []  # steps, and [B, C, A] predicted there in the robot's units
        self._history: list[Observations] = []  # the last steps, which the next chunk needs, oldest first
        self._step = 0

    def act(self, observe: Callable[[], Observations]) -> Float[np.ndarray, "B A"]:
        """Return the actions for this step. A new chunk is predicted every `execute` steps; `observe` is called then,
        and at the earlier steps that the model takes.
        """
        steps_left = -self._step % self.codec.execute  # steps until the next prediction
        if steps_left < self.model.config.history:
            self._history = [*self._history, observe()][-self.model.config.history :]
        if steps_left == 0:
            self._chunks.append((self._step, self.chunk(self.with_history(*self._history))))
        self._chunks = [chunk for chunk in self._chunks if self._step - chunk[0] < self.model.config.chunk]
        present = np.stack([actions[:, self._step - step] for step, actions in self._chunks])
        self._step += 1
        return ensemble_chunks(present, self.codec.ensemble)

    @torch.no_grad()
    def chunk(self, observations: Observations) -> Float[np.ndarray, "B C A"]:
        """Predict the next actions from the model's inputs, in the robot's units."""
        draws = [self.model.sample_noise(rng, 1) for rng in self._rngs]
        steps = [noise.steps for noise in draws if noise.steps is not None]
        noise = ChunkNoise(torch.cat([draw.noise for draw in draws]), torch.cat(steps) if steps else None)
        with evaluation_mode(self.model):
            output = self.model(observations.to(self._device), noise.to(self._device))
        return self.codec.decode_actions(output.float().cpu().numpy())

    def with_history(self, *steps: Observations) -> Observations:
        """The model's inputs for the last steps, with the current one last; missing steps repeat the first."""
        return stack_steps([*[steps[0]] * (self.model.config.history - len(steps)), *steps])

    def keep_rows(self, kept: np.ndarray) -> None:
        """Continue only some of the episodes."""
        self._rngs = [self._rngs[row] for row in kept.tolist()]
        self._chunks = [(step, actions[kept]) for step, actions in self._chunks]
        self._history = [observation.select(torch.from_numpy(kept)) for observation in self._history]


def ensemble_chunks(present: Float[np.ndarray, "K B A"], weight: float | None) -> Float[np.ndarray, "B A"]:
    """Temporal ensembling (Zhao et al. 2023, section IV-B): the mean of K chunks' predictions for the same step, oldest
    first, with weights exp(-m i); None takes the newest.
    """
    if weight is None:
        return present[-1]
    weights = np.exp(-weight * np.arange(len(present)))
    return np.tensordot(weights / weights.sum(), present, 1).astype(np.float32)


class RobotController:
    """A policy for one robot, step by step. `task` is the default for observations without a task."""

    def __init__(self, model: RobotPolicy, codec: RobotCodec, task: str | None = None, seed: int = 0) -> None:
        """UserError for a task whose words are all unknown."""
        self.model, self.codec, self.seed = model, codec, seed
        self.task = task if task is not None else codec.names[0] if len(codec.names) == 1 else None
        if codec.words and self.task is not None:
            codec.word_ids(self.task)
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._runner = PolicyRunner(self.model, self.codec, [self.seed])

    def select_action(self, observation: Observation) -> Float[np.ndarray, "A"]:
        """Return the action for this step and advance to the next one."""
        observations = self._to_observations(observation)
        return self._runner.act(lambda: observations)[0]

    def predict_action_chunk(self, observation: Observation) -> Float[np.ndarray, "C A"]:
        """Predict the next actions from only this observation, without advancing."""
        acting = PolicyRunner(self.model, self.codec, [self.seed])
        return acting.chunk(acting.with_history(self._to_observations(observation)))[0]

    def _to_observations(self, observation: Observation) -> Observations:
        """UserError for an observation that lacks a policy input, or in which one has the wrong size."""
        codec, inputs = self.codec, structure_observation(observation)
        state, size = inputs.get("state"), len(codec.mean)
        if state is None and size:
            raise UserError(f"the observation has no state, but this policy takes {numbers_text(size)}; add state")
        values = np.asarray(state if size else [], np.float32).reshape(1, -1)
        if size and values.shape[1] not in (size, codec.recorded):
            raise UserError(
                f"the state has {numbers_text(values.shape[1])}, but this policy takes {codec.recorded}; pass the "
                "state of its robot"
            )
        if not np.isfinite(values).all():
            raise UserError(f"the state contains {values[~np.isfinite(values)][0]}, which is not finite; correct it")
        images, cameras = {}, inputs["cameras"]
        for name in codec.camera_names:
            if name not in cameras:
                known = ", ".join(cameras) or "none"
                raise UserError(f"the observation has no image from camera {name!r} (its cameras: {known}); add it")
            image = np.asarray(cameras[name])
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(
                    f"the image from camera {name!r} is {image.dtype} of shape {image.shape}; pass uint8 [H, W, 3]"
                )
            images[name] = image[None]
        task = inputs.get("task") or self.task
        if codec.words and not task:
            known = ", ".join(map(repr, codec.names))
            raise UserError(f"the observation has no task, but this policy has several; add task with one of {known}")
        return make_observations(codec, values, images, [task or ""])


def structure_observation(observation: Observation) -> dict[str, Any]:
    """Convert LeRobot's flat keys to state, cameras and task; other observations are unchanged. UserError for anything
    but a mapping.
    """
    if not isinstance(observation, Mapping):
        raise UserError(f"the observation is {format_value(observation)}; pass a mapping such as {{'state': [...]}}")
    if not any(str(key).startswith(_FLAT_PREFIX) for key in observation):
        return {"cameras": {}, **observation}
    images = f"{_FLAT_PREFIX}images."
    cameras = {key.removeprefix(images): value for key, value in observation.items() if key.startswith(images)}
    if f"{_FLAT_PREFIX}image" in observation:
        cameras["image"] = observation[f"{_FLAT_PREFIX}image"]
    states = [
        observation[key] for key in (f"{_FLAT_PREFIX}state", f"{_FLAT_PREFIX}environment_state") if key in observation
    ]
    state = np.concatenate([np.ravel(part) for part in states]) if states else None
    return {"state": state, "cameras": cameras, "task": observation.get("task")}


def open_envs(codec: RobotCodec, names: Sequence[str], episodes: int, render: bool = False) -> list[VectorEnv]:
    """Open several environments with a policy's cameras, for this many episodes of each; `render` allows filming the
    first. An instance takes about 28 MB, so the more environments there are, the fewer instances each has. UserError
    if one does not match the policy.
    """
    sizes = {camera.recorded for camera in codec.cameras}
    if len(sizes) > 1:
        raise UserError(
            f"this policy's cameras have {len(sizes)} image sizes, but environments render only one; set "
            "task.episodes=0 to evaluate it on held-out demonstrations"
        )
    count = max(1, min(_MAX_PARALLEL, 2 * _MAX_PARALLEL // max(1, len(names)), episodes))
    options = {"size": sizes.pop()} if sizes else {}
    all_envs = []
    with ExitStack() as stack:
        for number, name in enumerate(names):
            is_filmed = render and number == 0
            envs = VectorEnv(name, count, render=is_filmed, cameras=list(codec.camera_names), **options)
            all_envs.append(stack.enter_context(envs))
            codec.check_environment(envs)
        stack.pop_all()  # closed only if one does not match
    return all_envs


def limit_of(codec: RobotCodec, envs: VectorEnv) -> int:
    """Return the maximum number of steps per episode, which is also the length of a failed one."""
    return envs.horizon or _TIMES * codec.longest


class RobotPlayer(Player):
    """Plays episodes of a task in simulators, whose cameras are used only where the policy needs them."""

    def __init__(self, model: RobotPolicy, codec: RobotCodec, envs: VectorEnv, task: str, seeds: Sequence[int]) -> None:
        self.runner, self.limit = PolicyRunner(model, codec, seeds), limit_of(codec, envs)
        self.codec, self.envs, self.task = codec, envs, task

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        def observe() -> Observations:
            images = [self.envs.images(row) for row in rows] if self.codec.cameras else []
            pictures = {name: np.stack([image[name] for image in images]) for name in self.codec.camera_names}
            return make_observations(self.codec, states, pictures, [self.task] * len(rows))

        return self.runner.act(observe)

    def keep_rows(self, kept: np.ndarray) -> None:
        self.runner.keep_rows(kept)


def play(
    model: RobotPolicy,
    codec: RobotCodec,
    envs: VectorEnv,
    task: str,
    seeds: Sequence[int],
    watch: EpisodeWatch | None = None,
) -> PlayedEpisodes:
    """Play an episode of a task from each seed, until it succeeds or ends; `watch` observes the first of them."""
    return play_episodes(
        lambda group: RobotPlayer(model, codec, envs, task, group), envs, seeds, watch, until_success=True
    )


def success_scores(played: PlayedEpisodes, horizon: int) -> dict[str, Any]:
    """Return the success rate with its Wilson interval, and the mean steps to success (`horizon` for failures); if
    success is not reported, the mean return.
    """
    count = len(played.lengths)
    if played.succeeded is None:
        return return_scores(PlayedEpisodes(played.returns, played.lengths), "")
    succeeded = played.succeeded > 0
    return {
        "success_rate": float(succeeded.mean()),
        "success_rate_interval": wilson_interval(int(succeeded.sum()), count),
        "steps_mean": float(np.where(succeeded, played.succeeded, horizon).mean()),
        "samples": count,
    }


def combine_scores(results: Sequence[dict[str, Any]], played: Sequence[PlayedEpisodes]) -> dict[str, Any]:
    """Return the scores over several tasks, with equal weight per episode: success or, if not all tasks report it,
    returns. `results` are each task's scores.
    """
    if any(episodes.succeeded is None for episodes in played):
        returns, lengths = (np.concatenate([getattr(part, name) for part in played]) for name in ("returns", "lengths"))
        return return_scores(PlayedEpisodes(returns, lengths), "")
    count = sum(result["samples"] for result in results)
    successes = round(sum(result["success_rate"] * result["samples"] for result in results))
    return {
        "success_rate": successes / count,
        "success_rate_interval": wilson_interval(successes, count),
        "steps_mean": sum(result["steps_mean"] * result["samples"] for result in results) / count,
        "samples": count,
    }
