"""Run a policy: predict chunks of actions and average overlapping predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from headway.domains.robotics.chunk_windows import make_observations
from headway.domains.robotics.robot_codec import RobotCodec
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluation_mode
from headway.nn.models import ChunkNoise, Observations, RobotPolicy
from headway.nn.models.robot import stack_steps

_RNG_STREAM = 12  # random stream, independent of the environments' for the same seed
_FLAT_PREFIX = "observation."

Observation = Mapping[str, Any]
"""{"state": [S], "cameras": {name: uint8 [H, W, 3]}, "task": text}, or LeRobot's flat keys: "observation.state",
"observation.environment_state", "observation.images.NAME", "task". Unused entries may be omitted."""


class PredictedChunk(NamedTuple):
    """A chunk per row, [B, C, A] in the robot's units, and the step at which it was predicted."""

    step: int
    actions: np.ndarray


class PolicyRunner:
    """Acts in B episodes of the same age. A diffusion policy's noise depends only on each row's seed."""

    def __init__(self, model: RobotPolicy, codec: RobotCodec, seeds: Sequence[int]) -> None:
        self.model, self.codec = model, codec
        self._rngs = [np.random.default_rng([_RNG_STREAM, seed]) for seed in seeds]
        self._device = device_of(model)
        self._chunks: list[PredictedChunk] = []
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
            self._chunks.append(PredictedChunk(self._step, self.chunk(self.with_history(*self._history))))
        length = self.model.config.chunk
        self._chunks = [chunk for chunk in self._chunks if self._step - chunk.step < length]
        present = np.stack([chunk.actions[:, self._step - chunk.step] for chunk in self._chunks])
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

    def keep_rows(self, rows: np.ndarray) -> None:
        """Continue only some of the episodes."""
        self._rngs = [self._rngs[row] for row in rows.tolist()]
        self._chunks = [PredictedChunk(chunk.step, chunk.actions[rows]) for chunk in self._chunks]
        self._history = [observation.select(torch.from_numpy(rows)) for observation in self._history]


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
        inputs = structure_observation(observation)
        states = self._state(inputs.get("state"))
        images = {camera.name: self._image(camera.name, inputs["cameras"]) for camera in self.codec.cameras}
        name = inputs.get("task") or self.task
        if self.codec.words and not name:
            known = ", ".join(map(repr, self.codec.names))
            raise UserError(f"the observation has no task, but this policy has several; add task with one of {known}")
        return make_observations(self.codec, states, images, [name or ""])

    def _state(self, state: Any) -> np.ndarray:
        size, recorded = len(self.codec.mean), self.codec.recorded
        if state is None and size:
            raise UserError(f"the observation has no state, but this policy takes {size} numbers; add state")
        values = np.asarray(state if size else [], np.float32).reshape(1, -1)
        if size and values.shape[1] not in (size, recorded):
            raise UserError(
                f"the state has {values.shape[1]} numbers, but this policy takes {recorded}; pass the state of its "
                "robot"
            )
        if not np.isfinite(values).all():
            raise UserError(f"the state contains {values[~np.isfinite(values)][0]}, which is not finite; correct it")
        return self.codec.states(values)

    def _image(self, name: str, cameras: Mapping[str, Any]) -> np.ndarray:
        if name not in cameras:
            known = ", ".join(cameras) or "none"
            raise UserError(f"the observation has no image from camera {name!r} (its cameras: {known}); add it")
        image = np.asarray(cameras[name])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"the image from camera {name!r} is {image.dtype} of shape {image.shape}; pass uint8 [H, W, 3]"
            )
        return image[None]


def structure_observation(observation: Observation) -> dict[str, Any]:
    """Convert LeRobot's flat keys to state, cameras and task; other observations are unchanged."""
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
