"""Recording: episodes of mixed quality or demonstrations, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from headway.data.episodes import Episode, Episodes, together
from headway.environments.copies import Copies
from headway.environments.policies import Policy
from headway.errors import UserError

TRIES = 4  # episodes that are played at most for each that is kept


class Mixture(NamedTuple):
    """A policy (None: chance) of whose actions a share is replaced by random ones."""

    policy: Policy | None
    noise: float


class Demonstrating(NamedTuple):
    """Only episodes in which the task is done are kept; they end so many steps after it was done first."""

    after: int = 20


Keep = Callable[[int, dict[str, np.ndarray]], None]
"""What takes the pictures of a finished episode: its number, and of each camera uint8 [T, H, W, 3]."""


@dataclass
class _Running:
    """An episode under way in one of the copies. `done` is the step at which its task was done first."""

    number: int
    generator: np.random.Generator
    states: list[np.ndarray]
    pictures: list[dict[str, np.ndarray]]
    actions: list[np.ndarray | np.integer | int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    done: int | None = None


class Recorder:
    """Plays episodes in copies of an environment: episode e by mixture e modulo their number, from a start and with
    noise that depend on the seed and e alone.

    What is finished is in `finished`, by number, even if `run` is interrupted; `failed` counts what was not kept.
    `keep` is given the pictures of each episode that is.
    """

    def __init__(
        self,
        copies: Copies,
        mixtures: Sequence[Mixture],
        seed: int,
        horizon: int | None,
        demonstrating: Demonstrating | None = None,
    ) -> None:
        """`horizon` is the most steps of an episode; an environment without a limit of its own needs one."""
        if horizon is None and copies.horizon is None:
            raise UserError(
                f"the environment {copies.name!r} states no limit of steps, so an episode may have no end; "
                "give one with --horizon"
            )
        self.copies, self.mixtures, self.seed, self.horizon = copies, mixtures, seed, horizon
        self.demonstrating = demonstrating
        self.keep: Keep = lambda number, pictures: None
        self.finished: dict[int, Episode] = {}
        self.failed = 0

    def run(self, episodes: int, at_once: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Record so many episodes, `at_once` side by side; `progress` is told how many are finished.

        Where only those count in which the task is done, others are played in place of those that failed, with numbers
        below `TRIES` times `episodes`; a UserError where most fail.
        """
        begun = 0
        while (missing := episodes - len(self.finished)) > 0:
            if begun >= TRIES * episodes:
                raise UserError(
                    f"the task of {self.copies.name!r} was done in {len(self.finished):,} of {begun:,} episodes; "
                    "give a policy that does it more often"
                )
            some = min(missing, TRIES * episodes - begun)
            self._play(range(begun, begun + some), at_once, progress)
            begun += some

    def _play(self, numbers: range, at_once: int, progress: Callable[[int], None]) -> None:
        waiting = iter(numbers)
        running = {row: self._begin(row, number) for row, number in zip(range(at_once), waiting)}
        while running:
            actions = self._act(running)
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

    def episodes(self) -> Episodes:
        """What is finished, in order."""
        found = [self.finished[number] for number in sorted(self.finished)]
        return together(found, f"the recording of {self.copies.name!r}", environment=self.copies.name)

    def _begin(self, row: int, number: int) -> _Running:
        generator = np.random.default_rng([self.seed, number])
        state = self.copies.reset(row, self.seed + number)
        return _Running(number, generator, [state], [self.copies.pictures(row)])

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
        step = self.copies.step(row, action)
        each.actions.append(int(action) if spaces.choices is not None else np.clip(action, spaces.low, spaces.high))
        each.rewards.append(step.reward)
        if step.success and each.done is None:
            each.done = len(each.rewards)
        if not (step.ended or step.cut or self._enough(each)):
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

    def _enough(self, each: _Running) -> bool:
        steps = len(each.rewards)
        if self.demonstrating is not None and each.done is not None and steps >= each.done + self.demonstrating.after:
            return True
        return self.horizon is not None and steps >= self.horizon
