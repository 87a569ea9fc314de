"""Convert a robot's observations and actions for a model, with the scales and names stored next to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from headway.data.affine_scale import AffineScale
from headway.environments.acting_codec import ActingCodec
from headway.environments.factory import Spaces
from headway.errors import ConfigError, UserError
from headway.formats.lerobot import POLICIES, parse_scales
from headway.formats.usage import Usage

UNKNOWN = 0  # id for words that do not occur in any demonstrated task
_ASSUMED_LENGTH = 500  # assumed steps per episode of a policy trained with LeRobot
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
class RobotCodec(ActingCodec):
    """States have `recorded` values, of which the first len(`mean`) are used: minus `mean`, divided by `std`, and
    clipped to `farthest`. Actions are taken minus `shift`, divided by `scale`.

    `names` are the tasks, `environments` where each can be played ("" if unknown), and `words` the vocabulary of the
    names if the model takes them. A new chunk is predicted every `execute` actions; `ensemble` is the m of temporal
    ensembling (None: only the newest chunk). `longest` is the length of the longest demonstration; `scaling` is what
    shift and scale are based on: mean and standard deviation, or the range (None: unknown).
    """

    FILE: ClassVar[str] = "robotics.json"
    CONTENT: ClassVar[str] = "the scales of states and actions"
    RECIPES: ClassVar[str] = "the robotics or metaworld recipe"
    NOUN: ClassVar[str] = "policy"
    TRAINING: ClassVar[str] = "on demonstrations from this one"

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
                f"{self.FILE} is inconsistent ({states} means of {self.recorded} numbers, {len(self.std)} standard "
                f"deviations, {actions} shifts, {len(self.scale)} scales, {len(self.names)} tasks, "
                f"{len(self.environments)} environments, execute {self.execute}, longest {self.longest}); restore it "
                "from a copy"
            )

    @property
    def actions(self) -> int:
        """Number of values per action."""
        return len(self.scale)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.recorded,)

    def accepts_states(self, spaces: Spaces) -> bool:
        """With cameras, a policy may use only the first values of a state."""
        fits = spaces.shape[0] >= self.recorded if self.cameras else spaces.shape[0] == self.recorded
        return fits and not spaces.image

    @property
    def environment_names(self) -> list[str]:
        return list(dict.fromkeys(filter(None, self.environments)))

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
        scaled = AffineScale(self.mean, self.std).encode(used)
        return scaled if self.farthest is None else scaled.clip(-self.farthest, self.farthest)

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """Convert the data's actions, [..., A], to the model's."""
        return AffineScale(self.shift, self.scale).encode(actions)

    def decode_actions(self, output: np.ndarray) -> np.ndarray:
        """Convert the model's outputs, [..., A], to the robot's actions."""
        return AffineScale(self.shift, self.scale).decode(output)

    def word_ids(self, name: str) -> list[int]:
        """Return a task's word ids. UserError if all words are unknown."""
        ids = {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}
        word_ids = [ids.get(word, UNKNOWN) for word in words_of(name)]
        if not any(word_ids):
            known = ", ".join(map(repr, self.names))
            raise UserError(f"the task {name!r} has no word that this policy knows; choose one of its tasks: {known}")
        return word_ids


def words_of(name: str) -> list[str]:
    """Return the words and punctuation in a task's name, lower-cased."""
    return _WORD.findall(name.lower().replace("_", " ").replace("-", " "))


def load_codec(directory: Path, usage: Usage) -> RobotCodec:
    """Return the codec stored next to a policy or, for a published policy, from its usage, which does not have task
    names and environments. UserError if there is none.
    """
    if usage.family not in POLICIES or (directory / RobotCodec.FILE).is_file():
        return RobotCodec.read(directory)
    scales = parse_scales(usage.processor)
    mean, std = ((*getattr(scales.robot, name), *getattr(scales.surroundings, name)) for name in ("shift", "scale"))
    cameras = tuple(
        Camera(part.short, part.size, part.size, part.scale.shift, part.scale.scale) for part in scales.cameras
    )
    return RobotCodec(
        recorded=len(mean),
        mean=mean,
        std=std,
        shift=scales.actions.shift,
        scale=scales.actions.scale,
        names=(),
        environments=(),
        words=(),
        cameras=cameras,
        execute=scales.execute,
        ensemble=scales.ensemble,
        longest=_ASSUMED_LENGTH,
        farthest=None,
    )
