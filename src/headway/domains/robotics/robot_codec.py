"""Convert a robot's observations and actions for a model, with the scales and names stored next to it. Does not need
torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.formats.durable import read_json, write_json

FILE = "robotics.json"  # stored next to a policy: the scales of its inputs and outputs
UNKNOWN = 0  # id for words that do not occur in any demonstrated task
_MIN_SPREAD = 1e-6  # a smaller spread counts as constant: only the mean is subtracted
_WORD = re.compile(r"\w+|[^\w\s]")

Size = tuple[int, int]


@dataclass(frozen=True)
class Camera:
    """A camera's name, and the sizes (height, width) of its images as recorded and as model inputs. If `scale` is set,
    for three channels, the model takes pixels from 0 to 1 minus `shift`, divided by `scale`.
    """

    name: str
    recorded: Size
    read: Size
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


@dataclass(frozen=True)
class RobotCodec:
    """States have `recorded` values, of which the first len(`mean`) are used: minus `mean`, divided by `std`, and
    clipped to `farthest`. Actions are taken minus `shift`, divided by `scale`.

    `names` are the tasks, `environments` where each can be played ("" if unknown), and `words` the vocabulary of the
    names if the model takes them. A new chunk is predicted every `execute` actions; `ensemble` is the m of temporal
    ensembling (None: only the newest chunk). `longest` is the length of the longest demonstration; `scaling` is what
    shift and scale are based on: mean and standard deviation, or the range (None: unknown).
    """

    recorded: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    names: tuple[str, ...]
    environments: tuple[str, ...]
    words: tuple[str, ...]
    cameras: tuple[Camera, ...]
    execute: int
    ensemble: float | None
    longest: int
    rate: float | None = None
    scaling: Literal["deviation", "range"] | None = None
    farthest: float | None = 10.0  # for values that were almost constant in the demonstrations

    def __post_init__(self) -> None:
        states, actions = len(self.mean), len(self.shift)
        fits = len(self.std) == states <= self.recorded and len(self.scale) == actions > 0
        positive = (self.execute, self.longest + 1, 1 if self.rate is None else self.rate, self.farthest or 1)
        edges = [edge for camera in self.cameras for edge in (*camera.recorded, *camera.read)]
        named = len(self.environments) == len(self.names)
        if not (fits and named and min((*positive, *edges)) > 0) or 0 in (*self.std, *self.scale):
            raise ConfigError(
                f"{FILE} is inconsistent ({states} means of {self.recorded} numbers, {len(self.std)} standard "
                f"deviations, {actions} shifts, {len(self.scale)} scales, {len(self.names)} tasks, "
                f"{len(self.environments)} environments, execute {self.execute}, longest {self.longest}); restore it "
                "from a copy"
            )

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    @property
    def size(self) -> Size | None:
        """The input size of all images; None if cameras differ or there are no cameras."""
        sizes = {tuple(camera.read) for camera in self.cameras}
        return sizes.pop() if len(sizes) == 1 else None  # type: ignore[return-value]

    @property
    def vocab_size(self) -> int:
        """Size of the word vocabulary; 0 if the model does not take words."""
        return len(self.words) + 1 if self.words else 0

    def states(self, states: np.ndarray) -> np.ndarray:
        """Scale states [..., recorded] to model inputs, float32 [..., S]."""
        used = np.asarray(states, np.float32)[..., : len(self.mean)]
        scaled = (used - _array(self.mean)) / _array(self.std)
        return scaled if self.farthest is None else scaled.clip(-self.farthest, self.farthest)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Convert the data's actions, [..., A], to the model's."""
        return ((actions - _array(self.shift)) / _array(self.scale)).astype(np.float32)

    def decode_actions(self, output: np.ndarray) -> np.ndarray:
        """Convert the model's outputs, [..., A], to the robot's actions."""
        return output * _array(self.scale) + _array(self.shift)

    def word_ids(self, name: str) -> list[int]:
        """Return a task's word ids. UserError if all words are unknown."""
        ids = {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}
        word_ids = [ids.get(word, UNKNOWN) for word in words_of(name)]
        if not any(word_ids):
            known = ", ".join(map(repr, self.names))
            raise UserError(f"the task {name!r} has no word that this policy knows; choose one of its tasks: {known}")
        return word_ids

    def batch_word_ids(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the word ids of several tasks, int64 [B, W], and their lengths, int64 [B]."""
        sequences = [self.word_ids(name) for name in names]
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        rows = np.zeros((len(sequences), int(lengths.max())), np.int64)
        for row, ids in zip(rows, sequences):
            row[: len(ids)] = ids
        return rows, lengths

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))


def words_of(name: str) -> list[str]:
    """Return the words and punctuation in a task's name, lower-cased."""
    return _WORD.findall(name.lower().replace("_", " ").replace("-", " "))


def read_codec(directory: Path) -> RobotCodec:
    """Read a policy's codec. UserError if the folder has none."""
    path = directory / FILE
    if not path.is_file():
        raise UserError(
            f"{directory} has no {FILE} with the scales of states and actions; use a run of the robotics recipe or "
            "metaworld"
        )
    return from_dict(RobotCodec, read_json(path), str(path))


def mean_and_std(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of values [N, S]; constant values get 1."""
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return _to_tuple(mean), _to_tuple(np.where(std > _MIN_SPREAD, std, 1.0))


def half_range(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the centre and half the range of values [N, A]; constant values get 1."""
    low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    half = (high - low) / 2
    return _to_tuple((high + low) / 2), _to_tuple(np.where(half > _MIN_SPREAD, half, 1.0))


def _array(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


def _to_tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.tolist())
