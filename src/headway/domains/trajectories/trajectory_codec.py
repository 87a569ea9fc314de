"""Convert episodes to model inputs, and outputs to actions, with the scales stored next to the model. Does not need
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.config import from_dict, to_dict
from headway.data.episodes import Episodes, step_indices
from headway.errors import ConfigError, UserError
from headway.formats.durable import read_json, write_json

FILE = "trajectories.json"  # stored next to a model: the scales of its inputs and outputs


@dataclass(frozen=True)
class TrajectoryCodec:
    """States of `shape` are taken minus `mean` and divided by `std` (both empty for images, whose bytes are scaled to 0
    to 1). Returns are divided by `scale`. Actions are one of `choices`, or vectors divided by `reach` [A].

    The model takes `context` steps at once; `target` is the default target return, and `environment` the environment
    that it acts in. With `draw`, choices are sampled; otherwise the most probable one is taken.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    choices: int | None
    reach: tuple[float, ...]
    context: int
    target: float
    environment: str = ""
    draw: bool = False

    def __post_init__(self) -> None:
        features = self.shape[0] if len(self.shape) == 1 else 0
        fits = len(self.shape) in (1, 3) and len(self.mean) == len(self.std) == features and min(self.shape) > 0
        acts = self.actions > 0 and 0 not in (self.scale, *self.std, *self.reach)
        if not (fits and acts and self.context > 0):
            raise ConfigError(
                f"{FILE} is inconsistent (shape {self.shape}, {len(self.mean)} means, {len(self.std)} standard "
                f"deviations, {self.action_text}, context {self.context}); restore it from a copy"
            )

    @property
    def actions(self) -> int:
        """Number of logits or values per action."""
        return len(self.reach) if self.choices is None else self.choices

    @property
    def action_text(self) -> str:
        """Description of the actions, for messages."""
        return f"{self.choices} choices" if self.choices is not None else f"{len(self.reach)} numbers"

    @property
    def image(self) -> bool:
        return len(self.shape) == 3

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of a state as the model takes it."""
        if self.image and is_channels_last(self.shape):
            return (self.shape[2], *self.shape[:2])
        return self.shape

    def states(self, states: np.ndarray) -> np.ndarray:
        """Scale states [..., *shape] to float32; images become [..., C, H, W]."""
        if not self.image:
            return (states.astype(np.float32) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        scaled = states.astype(np.float32) / 255 if states.dtype == np.uint8 else states.astype(np.float32)
        return np.moveaxis(scaled, -1, -3) if is_channels_last(self.shape) else scaled

    def returns(self, returns: np.ndarray) -> np.ndarray:
        return (returns / self.scale).astype(np.float32)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Convert the data's actions to the model's."""
        return actions if self.choices is not None else (actions / self._reach).astype(np.float32)

    def decode_actions(self, output: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Convert model outputs, [B, A], to the environment's actions: choices [B], or vectors [B, A]. `uniform`, [B],
        are the random numbers from 0 to 1 for sampling.
        """
        if self.choices is None:
            return output * self._reach
        if not self.draw:
            return output.argmax(-1)
        odds = np.exp(output - output.max(-1, keepdims=True)).cumsum(-1)
        return (odds < uniform[:, None] * odds[:, -1:]).sum(-1)

    @property
    def _reach(self) -> np.ndarray:
        return np.array(self.reach, np.float32)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images are [H, W, C]: grey, RGB, or RGBA."""
    return shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)


def read_codec(directory: Path) -> TrajectoryCodec:
    """Read a run's scales. UserError if the folder has none."""
    path = directory / FILE
    if not path.is_file():
        raise UserError(
            f"{directory} has no {FILE} with the scales of states, returns and actions; use a run of the recipe "
            "trajectories, cartpole, pendulum or hopper, or copy that file from one"
        )
    return from_dict(TrajectoryCodec, read_json(path), str(path))


def fit_codec(
    episodes: Episodes,
    training: np.ndarray,
    context: int,
    *,
    scale: float | None,
    target: float | None,
    choices: int | None,
    environment: str,
    draw: bool,
) -> TrajectoryCodec:
    """Compute the scales from the training data; `training` are the indices of its episodes, int64 [E].

    Without a `scale`, returns are divided by the largest one; without a `target`, the target is the best return.
    Continuous actions between -1 and 1 are not scaled. `choices` are the environment's, if it is known.
    """
    steps = step_indices(episodes.starts[training], episodes.ends[training])
    states, actions = episodes.states[steps], episodes.actions[steps]
    image, returns = states.ndim == 4, episodes.returns[training]
    largest = float(np.abs(episodes.returns_to_go()[steps]).max())
    return TrajectoryCodec(
        tuple(states.shape[1:]),
        () if image else tuple(states.mean(0, dtype=np.float64).tolist()),
        () if image else tuple(np.where((std := states.std(0, dtype=np.float64)) > 1e-6, std, 1.0).tolist()),
        (largest or 1.0) if scale is None else scale,
        (choices or int(episodes.actions.max()) + 1) if episodes.discrete else None,
        () if episodes.discrete else tuple(np.maximum(np.abs(actions).max(0), 1.0).astype(float).tolist()),
        context,
        float(returns.max()) if target is None else target,
        environment,
        draw,
    )
