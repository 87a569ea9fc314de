"""How agents are judged: from which seeds, and on D4RL's scale: 0 is chance, 100 an expert (Fu et al. 2020)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from headway.errors import UserError

SEEDS = {"validation": 1_000_000, "test": 2_000_000, "all": 2_000_000}
"""Episodes of an evaluation start from these seeds on, which are those of no recording and of no other split."""

PICTURED = 3_000_000
"""Episodes that a report shows start from these seeds on, which no evaluation has."""

_LOG = logging.getLogger(__name__)
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
