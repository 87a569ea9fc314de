"""Recording: episodes of mixed quality, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from headway.data.episodes import Episode, Episodes, together
from headway.environments.copies import Copies
from headway.environments.policies import Policy
from headway.errors import UserError


class Mixture(NamedTuple):
    """A policy (None: chance) of whose actions a share is replaced by random ones."""

    policy: Policy | None
    noise: float


class _Running(NamedTuple):
    """An episode under way in one of the copies."""

    number: int
    generator: np.random.Generator
    states: list[np.ndarray]
    actions: list[np.ndarray | np.integer | int]
    rewards: list[float]


class Recorder:
    """Plays episodes in copies of an environment: episode e by mixture e modulo their number, from a start and with
    noise that depend on the seed and e alone.

    What is finished is in `finished`, by number, even if `run` is interrupted.
    """

    def __init__(self, copies: Copies, mixtures: Sequence[Mixture], seed: int, horizon: int | None) -> None:
        """`horizon` is the most steps of an episode; an environment without a limit of its own needs one."""
        if horizon is None and copies.horizon is None:
            raise UserError(
                f"the environment {copies.name!r} says no limit of steps, so an episode may have no end; "
                "give one with --horizon"
            )
        self.copies, self.mixtures, self.seed, self.horizon = copies, mixtures, seed, horizon
        self.finished: dict[int, Episode] = {}

    def run(self, episodes: int, at_once: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Record so many episodes, `at_once` side by side; `progress` is told how many are finished."""
        waiting = iter(range(episodes))
        running = {row: self._begin(row, number) for row, number in zip(range(at_once), waiting)}
        while running:
            actions = self._act(running)
            for row, action in actions.items():
                if self._step(row, running[row], action):
                    progress(len(self.finished))
                    number = next(waiting, None)
                    if number is None:
                        del running[row]
                    else:
                        running[row] = self._begin(row, number)

    def episodes(self) -> Episodes:
        """What is finished, in order."""
        found = [self.finished[number] for number in sorted(self.finished)]
        return together(found, f"the recording of {self.copies.name!r}", environment=self.copies.name)

    def _begin(self, row: int, number: int) -> _Running:
        generator = np.random.default_rng([self.seed, number])
        return _Running(number, generator, [self.copies.reset(row, self.seed + number)], [], [])

    def _act(self, running: dict[int, _Running]) -> dict[int, np.ndarray | np.integer | int]:
        """An action for each row; a policy is asked once for all its rows."""
        found = {}
        for index, (policy, noise) in enumerate(self.mixtures):
            rows = [row for row, each in running.items() if each.number % len(self.mixtures) == index]
            asked = policy(np.stack([running[row].states[-1] for row in rows])) if policy and rows else None
            for place, row in enumerate(rows):
                generator = running[row].generator
                by_chance = asked is None or (noise > 0 and generator.random() < noise)
                found[row] = self.copies.spaces.random(generator) if by_chance else asked[place]  # type: ignore[index]
        return found

    def _step(self, row: int, each: _Running, action: np.ndarray | np.integer | int) -> bool:
        """One step of a row; whether its episode is finished. Actions are kept as the environment took them."""
        spaces = self.copies.spaces
        state, reward, ended, cut = self.copies.step(row, action)
        each.actions.append(int(action) if spaces.choices is not None else np.clip(action, spaces.low, spaces.high))
        each.rewards.append(reward)
        limit = self.horizon is not None and len(each.rewards) >= self.horizon
        if not (ended or cut or limit):
            each.states.append(state)
            return False
        kind = np.int64 if spaces.choices is not None else np.float32
        self.finished[each.number] = Episode(
            np.stack(each.states), np.array(each.actions, kind), np.array(each.rewards), not ended
        )
        return True
