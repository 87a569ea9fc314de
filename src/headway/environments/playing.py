"""Episodes that an agent plays side by side, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from headway.environments.copies import Copies
from headway.environments.film import Watch
from headway.environments.scores import normalised
from headway.errors import UserError
from headway.metrics import bootstrap_mean

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
