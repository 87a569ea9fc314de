"""Record episodes of mixed quality, or demonstrations, many in parallel; and the policies that play them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.array_store import ColumnWriter, output_errors
from headway.data.episode_files import open_arrays
from headway.data.episodes import Episode, Episodes, collate_episodes, concatenate_episodes, numbers_text
from headway.data.video import MAX_FRAME_RATE, Frames, JoinedFrames, MappedFrames
from headway.environments.factory import METAWORLD, Spaces
from headway.environments.rollouts import Player
from headway.environments.vector_env import VectorEnv
from headway.errors import UserError
from headway.io.user_callables import import_user_callable

Policy = Callable[[np.ndarray], np.ndarray]
"""States [B, *shape] to actions: discrete int [B], or floats [B, A]."""

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
        if not environment.startswith(METAWORLD):
            raise UserError(
                f"there is no expert for {environment!r}, only for Meta-World tasks ({METAWORLD}reach-v3); use random, "
                "a network's .npz file, or module:function"
            )
        from headway.environments.metaworld import Expert  # imports gymnasium

        return Expert(environment.removeprefix(METAWORLD))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".npz":
        if not path.is_file():
            raise UserError(f"there is no policy {path}; use a network's .npz file, module:function or random")
        return read_network(path, spaces)
    if ":" in name:
        function = import_user_callable(name, "the policy")
        assert function is not None

        def act(states: np.ndarray) -> np.ndarray:
            actions = np.asarray(function(states))
            shape = (len(states),) if spaces.action_size is None else (len(states), spaces.action_size)
            if spaces.n_actions is not None and (actions.dtype.kind not in "iu" or actions.shape != shape):
                raise UserError(
                    f"the policy {name!r} returned {actions.dtype} of shape {actions.shape}; return integers of shape "
                    f"{shape}"
                )
            if actions.size != np.prod(shape) or actions.dtype.kind not in "fiu" or not np.isfinite(actions).all():
                raise UserError(
                    f"the policy {name!r} returned {actions.dtype} of shape {actions.shape}; return numbers of shape "
                    f"{shape}"
                )
            if spaces.n_actions is not None and not (actions.min() >= 0 and actions.max() < spaces.n_actions):
                raise UserError(
                    f"the policy {name!r} returned action {actions.max()}; return 0 to {spaces.n_actions} - 1"
                )
            return actions.reshape(shape)

        return act
    raise UserError(
        f"unknown policy {name!r}; use random, expert, a run's folder, a network's .npz file, or module:function"
    )


def default_policy(environment: str) -> str:
    """The default policy of an environment: its expert if it has one, otherwise random."""
    return EXPERT if environment.startswith(METAWORLD) else RANDOM


def read_network(path: Path, spaces: Spaces) -> Network:
    """Read a network from states to actions. UserError if its shapes do not fit the spaces."""
    with open_arrays(path) as columns:
        layer_numbers = sorted(int(match[1]) for match in map(_LAYER.fullmatch, columns) if match)
        is_complete = layer_numbers == list(range(len(layer_numbers))) and all(
            f"bias_{n}" in columns for n in layer_numbers
        )
        if not (layer_numbers and is_complete):
            raise UserError(f"{path} has no weight_0, bias_0, weight_1, ...; name the network's layers like this")
        layers = tuple((columns[f"weight_{n}"](), columns[f"bias_{n}"]()) for n in layer_numbers)
        size = int(np.prod(spaces.shape))
        mean = columns["mean"]() if "mean" in columns else np.zeros(size)
        std = columns["std"]() if "std" in columns else np.ones(size)
    output_size = spaces.n_actions if spaces.n_actions is not None else spaces.action_size
    width = size
    for number, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{path}: layer {number} has a weight of shape {weight.shape} and a bias of {bias.shape}, but its "
                f"input has {numbers_text(width)}; use a policy for this environment, which has states of "
                f"{numbers_text(size)}"
            )
        width = len(weight)
    if width != output_size or mean.shape != (size,) or std.shape != (size,):
        raise UserError(
            f"{path} outputs {numbers_text(width)}, but the environment has {spaces.action_text}; use another policy"
        )
    return Network(layers, mean, std, spaces.n_actions is not None)


MAX_TRIES = 4  # maximum episodes to play per recorded episode
ROBOT_STATE_SIZE = 4  # leading numbers of a Meta-World state: the hand's position and the gripper's opening


class Mixture(NamedTuple):
    """A policy (None: random) with a fraction `noise` of its actions replaced by random ones."""

    policy: Policy | Player | None
    noise: float


class SuccessFilter(NamedTuple):
    """Record only successful episodes, which end `after` steps after the first success."""

    after: int = 20


ImageCallback = Callable[[int, dict[str, np.ndarray]], None]
"""Receives the images of a finished episode: its number, and uint8 [T, H, W, 3] per camera."""


@dataclass
class _RunningEpisode:
    """A running episode in one of the environments. `success_step` is the step of its first success."""

    number: int
    policy: Policy | Player | None
    generator: np.random.Generator
    states: list[np.ndarray]
    images: list[dict[str, np.ndarray]]
    actions: list[np.ndarray | int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success_step: int | None = None


class Recorder:
    """Plays episodes in vectorised environments: episode e uses mixture e modulo the number of mixtures; its initial
    state and noise depend only on the seed and e.

    `finished` has the finished episodes by number, even if `run` is interrupted; `failed` counts discarded ones.
    `on_finished` receives the images of each recorded episode.
    """

    def __init__(
        self,
        envs: VectorEnv,
        mixtures: Sequence[Mixture],
        seed: int,
        horizon: int | None,
        success_filter: SuccessFilter | None = None,
    ) -> None:
        """`horizon` is the maximum number of steps per episode, required for environments without a limit."""
        if horizon is None and envs.horizon is None:
            raise UserError(
                f"the environment {envs.name!r} has no step limit, so an episode may not end; set one with --horizon"
            )
        self.envs, self.mixtures, self.seed, self.horizon = envs, mixtures, seed, horizon
        self.success_filter = success_filter
        self.on_finished: ImageCallback = lambda number, pictures: None
        self.finished: dict[int, Episode] = {}
        self.failed = 0

    def run(self, episodes: int, num_parallel: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Record `episodes` episodes, `num_parallel` in parallel; calls `progress` with the number of finished ones.

        If only successful episodes count, failed ones are replaced, up to `MAX_TRIES` times `episodes` in total;
        UserError if too many fail.
        """
        started = 0
        while (missing := episodes - len(self.finished)) > 0:
            if started >= MAX_TRIES * episodes:
                raise UserError(
                    f"the policy solved {self.envs.name!r} in {len(self.finished):,} of {started:,} episodes; use a "
                    "better policy"
                )
            batch_count = min(missing, MAX_TRIES * episodes - started)
            numbers = iter(range(started, started + batch_count))
            running = {row: self._start_episode(row, number) for row, number in zip(range(num_parallel), numbers)}
            while running:
                for row, action in self._choose_actions(running).items():
                    if self._step(row, running[row], action):
                        if running[row].number in self.finished:
                            progress(len(self.finished))
                        number = next(numbers, None)
                        if number is None:
                            del running[row]
                        else:
                            running[row] = self._start_episode(row, number)
            started += batch_count

    def episodes(self) -> Episodes:
        """The finished episodes, in order."""
        finished = [self.finished[number] for number in sorted(self.finished)]
        return collate_episodes(finished, f"the recording of {self.envs.name!r}", environment=self.envs.name)

    def _start_episode(self, row: int, number: int) -> _RunningEpisode:
        policy, generator = (
            self.mixtures[number % len(self.mixtures)].policy,
            np.random.default_rng([self.seed, number]),
        )
        state = self.envs.reset(row, self.seed + number)
        if isinstance(policy, Player):
            policy.start_episode(row, self.seed + number)
        return _RunningEpisode(number, policy, generator, [state], [self.envs.images(row)])

    def _choose_actions(self, running: dict[int, _RunningEpisode]) -> dict[int, np.ndarray | np.integer | int]:
        """The next action in each row. Each policy is called once for all its rows."""
        actions = {}
        for index, (policy, noise) in enumerate(self.mixtures):
            rows = [row for row, episode in running.items() if episode.number % len(self.mixtures) == index]
            policy_actions = None
            if policy is not None and rows:
                states = np.stack([running[row].states[-1] for row in rows])
                policy_actions = policy.act(rows, states) if isinstance(policy, Player) else policy(states)
            for position, row in enumerate(rows):
                generator = running[row].generator
                is_random = policy_actions is None or (noise > 0 and generator.random() < noise)
                actions[row] = self.envs.spaces.random(generator) if is_random else policy_actions[position]  # type: ignore[index]
        return actions

    def _step(self, row: int, episode: _RunningEpisode, action: np.ndarray | np.integer | int) -> bool:
        """Take a row's next step; return whether its episode is finished. Actions are stored as executed."""
        spaces, success_filter = self.envs.spaces, self.success_filter
        step = self.envs.step(row, action)
        episode.actions.append(int(action) if spaces.action_size is None else np.clip(action, spaces.low, spaces.high))
        episode.rewards.append(step.reward)
        if isinstance(episode.policy, Player):
            episode.policy.observe([row], np.array(episode.actions[-1:]), np.array([step.reward]))
        steps = len(episode.rewards)
        if step.success and episode.success_step is None:
            episode.success_step = steps
        is_over = step.terminated or step.truncated or (self.horizon is not None and steps >= self.horizon)
        if success_filter is not None and episode.success_step is not None:
            is_over |= steps >= episode.success_step + success_filter.after
        if not is_over:
            episode.states.append(step.state)
            episode.images.append(self.envs.images(row))
        elif success_filter is not None and episode.success_step is None:
            self.failed += 1
        else:
            images = {
                name: np.stack([step_images[name] for step_images in episode.images]) for name in episode.images[0]
            }
            self.on_finished(episode.number, images)
            actions = np.array(episode.actions, np.int64 if spaces.action_size is None else np.float32)
            states, rewards = np.stack(episode.states), np.array(episode.rewards)
            self.finished[episode.number] = Episode(states, actions, rewards, not step.terminated)
        return is_over


