"""Episodes that an agent plays side by side, what they are worth, and how they are filmed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from headway.data.video import Film
from headway.environments.copies import Copies
from headway.errors import UserError, logger
from headway.metrics import bootstrap_mean

SEEDS = {"validation": 1_000_000, "test": 2_000_000, "all": 2_000_000}
"""Episodes of an evaluation start from these seeds on, which are those of no recording and of no other split."""

PICTURED = 3_000_000
"""Episodes that a report shows start from these seeds on, which no evaluation has."""

_LOG = logger(__name__)
_BOUNDS = {  # return of a random policy, and of a trained one, as D4RL states them
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


def normalised(environment: str, value: float) -> float | None:
    """A return in hundredths of an expert's; None where D4RL has no bounds. It has them for older versions of these
    environments, whose rewards are those of version 5 but for small terms.
    """
    bounds = _BOUNDS.get(environment.partition("-v")[0])
    return None if bounds is None else 100 * (value - bounds[0]) / (bounds[1] - bounds[0])


def seeds_of(split: str, episodes: int) -> range:
    """The seeds of an evaluation. UserError for a split in which no one plays."""
    if split not in SEEDS:
        raise UserError(f"there is no split {split!r} to play in; use {', '.join(SEEDS)}")
    return range(SEEDS[split], SEEDS[split] + episodes)


def check_episodes(episodes: int, seed: int | None) -> None:
    """UserError for no episodes, and for a seed below 0."""
    if episodes < 1 or (seed is not None and seed < 0):
        raise UserError(f"{episodes} episodes from seed {seed} cannot be played; give 1 or more, and 0 or more")


def targets_of(target_return: float | Sequence[float]) -> list[float]:
    """The returns that are asked for: one, several or none."""
    return [target_return] if isinstance(target_return, (int, float)) else list(target_return)


def start_of(seed: int | None) -> int:
    """The seed of the first episode that is played: the one given, with a warning where recordings may have begun from
    it, or the first of the test.
    """
    if seed is not None and seed < SEEDS["validation"]:
        _LOG.warning(
            "recordings begin from seeds such as %d, so a model may have learnt these very episodes; "
            "leave --seed out, or give one from %d on",
            seed,
            SEEDS["validation"],
        )
    return SEEDS["test"] if seed is None else seed


Watch = Callable[[Callable[[], np.ndarray]], None]
"""Is given, at each step of an episode, what draws it: uint8 [H, W, 3]."""

_RATE = 30.0  # frames a second, where nothing says, and the most of a film
_WAITING = 8  # frames that are drawn and not yet encoded, each of some 750 kB


@contextmanager
def filming(path: Path | None, rate: float | None) -> Iterator[Watch | None]:
    """What films an episode, `rate` steps a second where that is known; None without a path.

    Frames are encoded in a thread of their own, while the next are played, and no more are drawn than the film shows.
    """
    if path is None:
        yield None
        return
    every, shown = shown_of(rate or _RATE)
    steps, waiting = count(), deque[Future[None]]()
    with Film(path, shown, quick=True) as film, ThreadPoolExecutor(1, "film") as encoder:

        def watch(draw: Callable[[], np.ndarray]) -> None:
            if next(steps) % every == 0:
                waiting.append(encoder.submit(film.add, draw()))
            if len(waiting) > _WAITING:
                waiting.popleft().result()

        yield watch
        for each in waiting:
            each.result()


def shown_of(rate: float) -> tuple[int, Fraction]:
    """Of how many steps a film shows one, and how many frames a second these are: at most 30."""
    every = max(1, math.ceil(rate / _RATE))
    return every, Fraction(max(1, round(rate)), every)


AT_ONCE = 16  # episodes side by side


class Returns(NamedTuple):
    """Returns and lengths of E episodes, by their number. `cut` counts those that were ended by the player's limit."""

    returns: np.ndarray
    lengths: np.ndarray
    cut: int


class Playing(Protocol):
    """What acts in B episodes that are equally old."""

    @property
    def limit(self) -> int | None:
        """The most steps of an episode that it plays, None for no limit."""
        ...

    def act(self, states: np.ndarray) -> np.ndarray:
        """An action for each row, of what is seen now, [B, *shape]."""
        ...

    def took(self, actions: np.ndarray) -> None:
        """What the environment made of the last actions, where that are numbers (bounds)."""
        ...

    def take(self, rewards: np.ndarray) -> None:
        """What the actions brought, [B]."""
        ...

    def select(self, rows: np.ndarray) -> None:
        """Go on in some of the episodes."""
        ...


def check_single(execute: int | None, ensemble: float | Literal["run"] | None, source: str) -> None:
    """UserError for settings of chunks, given to a model that says one action at a time."""
    if execute is not None or ensemble != "run":
        raise UserError(f"{source} says one action at a time; leave execute and ensemble out")


def played(
    player: Callable[[Sequence[int]], Playing], copies: Copies, seeds: Sequence[int], watch: Watch | None = None
) -> Returns:
    """An episode from each seed; `player` makes who plays those of some seeds, and `watch` sees each step of the first
    one.
    """
    found: list[tuple[float, int, bool]] = []
    at_once = min(AT_ONCE, len(copies))
    for start in range(0, len(seeds), at_once):
        some = seeds[start : start + at_once]
        found += _side_by_side(player(some), copies, some, watch if not start else None)
    returns, lengths, cut = zip(*found)
    return Returns(np.array(returns), np.array(lengths), sum(cut))


def _side_by_side(
    player: Playing, copies: Copies, seeds: Sequence[int], watch: Watch | None
) -> list[tuple[float, int, bool]]:
    """Return and length of each episode, and whether it was cut off by the player's limit."""
    longest = player.limit
    rows = np.arange(len(seeds))
    states = np.stack([copies.reset(row, seed) for row, seed in enumerate(seeds)])
    returns, lengths, cut = np.zeros(len(seeds)), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    while len(rows):
        if watch is not None and rows[0] == 0:
            watch(copies.frame)
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
        if len(going) < len(rows):
            player.select(going)
        rows, states = rows[going], np.array([steps[place].state for place in going])
    return list(zip(returns.tolist(), lengths.tolist(), cut.tolist()))


def worth(played: Returns, environment: str) -> dict[str, Any]:
    """The mean of the returns with its interval, where D4RL has bounds in their hundredths, and the mean length."""
    mean = float(played.returns.mean())
    scores: dict[str, Any] = {"return_mean": mean, "return_mean_interval": bootstrap_mean(played.returns)}
    hundredths = normalised(environment, mean)
    if hundredths is not None:
        scores["return_normalised"] = hundredths
    scores |= {"length_mean": float(played.lengths.mean()), "samples": len(played.returns)}
    if played.cut:
        scores["cut"] = played.cut
    return scores
