"""Recording of episodes of mixed quality or of demonstrations, many in parallel, and their policies."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.demonstrations import Demonstrations, join_demonstrations, task_of
from headway.data.episodes import Episode, Episodes, together
from headway.data.recordings import open_arrays
from headway.data.store import Columns, taking
from headway.data.video import FASTEST, Frames, JoinedFrames, MappedFrames
from headway.environments.copies import Copies
from headway.environments.making import METAWORLD, Spaces, own_function
from headway.errors import UserError

Policy = Callable[[np.ndarray], np.ndarray]
"""States [B, *shape] to actions: discrete int [B], or floats [B, A]."""


class RowPolicy:
    """A policy with memory of its episodes, one per row."""

    def begin(self, row: int, seed: int) -> None:
        """Start an episode in a row."""

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        """The actions for some rows with states [B, *shape], as a `Policy` returns them."""
        raise NotImplementedError

    def took(self, row: int, action: np.ndarray | np.integer | int, reward: float) -> None:
        """Observe the executed action of a row, which may be random, and its reward."""


RANDOM, EXPERT = "random", "expert"
_LAYER = re.compile(r"weight_(\d+)")


@dataclass(frozen=True)
class Network:
    """A feed-forward network with tanh between its layers; states are first normalised by `mean` and `std`.

    In a file: an .npz of weight_0 [F, S], bias_0 [F], weight_1, ... and optionally mean [S] and std [S].
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mean: np.ndarray
    std: np.ndarray
    choices: bool

    def __call__(self, states: np.ndarray) -> np.ndarray:
        x = (states - self.mean) / self.std
        for number, (weight, bias) in enumerate(self.layers):
            x = (np.tanh(x) if number else x) @ weight.T + bias
        return x.argmax(-1) if self.choices else x


def open_policy(name: str, spaces: Spaces, environment: str = "") -> Policy | None:
    """A policy for an environment by name: an .npz file, the user's module:function, or "expert" for the scripted
    policy of a Meta-World `environment`; None for "random".

    Raises UserError for an unknown policy, or one that does not fit the environment.
    """
    if name == RANDOM:
        return None
    if name == EXPERT:
        return _expert(environment)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise UserError(f"there is no policy {path}; use the .npz of a network, module:function or random")
        return read_network(path, spaces)
    if ":" in name:
        found = own_function(name, "the policy")
        assert found is not None
        return _fitting(found, name, spaces)
    raise UserError(
        f"unknown policy {name!r}; use random, expert, the folder of a run, the .npz of a network, or module:function"
    )


def default_policy(environment: str) -> str:
    """The default policy of an environment: its expert if it has one, otherwise random."""
    return EXPERT if environment.startswith(METAWORLD) else RANDOM


def _expert(environment: str) -> Policy:
    if not environment.startswith(METAWORLD):
        raise UserError(
            f"there is no expert for {environment!r}, only for Meta-World tasks ({METAWORLD}reach-v3); use random, "
            "the .npz of a network, or module:function"
        )
    from headway.environments.metaworld import Expert  # imports gymnasium

    return Expert(environment.removeprefix(METAWORLD))


def read_network(path: Path, spaces: Spaces) -> Network:
    """Read a network from states to actions. UserError if its shapes do not fit the spaces."""
    with open_arrays(path) as columns:
        numbers = sorted(int(found[1]) for found in map(_LAYER.fullmatch, columns) if found)
        if numbers != list(range(len(numbers))) or not numbers or any(f"bias_{n}" not in columns for n in numbers):
            raise UserError(f"{path} has no weight_0, bias_0, weight_1, ...; name the layers of a network like this")
        layers = tuple((columns[f"weight_{n}"](), columns[f"bias_{n}"]()) for n in numbers)
        size = int(np.prod(spaces.shape))
        mean = columns["mean"]() if "mean" in columns else np.zeros(size)
        std = columns["std"]() if "std" in columns else np.ones(size)
    wanted = spaces.choices if spaces.choices is not None else spaces.numbers
    width = size
    for number, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{path}: layer {number} has a weight of shape {weight.shape} and a bias of {bias.shape}, but its "
                f"input has {width} numbers; use a policy for this environment (states of {size} numbers)"
            )
        width = len(weight)
    if width != wanted or mean.shape != (size,) or std.shape != (size,):
        raise UserError(f"{path} outputs {width} numbers, but the environment has {spaces.told}; use another policy")
    return Network(layers, mean, std, spaces.choices is not None)