class EpisodeImages:
    """Images of finished episodes, in a temporary folder: `with EpisodeImages(output_folder) as images:`"""

    def __init__(self, output_folder: Path) -> None:
        """Raises UserError if the output folder cannot be created."""
        self._output_folder = output_folder
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> EpisodeImages:
        with output_errors(self._output_folder):
            self._output_folder.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix=".pictures.", dir=self._output_folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def add(self, task: int, number: int, images: dict[str, np.ndarray]) -> None:
        """Store the images from one episode of a task: uint8 [T, H, W, 3] per camera."""
        files = {f"{task}-{number}-{camera}": frames for camera, frames in images.items()}
        with ColumnWriter(Path(self._folder.name), dict.fromkeys(files, np.uint8)) as columns:
            for name, frames in files.items():
                self._size = (frames.shape[1], frames.shape[2])
                columns.append(name, frames)

    def frames(self, task: int, lengths: dict[int, int], camera: str) -> Frames:
        """The concatenated images of a camera in episodes of a task, given by number and length."""
        folder = Path(self._folder.name)
        files = {f"{task}-{number}-{camera}": length for number, length in lengths.items()}
        return JoinedFrames([MappedFrames(folder, name, length, self._size) for name, length in files.items()])


def collect_demonstrations(
    recorders: Sequence[Recorder], cameras: Sequence[str], images: EpisodeImages | None
) -> Episodes:
    """The finished episodes, task by task."""
    parts = []
    for task, recorder in enumerate(recorders):
        if recorder.finished:
            lengths = {number: len(recorder.finished[number].rewards) for number in sorted(recorder.finished)}
            frames = {camera: images.frames(task, lengths, camera) for camera in cameras} if images else {}
            parts.append(replace(recorder.episodes(), cameras=frames, rate=recorder.envs.frame_rate))
    names = [recorder.envs.name for recorder in recorders if recorder.finished]
    return concatenate_episodes(parts, names, one_environment=False)


