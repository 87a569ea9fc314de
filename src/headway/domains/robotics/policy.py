"""Run a policy: it predicts chunks of actions, and overlapping predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from headway.domains.robotics.codec import RobotCodec
from headway.domains.robotics.windows import observed
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.nn.models import Drawn, Observations, RobotPolicy
from headway.nn.models.robot import in_order

_DRAWS = 12  # random stream, independent of the environments' for the same seed
_FLAT = "observation."

Observation = Mapping[str, Any]
"""{"state": [S], "cameras": {name: uint8 [H, W, 3]}, "task": text}, or LeRobot's flat keys: "observation.state",
"observation.environment_state", "observation.images.NAME", "task". Unused entries may be left out."""


class PredictedChunk(NamedTuple):
    """A chunk per row, [B, C, A] in the robot's units, and the step of its prediction."""

    step: int
    actions: np.ndarray


class Acting:
    """Acts in B episodes of the same age. The noise of a diffusion policy depends only on the seed of each row."""

    def __init__(self, model: RobotPolicy, codec: RobotCodec, seeds: Sequence[int]) -> None:
        self.model, self.codec = model, codec
        self._chances = [np.random.default_rng([_DRAWS, seed]) for seed in seeds]
        self._device = device_of(model)
        self._said: list[PredictedChunk] = []
        self._seen: list[Observations] = []  # the last steps that the next chunk needs, oldest first
        self._step = 0

    def act(self, look: Callable[[], Observations]) -> Float[np.ndarray, "B A"]:
        """Return the actions of this step. Every `execute` steps a new chunk is predicted; `observe` is called then,
        and at the earlier steps that the model takes.
        """
        wait = -self._step % self.codec.execute  # steps until the next prediction
        if wait < self.model.config.history:
            self._seen = [*self._seen, look()][-self.model.config.history :]
        if wait == 0:
            self._said.append(PredictedChunk(self._step, self.chunk(self.remembered(*self._seen))))
        length = self.model.config.chunk
        self._said = [said for said in self._said if self._step - said.step < length]
        present = np.stack([said.actions[:, self._step - said.step] for said in self._said])
        self._step += 1
        return ensembled(present, self.codec.ensemble)

    @torch.no_grad()
    def chunk(self, seen: Observations) -> Float[np.ndarray, "B C A"]:
        """Predict the next actions from the model's inputs, in the robot's units."""
        each = [self.model.draw(chance, 1) for chance in self._chances]
        steps = [drawn.steps for drawn in each if drawn.steps is not None]
        drawn = Drawn(torch.cat([one.noise for one in each]), torch.cat(steps) if steps else None)
        with evaluating(self.model):
            said = self.model(seen.to(self._device), drawn.to(self._device))
        return self.codec.said_actions(said.float().cpu().numpy())

    def remembered(self, *steps: Observations) -> Observations:
        """The model's inputs for the last steps, the current one last; the first is repeated for missing ones."""
        return in_order([*[steps[0]] * (self.model.config.history - len(steps)), *steps])

    def select(self, rows: np.ndarray) -> None:
        """Continue only some of the episodes."""
        self._chances = [self._chances[row] for row in rows.tolist()]
        self._said = [PredictedChunk(said.step, said.actions[rows]) for said in self._said]
        self._seen = [seen.select(torch.from_numpy(rows)) for seen in self._seen]


def ensembled(present: Float[np.ndarray, "K B A"], weight: float | None) -> Float[np.ndarray, "B A"]:
    """Temporal ensembling (Zhao et al. 2023, section IV-B): the mean of K chunks' predictions for the same step, the
    oldest first, with weights exp(-m i); None takes the newest.
    """
    if weight is None:
        return present[-1]
    weights = np.exp(-weight * np.arange(len(present)))
    return np.tensordot(weights / weights.sum(), present, 1).astype(np.float32)


class Policy:
    """A policy for one robot, step by step. `task` is the default if an observation has none."""

    def __init__(self, model: RobotPolicy, codec: RobotCodec, task: str | None = None, seed: int = 0) -> None:
        """UserError for a task with only unknown words."""
        self.model, self.codec, self.seed = model, codec, seed
        self.task = task if task is not None else codec.names[0] if len(codec.names) == 1 else None
        if codec.words and self.task is not None:
            codec.text(self.task)
        self.reset()

    def reset(self) -> None:
        """Start an episode."""
        self._acting = Acting(self.model, self.codec, [self.seed])

    def select_action(self, observation: Observation) -> Float[np.ndarray, "A"]:
        """Return the action of this step and advance to the next one."""
        seen = self._read(observation)
        return self._acting.act(lambda: seen)[0]

    def predict_action_chunk(self, observation: Observation) -> Float[np.ndarray, "C A"]:
        """Predict the next actions from this observation alone, without advancing."""
        acting = Acting(self.model, self.codec, [self.seed])
        return acting.chunk(acting.remembered(self._read(observation)))[0]

    def _read(self, observation: Observation) -> Observations:
        """UserError for an observation that lacks an input of the policy, or has one of another size."""
        given = structured(observation)
        states = self._state(given.get("state"))
        pictures = {each.name: self._picture(each.name, given["cameras"]) for each in self.codec.cameras}
        name = given.get("task") or self.task
        if self.codec.words and not name:
            known = ", ".join(map(repr, self.codec.names))
            raise UserError(f"the observation has no task, but this policy has several; add task, one of {known}")
        return observed(self.codec, states, pictures, [name or ""])

    def _state(self, given: Any) -> np.ndarray:
        read, recorded = len(self.codec.mean), self.codec.recorded
        if given is None and read:
            raise UserError(f"the observation has no state, but this policy takes {read} numbers; add state")
        found = np.asarray(given if read else [], np.float32).reshape(1, -1)
        if read and found.shape[1] not in (read, recorded):
            raise UserError(f"the state has {found.shape[1]} numbers, this policy takes {recorded}; pass its robot's")
        if not np.isfinite(found).all():
            raise UserError(f"the state contains {found[~np.isfinite(found)][0]}, which is not finite; correct it")
        return self.codec.states(found)

    def _picture(self, name: str, cameras: Mapping[str, Any]) -> np.ndarray:
        if name not in cameras:
            known = ", ".join(cameras) or "none"
            raise UserError(f"the observation has no image of the camera {name!r} (its cameras: {known}); add it")
        found = np.asarray(cameras[name])
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3:
            raise UserError(
                f"the image of the camera {name!r} is {found.dtype} of shape {found.shape}; pass uint8 [H, W, 3]"
            )
        return found[None]


def structured(observation: Observation) -> dict[str, Any]:
    """Convert LeRobot's flat keys to state, cameras and task; other observations are unchanged."""
    if not any(str(key).startswith(_FLAT) for key in observation):
        return {"cameras": {}, **observation}
    images = f"{_FLAT}images."
    cameras = {key.removeprefix(images): value for key, value in observation.items() if key.startswith(images)}
    if f"{_FLAT}image" in observation:
        cameras["image"] = observation[f"{_FLAT}image"]
    states = [observation[key] for key in (f"{_FLAT}state", f"{_FLAT}environment_state") if key in observation]
    state = np.concatenate([np.ravel(each) for each in states]) if states else None
    return {"state": state, "cameras": cameras, "task": observation.get("task")}
