"""Train, validation and test splits: by file name if it states one, otherwise by a hash of the sample."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from headway.config import checked
from headway.data.order import mixed
from headway.errors import ConfigError, UserError, logger, nearest

_LOG = logger(__name__)
SIDES = ("train", "validation", "test")
_WORDS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
_NAMED = re.compile(r"(?:^|[-_.])(train|training|val|valid|validation|dev|test)(?:[-_.]?\d[\w.-]*)?$", re.IGNORECASE)


@checked
@dataclass(frozen=True)
class SplitConfig:
    """Shares of the training data that are held out if no files are named after a split."""

    validation: float = 0.05  # share for validation
    test: float = 0.05  # share for the test
    seed: int = 0  # selects another random split

    def __post_init__(self) -> None:
        for name, share in (("validation", self.validation), ("test", self.test)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} share is {share}; set a number from 0 to below 1")
        if self.validation + self.test >= 1:
            total = self.validation + self.test
            raise ConfigError(f"validation and test together take {total} of the data; lower one of them")


@checked
@dataclass(frozen=True)
class ClassSplitConfig(SplitConfig):
    """Shares of labelled training samples that are held out."""

    stratify: bool = False  # hold out nearly the same share of every class


def larger_share(side: str) -> str:
    """The remedy for an empty split."""
    return "lower the shares of the others" if side == "train" else f"set a larger share, such as task.split.{side}=0.2"


def key_of(text: str) -> int:
    """The 64-bit hash of a text: equal texts have equal keys on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def fraction(key: str, seed: int) -> float:
    """A number in [0, 1) that depends only on the text and the seed, so equal texts are in the same split."""
    return float(fractions(np.array([key_of(key)], dtype=np.uint64), seed)[0])


def fractions(keys: np.ndarray, seed: int) -> np.ndarray:
    """`hash_fraction` of many keys at once: uint64 [N] to float64 [N]."""
    salt = mixed(np.uint64(seed % (1 << 64)))
    return (mixed(keys ^ salt) >> np.uint64(11)) * 2.0**-53


def side_number(side: str) -> int:
    """The code of a split in caches: 1, 2 or 3; 0 is for sources whose file name states no split."""
    if side not in SIDES:
        raise UserError(f"there is no split {side!r}; {nearest(side, SIDES)}")
    return SIDES.index(side) + 1


def named_side(name: str) -> str | None:
    """The split that a file's or folder's name states: train-00001.parquet, wiki.valid.raw, test_2016_flickr.en."""
    path = PurePath(name)
    found = _NAMED.search(path.stem) or _NAMED.search(path.name)
    return None if found is None else _WORDS.get(found[1].lower(), found[1].lower())


def shares_to_draw(named: Collection[int], config: SplitConfig) -> tuple[float, float]:
    """The shares (validation, test) to hold out of the training data: 0 for a split that has its own files."""
    validation = 0.0 if side_number("validation") in named else config.validation
    test = 0.0 if side_number("test") in named else config.test
    return validation, test


def assign(
    keys: np.ndarray,
    named: np.ndarray,
    given: Collection[int],
    config: SplitConfig,
    classes: np.ndarray | None = None,
) -> np.ndarray:
    """The split codes of sources, uint8 [N].

    `keys` uint64 [N] are hashes of the sources, `named_splits` uint8 [N] the splits that their file names state,
    and `present` all codes that names state in this corpus. Files without a named split belong to training, from which
    missing splits are sampled, separately for each of the `classes` [N] if passed.
    """
    shares = shares_to_draw(given, config)
    place = fractions(keys, config.seed)
    if classes is None:
        validation, test = shares
        drawn = np.where(place < test, side_number("test"), side_number("train"))
        drawn = np.where((place >= test) & (place < test + validation), side_number("validation"), drawn)
    else:
        drawn = _stratified(keys, place, classes, named <= side_number("train"), shares)
    return np.where(named <= side_number("train"), drawn, named).astype(np.uint8)


