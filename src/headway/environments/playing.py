"""Rollouts: episodes that an agent plays in parallel, their returns, and their films."""

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

from headway.data.video import Film, check_film
from headway.environments.copies import Copies
from headway.errors import UserError, logger
from headway.metrics import bootstrap_mean

SEEDS = {"validation": 1_000_000, "test": 2_000_000, "all": 2_000_000}
"""The first seeds of evaluation episodes, distinct from those of recordings and of other splits."""

PICTURED = 3_000_000
"""The first seed of episodes for reports, distinct from those of evaluations."""

_LOG = logger(__name__)
_BOUNDS = {  # D4RL's returns of a random and of an expert policy
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


def normalised(environment: str, value: float) -> float | None:
    """A return in per cent of an expert's; None if D4RL has no bounds. Its bounds are for older versions of these
    environments, whose rewards differ from those of version 5 only by small terms.
    """
    bounds = _BOUNDS.get(environment.partition("-v")[0])
    return None if bounds is None else 100 * (value - bounds[0]) / (bounds[1] - bounds[0])


def seeds_of(split: str, episodes: int) -> range:
    """The seeds of an evaluation. UserError for a split without episodes."""
    if split not in SEEDS:
        raise UserError(f"no episodes are played in the split {split!r}; use {', '.join(SEEDS)}")
    return range(SEEDS[split], SEEDS[split] + episodes)


def check_episodes(episodes: int, seed: int | None) -> None:
    """UserError for fewer than 1 episode, or a negative seed."""
    if episodes < 1 or (seed is not None and seed < 0):
        raise UserError(f"episodes is {episodes} and seed is {seed}; use 1 or more episodes and a seed of 0 or more")


def targets_of(target_return: float | Sequence[float]) -> list[float]:
    """The target returns as a list: one, several or none."""
    return [target_return] if isinstance(target_return, (int, float)) else list(target_return)


def start_of(seed: int | None) -> int:
    """The seed of the first episode: `seed`, with a warning if recordings may use it, or the first seed of the test
    split.
    """
    if seed is not None and seed < SEEDS["validation"]:
        _LOG.warning(
            "recordings may start from seed %d, so the model may have been trained on these episodes; "
            "remove --seed, or use %d or more",
            seed,
            SEEDS["validation"],
        )
    return SEEDS["test"] if seed is None else seed


class EpisodeWatch(Protocol):
    """Watches the first `episodes` episodes one after the other. `render` returns the current image, uint8 [H, W, 3];
    `return_so_far` is the return so far.
    """

    @property
    def episodes(self) -> int: ...

    def step(self, draw: Callable[[], np.ndarray], episode: int, gained: float) -> None:
        """Called before each action; episodes are numbered from 0."""
        ...

    def end(self, draw: Callable[[], np.ndarray], episode: int, gained: float) -> None:
        """Called after the last action of an episode."""
        ...


_RATE = 30.0  # default and maximum frames per second
_WAITING = 8  # maximum frames waiting for the encoder, about 750 kB each
_FINE = 1000  # the largest denominator of frames per second
_HELD = 0.7  # seconds for which the end of an episode is shown
_BAR, _LETTERS = 24, 14  # pixels of the caption's height, and of its font size


class FilmConfig(NamedTuple):
    """A video of the first `episodes`, `speed` times as fast as real time."""

    path: Path
    episodes: int = 3
    speed: float = 1.0


def film_of(path: str | Path | None, episodes: int, speed: float) -> FilmConfig | None:
    """The requested film, or None. UserError for invalid settings, before any work."""
    if path is None:
        return None
    if episodes < 1 or not 0 < speed < math.inf:
        raise UserError(
            f"a film of {episodes} episodes at {speed:g} times their speed is not possible; use 1 episode or more, and "
            "a speed above 0"
        )
    check_film(Path(path))
    return FilmConfig(Path(path), episodes, speed)


@dataclass
class FilmedEpisodes:
    """Writes episodes to a film. The caption has the number and the return of the episode, and `caption_suffix` for the
    targets of the model.

    A separate thread encodes frames while the next ones are played; only frames in the film are rendered.
    """

    film: Film
    encoder: ThreadPoolExecutor
    every: int
    rate: Fraction
    episodes: int
    asked: str = ""
    _steps: int = 0
    _waiting: deque[Future[None]] = field(default_factory=deque)

    def step(self, draw: Callable[[], np.ndarray], episode: int, gained: float) -> None:
        if self._steps % self.every == 0:
            self._add(draw(), episode, gained)
        self._steps += 1

    def end(self, draw: Callable[[], np.ndarray], episode: int, gained: float) -> None:
        frame = draw()
        for _ in range(max(1, round(_HELD * self.rate))):
            self._add(frame, episode, gained)
        self._steps = 0

    def finish(self) -> None:
        for each in self._waiting:
            each.result()

    def _add(self, frame: np.ndarray, episode: int, gained: float) -> None:
        text = f"episode {episode + 1} of {self.episodes}{self.asked}   return {gained:.5g}"
        self._waiting.append(self.encoder.submit(lambda: self.film.add(labelled(frame, text))))
        if len(self._waiting) > _WAITING:
            self._waiting.popleft().result()


@contextmanager
def filming(config: FilmConfig | None, rate: float | None) -> Iterator[FilmedEpisodes | None]:
    """Open a film for episodes with `rate` steps per second, if known; None without a film."""
    if config is None:
        yield None
        return
    every, shown = shown_of((rate or _RATE) * config.speed)
    if shown < 1:
        raise UserError(
            f"a film at speed {config.speed:g} would have {float(shown):.2g} frames per second; raise --speed"
        )
    with Film(config.path, shown, quick=True) as film, ThreadPoolExecutor(1, "film") as encoder:
        filmed = FilmedEpisodes(film, encoder, every, shown, config.episodes)
        yield filmed
        filmed.finish()


def labelled(frame: np.ndarray, text: str) -> np.ndarray:
    """An image with a caption below it, cut to its width; without the package pillow only the image."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return frame
    bar = Image.new("RGB", (frame.shape[1], _BAR), "#e8e8e8")
    ImageDraw.Draw(bar).text((6, (_BAR - _LETTERS) // 2), text, "black", ImageFont.load_default(_LETTERS))
    return np.concatenate([frame, np.asarray(bar)])


def shown_of(rate: float) -> tuple[int, Fraction]:
    """The steps per frame of a film, and its frames per second, at most 30."""
    every = max(1, math.ceil(rate / _RATE))
    return every, Fraction(rate).limit_denominator(_FINE) / every


AT_ONCE = 16  # maximum parallel episodes


class Returns(NamedTuple):
    """Returns and lengths of E episodes, by number. `truncated` counts those that the player's limit ended."""

    returns: np.ndarray
    lengths: np.ndarray
    cut: int


class Playing(Protocol):
    """An agent that acts in B episodes with equal step counts."""

    @property
    def limit(self) -> int | None:
        """The maximum steps of an episode, None for no limit."""
        ...

    def act(self, states: np.ndarray) -> np.ndarray:
        """An action for each row, from the current states [B, *shape]."""
        ...

    def took(self, actions: np.ndarray) -> None:
        """Observe the last actions as executed, clipped to the bounds; only for numeric actions."""
        ...

    def take(self, rewards: np.ndarray) -> None:
        """Observe the rewards of the actions, [B]."""
        ...

    def select(self, rows: np.ndarray) -> None:
        """Continue with these rows only."""
        ...


def check_single(execute: int | None, ensemble: float | Literal["run"] | None, source: str) -> None:
    """UserError for action chunk settings with a model that predicts one action at a time."""
    if execute is not None or ensemble != "run":
        raise UserError(f"{source} predicts one action at a time; remove execute and ensemble")


def played(
    player: Callable[[Sequence[int]], Playing], copies: Copies, seeds: Sequence[int], watch: EpisodeWatch | None = None
) -> Returns:
    """Play one episode per seed; `player` creates the agent for a group of seeds, and `watch` observes the first."""
    found: dict[int, tuple[float, int, bool]] = {}
    for some in side_by_side(len(seeds), min(AT_ONCE, len(copies)), watch):
        found |= zip(some, _side_by_side(player([seeds[number] for number in some]), copies, seeds, some, watch))
    returns, lengths, cut = zip(*(found[number] for number in range(len(seeds))))
    return Returns(np.array(returns), np.array(lengths), sum(cut))


def side_by_side(episodes: int, most: int, watch: EpisodeWatch | None) -> list[list[int]]:
    """Groups of at most `max_parallel` episodes that are played in parallel. Only the first environment can be
    rendered, so each watched episode is the first of a group.
    """
    watched = 0 if watch is None else min(watch.episodes, episodes)
    groups = [[number] for number in range(watched)]
    rest = deque(range(watched, episodes))
    for group in groups:
        group += [rest.popleft() for _ in range(min(most - 1, len(rest)))]
    while rest:
        groups.append([rest.popleft() for _ in range(min(most, len(rest)))])
    return groups


def _side_by_side(
    player: Playing, copies: Copies, seeds: Sequence[int], numbers: Sequence[int], watch: EpisodeWatch | None
) -> list[tuple[float, int, bool]]:
    """Return and length of the episodes with these numbers, and whether the player's limit truncated each."""
    longest = player.limit
    rows = np.arange(len(numbers))
    states = np.stack([copies.reset(row, seeds[number]) for row, number in enumerate(numbers)])
    returns, lengths, cut = np.zeros(len(rows)), np.zeros(len(rows), int), np.zeros(len(rows), bool)
    watch = watch if watch is not None and numbers[0] < watch.episodes else None
    while len(rows):
        if watch is not None and rows[0] == 0:
            watch.step(copies.frame, numbers[0], float(returns[0]))
        actions = player.act(states)
        if copies.spaces.choices is None:
            actions = np.clip(actions, copies.spaces.low, copies.spaces.high)
            player.took(actions)
        steps = [copies.step(row, action) for row, action in zip(rows.tolist(), actions)]
        rewards = np.array([step.reward for step in steps])
        returns[rows] += rewards
        lengths[rows] += 1
        over = np.array([step.ended or step.cut for step in steps])
        cut[rows] = ~over & (longest is not None) & (lengths[rows] >= (longest or 0))
        player.take(rewards)
        going = np.flatnonzero(~over & ~cut[rows])
        if watch is not None and rows[0] == 0 and 0 not in going:
            watch.end(copies.frame, numbers[0], float(returns[0]))
        if len(going) < len(rows):
            player.select(going)
        rows, states = rows[going], np.array([steps[place].state for place in going])
    return list(zip(returns.tolist(), lengths.tolist(), cut.tolist()))


def worth(played: Returns, environment: str) -> dict[str, Any]:
    """The mean return with its interval, also normalised if D4RL has bounds, and the mean length."""
    mean = float(played.returns.mean())
    scores: dict[str, Any] = {"return_mean": mean, "return_mean_interval": bootstrap_mean(played.returns)}
    hundredths = normalised(environment, mean)
    if hundredths is not None:
        scores["return_normalised"] = hundredths
    scores |= {"length_mean": float(played.lengths.mean()), "samples": len(played.returns)}
    if played.cut:
        scores["cut"] = played.cut
    return scores