def _fitting(function: Callable[..., object], name: str, spaces: Spaces) -> Policy:
    """A user's function with checked outputs."""

    def act(states: np.ndarray) -> np.ndarray:
        found = np.asarray(function(states))
        shape = (len(states),) if spaces.numbers is None else (len(states), spaces.numbers)
        if spaces.choices is not None and (found.dtype.kind not in "iu" or found.shape != shape):
            raise UserError(
                f"the policy {name!r} returned {found.dtype} of shape {found.shape}; return integers of shape {shape}"
            )
        if found.size != np.prod(shape) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise UserError(
                f"the policy {name!r} returned {found.dtype} of shape {found.shape}; return numbers of shape {shape}"
            )
        if spaces.choices is not None and not (found.min() >= 0 and found.max() < spaces.choices):
            raise UserError(f"the policy {name!r} returned action {found.max()}; return 0 to {spaces.choices} - 1")
        return found.reshape(shape)

    return act


TRIES = 4  # maximum episodes to play per recorded episode


class Mixture(NamedTuple):
    """A policy (None: random) with a fraction `noise` of its actions replaced by random ones."""

    policy: Policy | RowPolicy | None
    noise: float


class Demonstrating(NamedTuple):
    """Record only successful episodes, which end `after` steps after the first success."""

    after: int = 20


Keep = Callable[[int, dict[str, np.ndarray]], None]
"""Receives the images of a finished episode: its number, and uint8 [T, H, W, 3] per camera."""