def _stratified(
    keys: np.ndarray, place: np.ndarray, classes: np.ndarray, free: np.ndarray, shares: tuple[float, float]
) -> np.ndarray:
    """The split codes if the same share of every class is held out, up to rounding.

    Systematic sampling: the distinct keys of `free` sources are sorted by class and, within a class, by their random
    `fraction`; every 1 / share-th of them is held out, but the first of each class is trained on.
    """
    keys, first, number = np.unique(keys, return_index=True, return_inverse=True)
    chosen = np.flatnonzero(free[first])
    chosen = chosen[np.lexsort((place[first[chosen]], classes[first[chosen]]))]
    starts = np.append(True, np.diff(classes[first[chosen]]) != 0)[: len(chosen)]
    held = chosen[~starts][_every(sum(shares), int((~starts).sum()))]
    validated = _every(shares[0] / (sum(shares) or 1.0), len(held))
    found = np.full(len(keys), side_number("train"))
    found[held] = np.where(validated, side_number("validation"), side_number("test"))
    return found[number]


def _every(share: float, count: int) -> np.ndarray:
    """A `share` of `count` positions at equal distances, bool [count]."""
    return np.diff(np.floor(share * np.arange(count + 1) + 0.5)) > 0


class Sides(dict[str, np.ndarray]):
    """The sample indices of each split, int64. `removed` counts training samples that were dropped because validation
    or test contains equal ones.
    """

    def __init__(self, sides: Mapping[str, np.ndarray], removed: int = 0) -> None:
        super().__init__(sides)
        self.removed = removed


def divided(
    keys: np.ndarray, named: np.ndarray, config: SplitConfig, labels: Sequence[str] | None = None
) -> Sides:
    """Assign samples to splits by their keys, uint64 [N], their named splits [N] and, if the config stratifies, their
    `labels`.

    A key is never both trained on and held out: if files name splits, such samples are dropped from training, and the
    log reports how many.
    """
    stratify = labels is not None and isinstance(config, ClassSplitConfig) and config.stratify
    classes = np.unique(np.array(labels, object), return_inverse=True)[1] if stratify else None
    assigned = assign(keys, named, frozenset(np.unique(named).tolist()), config, classes)
    found = {side: np.flatnonzero(assigned == side_number(side)) for side in SIDES}
    held_out = np.unique(keys[assigned != side_number("train")])
    training = found["train"]
    found["train"] = training[~np.isin(keys[training], held_out)]
    removed = len(training) - len(found["train"])
    if removed:
        _LOG.warning(
            "dropped %s of %s training samples, because validation or test files contain the same ones",
            f"{removed:,}", f"{len(training):,}",
        )  # fmt: skip
    return Sides(found, removed)


def sides_of(
    keys: Sequence[str], named: np.ndarray, config: SplitConfig, labels: Sequence[str] | None = None
) -> Sides:
    """`split_by_key` with texts as keys."""
    return divided(np.fromiter(map(key_of, keys), np.uint64, len(keys)), named, config, labels)


class Splits(NamedTuple):
    """The sample indices of each split, int64, and of all samples (`all_indices`, the split "all").

    For messages, `noun` names the samples ("images") and `remedy` what adds samples to a split ("a folder"). Models
    with rollouts (`has_rollouts`) are evaluated by these at the end, and need no test samples.
    """

    sides: Mapping[str, np.ndarray]
    every: np.ndarray
    what: str = "samples"
    give: str = "files"
    play: bool = False

    def rows(self, split: str, also: str = "") -> np.ndarray:
        """The sample indices of a split. UserError for an unknown or empty one; `alternative` is another remedy."""
        found = self.every if split == "all" else self.sides.get(split)
        if found is None:
            raise UserError(f"there is no split {split!r}; {nearest(split, [*self.sides, 'all'])}")
        if len(found) == 0:
            raise UserError(
                f"the {split} split of {len(self.every):,} {self.what} is empty; add {self.give} named {split}, or "
                f"{larger_share(split)}{also and f', or {also}'}"
            )
        return found

    def holds(self, split: str) -> bool:
        """Whether a split has samples."""
        return len(self.every if split == "all" else self.sides.get(split, ())) > 0

    @property
    def removed(self) -> int:
        """How many samples were dropped from training because validation or test contains equal ones."""
        return self.sides.removed if isinstance(self.sides, Sides) else 0

    @property
    def final(self) -> str:
        """The split on which a finished model is evaluated: test, or validation if there is no test."""
        return "test" if self.play or len(self.sides["test"]) else "validation"
