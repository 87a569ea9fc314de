"""Rollouts: episodes that an agent plays in parallel, their scores and their videos."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from headway.data.episodes import Episode
from headway.data.video import VideoWriter, check_video_path
from headway.environments.vector_env import VectorEnv
from headway.errors import UserError, logger
from headway.metrics import bootstrap_mean

MAX_PARALLEL = 16  # maximum parallel episodes
SEEDS = {"validation": 1_000_000, "test": 2_000_000, "all": 2_000_000}
"""The first seeds of evaluation episodes, distinct from those of recordings and of other splits."""

REPORT_SEEDS = 3_000_000
"""The first seed of episodes for reports, distinct from those of evaluations."""

_LOG = logger(__name__)
_D4RL_BOUNDS = {  # D4RL's returns of a random and of an expert policy
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
_MAX_FRAME_RATE = 30.0  # default and maximum frames per second
_MAX_WAITING = 8  # maximum frames waiting for the encoder, about 750 kB each
_MAX_DENOMINATOR = 1000  # the largest denominator of frames per second
_END_SECONDS = 0.7  # seconds for which the end of an episode is shown
_CAPTION_HEIGHT, _FONT_SIZE = 24, 14  # pixels of the caption's height, and of its font size


def evaluation_seeds(split: str, episodes: int) -> range:
    """The seeds of an evaluation. UserError for a split without episodes."""
    if split not in SEEDS:
        raise UserError(f"no episodes are played in the split {split!r}; use {', '.join(SEEDS)}")
    return range(SEEDS[split], SEEDS[split] + episodes)


def training_seed(stream: int, seed: int, episode: int) -> int:
    """The seed of an episode that a learning model plays: a function of its number, distinct from evaluation seeds."""
    return int(np.random.default_rng([stream, seed, episode]).integers(SEEDS["validation"]))


def check_no_chunking(execute: int | None, ensemble: float | Literal["run"] | None, source: str) -> None:
    """UserError for action chunk settings with a model that predicts one action at a time."""
    if execute is not None or ensemble != "run":
        raise UserError(f"{source} predicts one action at a time; remove execute and ensemble")


def target_returns(target_return: float | Sequence[float]) -> list[float]:
    """The target returns as a list: one, several or none."""
    return [target_return] if isinstance(target_return, (int, float)) else list(target_return)


def first_seed(seed: int | None, episodes: int = 1) -> int:
    """The seed of the first of several episodes: `seed`, with a warning if recordings may use it, or the first seed of
    the test split. UserError for fewer than 1 episode, or a negative seed.
    """
    if episodes < 1 or (seed is not None and seed < 0):
        raise UserError(f"episodes is {episodes} and seed is {seed}; use at least 1 episode and a seed of at least 0")
    if seed is not None and seed < SEEDS["validation"]:
        _LOG.warning(
            "recordings may start from seed %d, so the model may have been trained on these episodes; "
            "remove --seed, or use %d or more",
            seed,
            SEEDS["validation"],
        )
    return SEEDS["test"] if seed is None else seed


def sample_choices(logits: Float[np.ndarray, "B C"], uniform: Float[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
    """Sample a choice per row from its logits with random numbers from 0 to 1."""
    odds = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
    return (odds < uniform[:, None] * odds[:, -1:]).sum(-1)


class Player:
    """A policy that plays an episode in each row. In a rollout all episodes start together; a recording starts a new
    one in a row as soon as the last one is over.
    """

    limit: int | None = None
    """The maximum steps of an episode; None for no limit."""

    def start_episode(self, row: int, seed: int) -> None:
        """Start an episode of a recording."""
        raise NotImplementedError

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        """The actions for some rows in their current states [B, *shape]: int [B] or float [B, A]."""
        raise NotImplementedError

    def observe(self, rows: Sequence[int], actions: np.ndarray, rewards: np.ndarray) -> None:
        """Observe the last actions as they were executed, and their rewards [B]."""

    def keep_rows(self, kept: np.ndarray) -> None:
        """In a rollout, continue only these of the last rows."""


class SeparateRows(Player):
    """Plays the episodes of a recording with one player per row, because they differ in age."""

    def __init__(self, make: Callable[[Sequence[int]], Player]) -> None:
        self.make, self._players = make, dict[int, Player]()

    def start_episode(self, row: int, seed: int) -> None:
        self._players[row] = self.make([seed])

    def act(self, rows: Sequence[int], states: np.ndarray) -> np.ndarray:
        return np.concatenate([self._players[row].act([0], state[None]) for row, state in zip(rows, states)])

    def observe(self, rows: Sequence[int], actions: np.ndarray, rewards: np.ndarray) -> None:
        for index, row in enumerate(rows):
            self._players[row].observe([0], actions[index : index + 1], rewards[index : index + 1])


class PlayedEpisodes(NamedTuple):
    """Returns and lengths of E episodes. `truncated` counts those that the player's limit ended; `succeeded` is the
    last step, from 1, at which each was a success (0 if it never was; None if the environment does not report it).
    """

    returns: np.ndarray
    lengths: np.ndarray
    truncated: int = 0
    succeeded: np.ndarray | None = None


class EpisodeWatch(Protocol):
    """Watches the first `episodes` episodes one after the other. `render` returns the current image, uint8 [H, W, 3];
    `return_so_far` is the return so far.
    """

    @property
    def episodes(self) -> int: ...

    def step(self, render: Callable[[], np.ndarray], episode: int, return_so_far: float) -> None:
        """Called before each action; episodes are numbered from 0."""
        ...

    def end(self, render: Callable[[], np.ndarray], episode: int, return_so_far: float) -> None:
        """Called after the last action of an episode."""
        ...


def play_episodes(
    make_player: Callable[[Sequence[int]], Player],
    envs: VectorEnv,
    seeds: Sequence[int],
    watch: EpisodeWatch | None = None,
    *,
    until_success: bool = False,
    record: Callable[[int, Episode], None] | None = None,
) -> PlayedEpisodes:
    """Play one episode per seed, as many in parallel as there are `envs`. `make_player` creates the player for a group
    of seeds, and `watch` observes the first episodes. With `until_success` an episode ends when its task is solved.
    `record` receives each episode with its number.
    """
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    truncated, succeeded, reported = np.zeros(len(seeds), bool), np.zeros(len(seeds), np.int64), False
    for group in map(np.array, parallel_groups(len(seeds), len(envs), watch)):
        player, rows = make_player([seeds[number] for number in group]), np.arange(len(group))
        states = np.stack([envs.reset(row, seeds[number]) for row, number in enumerate(group)])
        transitions: list[list[Any]] = [[] for _ in group]
        watched = watch if watch is not None and group[0] < watch.episodes else None
        while len(rows):
            numbers = group[rows]
            if watched is not None and rows[0] == 0:
                watched.step(envs.frame, int(group[0]), float(returns[group[0]]))
            actions = player.act(rows.tolist(), states)
            if envs.spaces.n_actions is None:
                actions = np.clip(actions, envs.spaces.low, envs.spaces.high)
            steps = [envs.step(row, action) for row, action in zip(rows.tolist(), actions)]
            rewards = np.array([step.reward for step in steps])
            player.observe(rows.tolist(), actions, rewards)
            returns[numbers] += rewards
            lengths[numbers] += 1
            if record is not None:
                for row, *transition in zip(rows.tolist(), states, actions, rewards):
                    transitions[row].append(transition)
            reported |= any(step.success is not None for step in steps)  # some report it only at the end
            solved = np.array([bool(step.success) for step in steps])
            succeeded[numbers[solved]] = lengths[numbers[solved]]
            is_over = np.array([step.terminated or step.truncated for step in steps]) | (solved & until_success)
            if player.limit is not None:
                truncated[numbers] = ~is_over & (lengths[numbers] >= player.limit)
            running = np.flatnonzero(~is_over & ~truncated[numbers])
            if watched is not None and rows[0] == 0 and 0 not in running:
                watched.end(envs.frame, int(group[0]), float(returns[group[0]]))
            if len(running) < len(rows):
                player.keep_rows(running)
            rows, states = rows[running], np.array([steps[index].state for index in running])
        if record is not None:
            for number, columns in zip(group.tolist(), transitions):
                episode_states, actions, rewards = map(np.array, zip(*columns))
                record(number, Episode(episode_states, actions, rewards))
    return PlayedEpisodes(returns, lengths, int(truncated.sum()), succeeded if reported else None)


def parallel_groups(episodes: int, max_parallel: int, watch: EpisodeWatch | None) -> list[list[int]]:
    """Groups of at most `max_parallel` episodes that are played in parallel. Only the first environment can be
    rendered, so each watched episode is the first of a group.
    """
    watched = 0 if watch is None else min(watch.episodes, episodes)
    groups = [[number] for number in range(watched)]
    remaining = deque(range(watched, episodes))
    for group in groups:
        group += [remaining.popleft() for _ in range(min(max_parallel - 1, len(remaining)))]
    while remaining:
        groups.append([remaining.popleft() for _ in range(min(max_parallel, len(remaining)))])
    return groups


def return_scores(episodes: PlayedEpisodes, environment: str) -> dict[str, Any]:
    """The mean return with its interval, also normalised if D4RL has bounds, and the mean length."""
    mean = float(episodes.returns.mean())
    scores: dict[str, Any] = {"return_mean": mean, "return_mean_interval": bootstrap_mean(episodes.returns)}
    # D4RL's bounds are for older versions of these environments, whose rewards differ only by small terms from version
    # 5. The normalised return is a percentage of an expert's.
    low, high = _D4RL_BOUNDS.get(environment.partition("-v")[0], (0.0, 0.0))
    if low < high:
        scores["return_normalised"] = 100 * (mean - low) / (high - low)
    scores |= {"length_mean": float(episodes.lengths.mean()), "samples": len(episodes.returns)}
    if episodes.truncated:
        scores["cut"] = episodes.truncated
    return scores


class FilmConfig(NamedTuple):
    """A video of the first `episodes`, `speed` times as fast as real time."""

    path: Path
    episodes: int = 3
    speed: float = 1.0


def film_config(path: str | Path | None, episodes: int, speed: float) -> FilmConfig | None:
    """The requested video, or None. UserError for invalid settings, before any work."""
    if path is None:
        return None
    if episodes < 1 or not 0 < speed < math.inf:
        raise UserError(
            f"cannot make a video of {episodes} episodes at {speed:g} times their speed; use at least 1 episode "
            "and a speed above 0"
        )
    check_video_path(Path(path))
    return FilmConfig(Path(path), episodes, speed)


@contextmanager
def open_film(config: FilmConfig | None, rate: float | None) -> Iterator[EpisodeFilm | None]:
    """Open a video for episodes with `rate` steps per second, if known; None without a video."""
    if config is None:
        yield None
        return
    steps_per_frame, frame_rate = frame_sampling((rate or _MAX_FRAME_RATE) * config.speed)
    if frame_rate < 1:
        raise UserError(
            f"a video at speed {config.speed:g} would have {float(frame_rate):.2g} frames per second; raise --speed"
        )
    with VideoWriter(config.path, frame_rate, fast=True) as film, ThreadPoolExecutor(1, "film") as encoder:
        episode_film = EpisodeFilm(film, encoder, steps_per_frame, frame_rate, config.episodes)
        yield episode_film
        for future in episode_film.waiting:
            future.result()


def frame_sampling(rate: float) -> tuple[int, Fraction]:
    """The steps per frame of a video, and its frames per second, at most 30."""
    steps_per_frame = max(1, math.ceil(rate / _MAX_FRAME_RATE))
    return steps_per_frame, Fraction(rate).limit_denominator(_MAX_DENOMINATOR) / steps_per_frame


@dataclass
class EpisodeFilm:
    """Writes episodes to a video. The caption has the episode's number and return, and `caption_suffix`, which is for
    the model's targets. `rewards` has those of each step, a list per episode.

    A separate thread encodes frames while the next ones are played; only frames in the video are rendered.
    """

    film: VideoWriter
    encoder: ThreadPoolExecutor
    steps_per_frame: int
    frame_rate: Fraction
    episodes: int
    caption_suffix: str = ""
    waiting: deque[Future[None]] = field(default_factory=deque)
    rewards: list[list[float]] = field(default_factory=list)
    _steps: int = 0
    _return: float = 0.0

    def step(self, render: Callable[[], np.ndarray], episode: int, return_so_far: float) -> None:
        if self._steps == 0:
            self.rewards.append([])
        else:
            self.rewards[-1].append(return_so_far - self._return)
        if self._steps % self.steps_per_frame == 0:
            self._add_frame(render(), episode, return_so_far)
        self._steps, self._return = self._steps + 1, return_so_far

    def end(self, render: Callable[[], np.ndarray], episode: int, return_so_far: float) -> None:
        frame = render()
        for _ in range(max(1, round(_END_SECONDS * self.frame_rate))):
            self._add_frame(frame, episode, return_so_far)
        self.rewards[-1].append(return_so_far - self._return)
        self._steps, self._return = 0, 0.0

    def _add_frame(self, frame: np.ndarray, episode: int, return_so_far: float) -> None:
        text = f"episode {episode + 1} of {self.episodes}{self.caption_suffix}   return {return_so_far:.5g}"
        self.waiting.append(self.encoder.submit(lambda: self.film.add(with_caption(frame, text))))
        if len(self.waiting) > _MAX_WAITING:
            self.waiting.popleft().result()


def with_caption(frame: np.ndarray, text: str) -> np.ndarray:
    """An image with a caption below it, cut to its width; without the package pillow only the image."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return frame
    bar = Image.new("RGB", (frame.shape[1], _CAPTION_HEIGHT), "#e8e8e8")
    position = (6, (_CAPTION_HEIGHT - _FONT_SIZE) // 2)
    ImageDraw.Draw(bar).text(position, text, "black", ImageFont.load_default(_FONT_SIZE))
    return np.concatenate([frame, np.asarray(bar)])