@dataclass
class _Running:
    """A running episode in one of the environments. `success_step` is the step of its first success."""

    number: int
    generator: np.random.Generator
    states: list[np.ndarray]
    pictures: list[dict[str, np.ndarray]]
    actions: list[np.ndarray | np.integer | int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    done: int | None = None


class Recorder:
    """Plays episodes in vectorised environments: episode e uses mixture e modulo their number; its initial state and
    noise depend only on the seed and e.

    `finished` has the finished episodes by number, even if `run` is interrupted; `failed` counts discarded ones.
    `on_finished` receives the images of each recorded episode.
    """

    def __init__(
        self,
        copies: Copies,
        mixtures: Sequence[Mixture],
        seed: int,
        horizon: int | None,
        demonstrating: Demonstrating | None = None,
    ) -> None:
        """`horizon` is the maximum steps of an episode, required for environments without a limit."""
        if horizon is None and copies.horizon is None:
            raise UserError(
                f"the environment {copies.name!r} has no step limit, so an episode may not end; set one with --horizon"
            )
        self.copies, self.mixtures, self.seed, self.horizon = copies, mixtures, seed, horizon
        self.demonstrating = demonstrating
        self.keep: Keep = lambda number, pictures: None
        self.finished: dict[int, Episode] = {}
        self.failed = 0

    def run(self, episodes: int, at_once: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Record `episodes` episodes, `num_parallel` in parallel; calls `progress` with the number of finished ones.

        If only successful episodes count, failed ones are replaced, up to `MAX_TRIES` times `episodes` in total;
        UserError if too many fail.
        """
        begun = 0
        while (missing := episodes - len(self.finished)) > 0:
            if begun >= TRIES * episodes:
                raise UserError(
                    f"the policy solved {self.copies.name!r} in {len(self.finished):,} of {begun:,} episodes; use a "
                    "better policy"
                )
            some = min(missing, TRIES * episodes - begun)
            waiting = iter(range(begun, begun + some))
            running = {row: self._begin(row, number) for row, number in zip(range(at_once), waiting)}
            while running:
                actions = {}
                for index, (policy, noise) in enumerate(self.mixtures):
                    rows = [row for row, each in running.items() if each.number % len(self.mixtures) == index]
                    # Call each policy once for all its rows.
                    asked = None
                    if policy is not None and rows:
                        seen = np.stack([running[row].states[-1] for row in rows])
                        asked = policy.act(rows, seen) if isinstance(policy, RowPolicy) else policy(seen)
                    for place, row in enumerate(rows):
                        generator = running[row].generator
                        by_chance = asked is None or (noise > 0 and generator.random() < noise)
                        actions[row] = self.copies.spaces.random(generator) if by_chance else asked[place]  # type: ignore[index]
                for row, action in actions.items():
                    before = len(self.finished)
                    if self._step(row, running[row], action):
                        if len(self.finished) > before:
                            progress(len(self.finished))
                        number = next(waiting, None)
                        if number is None:
                            del running[row]
                        else:
                            running[row] = self._begin(row, number)
            begun += some

    def episodes(self) -> Episodes:
        """The finished episodes, in order."""
        found = [self.finished[number] for number in sorted(self.finished)]
        return together(found, f"the recording of {self.copies.name!r}", environment=self.copies.name)

    def _begin(self, row: int, number: int) -> _Running:
        generator = np.random.default_rng([self.seed, number])
        state = self.copies.reset(row, self.seed + number)
        policy = self._policy(number)
        if isinstance(policy, RowPolicy):
            policy.begin(row, self.seed + number)
        return _Running(number, generator, [state], [self.copies.pictures(row)])

    def _policy(self, number: int) -> Policy | RowPolicy | None:
        """The policy of an episode."""
        return self.mixtures[number % len(self.mixtures)].policy

    def _step(self, row: int, each: _Running, action: np.ndarray | np.integer | int) -> bool:
        """One step of a row; returns whether its episode is finished. Actions are stored as executed."""
        spaces = self.copies.spaces
        step = self.copies.step(row, action)
        each.actions.append(int(action) if spaces.choices is not None else np.clip(action, spaces.low, spaces.high))
        each.rewards.append(step.reward)
        policy = self._policy(each.number)
        if isinstance(policy, RowPolicy):
            policy.took(row, each.actions[-1], step.reward)  # type: ignore[arg-type]
        if step.success and each.done is None:
            each.done = len(each.rewards)
        steps = len(each.rewards)
        last = (
            self.demonstrating is not None and each.done is not None and steps >= each.done + self.demonstrating.after
        )
        if not (step.ended or step.cut or last or (self.horizon is not None and steps >= self.horizon)):
            each.states.append(step.state)
            each.pictures.append(self.copies.pictures(row))
            return False
        if self.demonstrating is not None and each.done is None:
            self.failed += 1
            return True
        kind = np.int64 if spaces.choices is not None else np.float32
        self.keep(each.number, {name: np.stack([seen[name] for seen in each.pictures]) for name in each.pictures[0]})
        self.finished[each.number] = Episode(
            np.stack(each.states), np.array(each.actions, kind), np.array(each.rewards), not step.ended
        )
        return True


ROBOT = 4  # leading numbers of a Meta-World state: the position of the hand and the opening of the gripper


class Shots:
    """Images of finished episodes, in a temporary folder: `with EpisodeImages(output_folder) as images:`"""

    def __init__(self, beside: Path) -> None:
        """Raises UserError if the output folder cannot be created."""
        self._beside = beside
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> Shots:
        with taking(self._beside):
            self._beside.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix=".pictures.", dir=self._beside)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def keep(self, task: int, number: int, pictures: dict[str, np.ndarray]) -> None:
        """Store the images of an episode of a task: uint8 [T, H, W, 3] per camera."""
        if not pictures:
            return
        files = {_file(task, number, camera): each for camera, each in pictures.items()}
        with Columns(Path(self._folder.name), dict.fromkeys(files, np.uint8)) as columns:
            for name, each in files.items():
                self._size = (each.shape[1], each.shape[2])
                columns.append(name, each)

    def frames(self, task: int, lengths: dict[int, int], camera: str) -> Frames:
        """The concatenated images of a camera in episodes of a task, given by number and length."""
        folder = Path(self._folder.name)
        files = {_file(task, number, camera): length for number, length in lengths.items()}
        return JoinedFrames([KeptFrames(folder, name, length, self._size) for name, length in files.items()])


class KeptFrames:
    """The N images of an episode in a file of `EpisodeImages`, memory-mapped only while they are read: a recording has
    more files than a process may keep open.
    """

    def __init__(self, folder: Path, name: str, count: int, size: tuple[int, int]) -> None:
        self.size = self.recorded = size
        self.content = name
        self._folder, self._name, self._count = folder, name, count

    def __len__(self) -> int:
        return self._count

    def read(self, steps: np.ndarray) -> np.ndarray:
        """The images of steps int64 [K], in any order: uint8 [K, H, W, 3]."""
        return MappedFrames(self._folder, self._name, self._count, self.size).read(steps)


def _file(task: int, number: int, camera: str) -> str:
    return f"{task}-{number}-{camera}"


def demonstrations(recorders: Sequence[Recorder], cameras: Sequence[str], shots: Shots | None) -> Demonstrations:
    """The finished episodes, task by task."""
    parts = []
    for task, recorder in enumerate(recorders):
        if not recorder.finished:
            continue
        episodes, name = recorder.episodes(), recorder.copies.name
        lengths = {number: len(recorder.finished[number].rewards) for number in sorted(recorder.finished)}
        parts.append(
            Demonstrations(
                episodes.states,
                episodes.actions,
                episodes.ends,
                {camera: shots.frames(task, lengths, camera) for camera in cameras} if shots else {},
                np.zeros(len(episodes), np.int64),
                (task_of(name),),
                np.zeros(len(episodes), np.uint8),
                (name,),
                recorder.copies.frame_rate,
            )
        )
    return join_demonstrations(parts, [recorder.copies.name for recorder in recorders if recorder.finished])


def robot_numbers(environments: Sequence[str]) -> int | None:
    """The number of leading values of a state that describe the robot, if it is known for all environments."""
    return ROBOT if all(name.startswith(METAWORLD) for name in environments) else None


def check_together(recorders: Sequence[Recorder]) -> None:
    """UserError for environments that cannot share a folder, because their sizes or rates differ."""
    first = recorders[0].copies
    for copies in (recorder.copies for recorder in recorders[1:]):
        for what, own, theirs in (
            ("states of {} numbers", copies.spaces.shape[0], first.spaces.shape[0]),
            ("actions of {} numbers", copies.spaces.numbers, first.spaces.numbers),
            ("{} steps per second", copies.frame_rate, first.frame_rate),
        ):
            if own != theirs:
                raise UserError(
                    f"{copies.name!r} has {what.format(own)}, but {first.name!r} has {what.format(theirs)}; record "
                    "them into separate folders"
                )


def check_demonstrable(recorder: Recorder) -> None:
    """UserError for an environment whose episodes cannot be stored in a LeRobotDataset folder."""
    copies = recorder.copies
    if copies.spaces.choices is not None or copies.spaces.image:
        what = "states are images" if copies.spaces.image else f"actions are {copies.spaces.told}"
        raise UserError(
            f"a folder stores states and actions as numbers, but {what} in {copies.name!r}; use an .npz file"
        )
    if copies.frame_rate is None:
        raise UserError(
            f"a folder needs the steps per second, which {copies.name!r} does not define; use an .npz file, or set "
            "render_fps in the environment's metadata"
        )
    if copies.frame_rate > FASTEST:
        raise UserError(
            f"{copies.name!r} has {copies.frame_rate:g} steps per second, but videos have at most {FASTEST}; use an "
            ".npz file"
        )