def robot_state_size(environments: Sequence[str]) -> int | None:
    """How many leading values of a state describe the robot, if known for all environments."""
    return ROBOT_STATE_SIZE if all(name.startswith(METAWORLD) for name in environments) else None


def check_same_format(recorders: Sequence[Recorder]) -> None:
    """UserError for environments that cannot share a folder, because their sizes or step rates differ."""

    def describe(envs: VectorEnv) -> tuple[str, ...]:
        rate = f"{envs.frame_rate} steps per second"
        return (
            f"states of {numbers_text(*envs.spaces.shape)}",
            f"actions of {numbers_text(envs.spaces.action_size)}",
            rate,
        )

    first = recorders[0].envs
    for envs in (recorder.envs for recorder in recorders[1:]):
        for ours, theirs in zip(describe(envs), describe(first)):
            if ours != theirs:
                raise UserError(
                    f"{envs.name!r} has {ours}, but {first.name!r} has {theirs}; record them into separate folders"
                )


def check_demonstrable(recorder: Recorder) -> None:
    """UserError for an environment whose episodes cannot be stored in a LeRobotDataset folder."""
    envs = recorder.envs
    if envs.spaces.n_actions is not None or envs.spaces.image:
        reason = "states are images" if envs.spaces.image else f"actions are {envs.spaces.action_text}"
        raise UserError(
            f"a folder stores states and actions as numbers, but {reason} in {envs.name!r}; use an .npz file"
        )
    if envs.frame_rate is None:
        raise UserError(
            f"a folder needs the steps per second, which {envs.name!r} does not define; use an .npz file, or set "
            "render_fps in the environment's metadata"
        )
    if envs.frame_rate > MAX_FRAME_RATE:
        raise UserError(
            f"{envs.name!r} has {envs.frame_rate:g} steps per second, but videos have at most {MAX_FRAME_RATE}; use an "
            ".npz file"
        )
