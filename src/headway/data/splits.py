"""Train, validation and test splits: by file name if it names one, otherwise by a hash of the sample."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from headway.config_kinds import deferred_check
from headway.data.shuffling import splitmix64
from headway.errors import ConfigError, UserError, logger, nearest

_LOG = logger(__name__)
_MIN_SPLIT = 10  # samples below which a larger share does not help
SPLITS = ("train", "validation", "test")
_SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
_SPLIT_NAME = re.compile(
    r"(?:^|[-_.])(train|training|val|valid|validation|dev|test)(?:[-_.]?\d[\w.-]*)?$", re.IGNORECASE
)


@deferred_check
@dataclass(frozen=True)
class SplitConfig:
    """Shares of the training data that are held out if no files are named after a split."""

    validation: float = 0.05  # share for validation
    test: float = 0.05  # share for testing
    seed: int = 0  # selects another random split

    def __post_init__(self) -> None:
        for name, share in (("validation", self.validation), ("test", self.test)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name} share is {share}; set it to at least 0 and below 1")
        if self.validation + self.test >= 1:
            total = self.validation + self.test
            raise ConfigError(f"validation and test together take {total} of the data; lower one of them")


@deferred_check
@dataclass(frozen=True)
class ClassSplitConfig(SplitConfig):
    """Shares of labelled training samples that are held out."""

    stratify: bool = False  # hold out nearly the same share of every class (not with groups)


def text_key(text: str) -> int:
    """The 64-bit hash of a text: equal texts have equal keys on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_fraction(key: str, seed: int) -> float:
    """A number in [0, 1) that depends only on the text and the seed, so equal texts are in the same split."""
    return float(hash_fractions(np.array([text_key(key)], dtype=np.uint64), seed)[0])


def hash_fractions(keys: np.ndarray, seed: int) -> np.ndarray:
    """`hash_fraction` of many keys at once: uint64 [N] to float64 [N]."""
    salt = splitmix64(np.uint64(seed % (1 << 64)))
    return (splitmix64(keys ^ salt) >> np.uint64(11)) * 2.0**-53


def split_code(split: str) -> int:
    """The code of a split in caches: 1, 2 or 3; 0 is for sources whose file name does not name a split."""
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; {nearest(split, SPLITS)}")
    return SPLITS.index(split) + 1


def split_from_name(name: str) -> str | None:
    """The split in a file or folder name: train-00001.parquet, wiki.valid.raw, test_2016_flickr.en."""
    path = PurePath(name)
    match = _SPLIT_NAME.search(path.stem) or _SPLIT_NAME.search(path.name)
    return None if match is None else _SYNONYMS.get(match[1].lower(), match[1].lower())


def held_out_shares(present: Collection[int], config: SplitConfig) -> tuple[float, float]:
    """The shares (validation, test) to hold out of the training data: 0 for a split that has its own files."""
    validation = 0.0 if split_code("validation") in present else config.validation
    test = 0.0 if split_code("test") in present else config.test
    return validation, test


def sampled_splits(fractions: np.ndarray, validation: float, test: float) -> np.ndarray:
    """The split codes of sources with these `hash_fractions`, uint8 [N]: the lowest are test, then validation."""
    codes = np.where(fractions < test + validation, split_code("validation"), split_code("train"))
    return np.where(fractions < test, split_code("test"), codes).astype(np.uint8)


def assign_splits(
    keys: np.ndarray,
    named_splits: np.ndarray,
    present: Collection[int],
    config: SplitConfig,
    classes: np.ndarray | None = None,
) -> np.ndarray:
    """The split codes of sources, uint8 [N].

    `keys` uint64 [N] are hashes of the sources, `named_splits` uint8 [N] the splits in their file names,
    and `present` all codes in this corpus. Files without a named split belong to training, from which
    missing splits are sampled, separately for each of the `classes` [N] if passed. Of few sources, at least one is
    held out for validation if another remains for training.
    """
    shares = held_out_shares(present, config)
    fraction = hash_fractions(keys, config.seed)
    if classes is None:
        validation, test = shares
        sampled = sampled_splits(fraction, validation, test)
        training = fraction[(named_splits <= split_code("train")) & (sampled == split_code("train"))]
        if validation > 0 and split_code("validation") not in sampled and training.size and np.ptp(training) > 0:
            sampled = np.where(fraction == training.min(), split_code("validation"), sampled)
    else:
        # Systematic sampling: the distinct keys without a named split are sorted by class and, within a class, by
        # their random fraction; every 1 / share-th of them is held out, but the first of each class is trained on.
        keys, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        chosen = np.flatnonzero((named_splits <= split_code("train"))[first])
        chosen = chosen[np.lexsort((fraction[first[chosen]], classes[first[chosen]]))]
        starts = np.append(True, np.diff(classes[first[chosen]]) != 0)[: len(chosen)]
        held_out = chosen[~starts][_evenly_spaced(sum(shares), int((~starts).sum()))]
        is_validation = _evenly_spaced(shares[0] / (sum(shares) or 1.0), len(held_out))
        codes = np.full(len(keys), split_code("train"))
        codes[held_out] = np.where(is_validation, split_code("validation"), split_code("test"))
        sampled = codes[inverse]
    return np.where(named_splits <= split_code("train"), sampled, named_splits).astype(np.uint8)


def _evenly_spaced(share: float, count: int) -> np.ndarray:
    """A `share` of `count` positions at equal distances, bool [count]."""
    return np.diff(np.floor(share * np.arange(count + 1) + 0.5)) > 0


class SplitIndices(dict[str, np.ndarray]):
    """The sample indices of each split, int64. `removed` counts training samples that were dropped because they
    are also in validation or test. `groups` names the groups of samples in each split; it is empty without groups.
    """

    def __init__(
        self, indices: Mapping[str, np.ndarray], removed: int = 0, groups: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        super().__init__(indices)
        self.removed, self.groups = removed, groups or {}

    def without(self, samples: np.ndarray | Sequence[int]) -> SplitIndices:
        """The same splits without these samples."""
        indices = {split: rows[~np.isin(rows, samples)] for split, rows in self.items()}
        return SplitIndices(indices, self.removed, self.groups)


def assign_groups(
    groups: Sequence[str], named_splits: np.ndarray, config: SplitConfig, labels: Sequence[str] | None = None
) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    """The split codes of samples, uint8 [N], and the names of each split's groups, whose spellings are merged.

    Groups without a named split, uint8 [N], are held out in random order, each if it brings its split closer to its
    share of the samples. A split with a share gets at least one group if training keeps one. Training keeps a group
    with each label. Training samples of a group that files hold out have no split (code 0).
    """
    from headway.data.labels import normalized_label  # loading a model for inference does not need it

    groups = [normalized_label(group) for group in groups]
    names, index = np.unique(np.array(groups, object), return_inverse=True)
    classes = np.zeros(len(index), np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    pairs = np.unique(np.stack([index, classes]), axis=1)
    classes_of = np.split(pairs[1], np.flatnonzero(np.diff(pairs[0])) + 1)  # the classes in each group
    is_free = np.ones(len(names), bool)
    is_free[index[named_splits > split_code("train")]] = False
    counts = np.bincount(pairs[1][is_free[pairs[0]]], minlength=int(classes.max(initial=0)) + 1)  # groups per class
    sizes = np.bincount(index, minlength=len(names))
    total = sizes[is_free].sum()
    fractions = hash_fractions(np.fromiter(map(text_key, names), np.uint64, len(names)), config.seed)
    order = np.argsort(fractions, kind="stable").tolist()
    codes = np.where(is_free, split_code("train"), 0)
    shares = held_out_shares(frozenset(np.unique(named_splits).tolist()), config)
    for split, share in zip(("validation", "test"), shares):
        wanted = missing = share * total
        # If every group is larger than twice the share, the smallest one is taken at the end.
        for group, is_needed in (
            *((group, False) for group in order),
            *((group, True) for group in sorted(order, key=sizes.__getitem__)),
        ):
            is_closer = abs(missing - sizes[group]) < missing or (is_needed and missing == wanted > 0)
            if is_closer and codes[group] == split_code("train") and counts[classes_of[group]].min() > 1:
                codes[group] = split_code(split)
                counts[classes_of[group]] -= 1
                missing -= sizes[group]
    result = np.where(named_splits > split_code("train"), named_splits, codes[index]).astype(np.uint8)
    members = {split: np.unique(index[result == split_code(split)]).tolist() for split in SPLITS}
    return result, {split: tuple(str(names[group]) for group in rows) for split, rows in members.items()}


def split_by_key(
    keys: np.ndarray,
    named_splits: np.ndarray,
    config: SplitConfig,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> SplitIndices:
    """Assign samples to splits by key, uint64 [N], named split [N] and, if the config stratifies, label; or by group.

    A key or a group is never both trained on and held out: if files name splits, such samples are dropped from
    training, and the log reports how many.
    """
    names: dict[str, tuple[str, ...]] = {}
    if groups is None:
        stratify = labels is not None and isinstance(config, ClassSplitConfig) and config.stratify
        classes = np.unique(np.array(labels, object), return_inverse=True)[1] if stratify else None
        split_codes = assign_splits(keys, named_splits, frozenset(np.unique(named_splits).tolist()), config, classes)
    else:
        split_codes, names = assign_groups(groups, named_splits, config, labels)
    indices = {split: np.flatnonzero(split_codes == split_code(split)) for split in SPLITS}
    held_out = np.unique(keys[split_codes > split_code("train")])
    training = np.flatnonzero(split_codes <= split_code("train"))
    indices["train"] = indices["train"][~np.isin(keys[indices["train"]], held_out)]
    removed = len(training) - len(indices["train"])
    if removed:
        _LOG.warning(
            "dropped %s of %s training samples that %s also in validation or test files",
            f"{removed:,}", f"{len(training):,}", "are" if groups is None else "are, or whose group is,",
        )  # fmt: skip
    return SplitIndices(indices, removed, names)


def split_by_text(
    keys: Sequence[str],
    named_splits: np.ndarray,
    config: SplitConfig,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> SplitIndices:
    """`split_by_key` with texts as keys."""
    return split_by_key(np.fromiter(map(text_key, keys), np.uint64, len(keys)), named_splits, config, labels, groups)


class Splits(NamedTuple):
    """The sample indices of each split, int64, and of all samples (`all_indices`, the split "all").

    For messages, `noun` names the samples ("images") and `remedy` what adds samples to a split ("a folder"). Models
    with rollouts (`has_rollouts`) are evaluated with those at the end and need no test samples.
    """

    indices: Mapping[str, np.ndarray]
    all_indices: np.ndarray
    noun: str = "samples"
    remedy: str = "files"
    has_rollouts: bool = False

    def rows(self, split: str, alternative: str = "") -> np.ndarray:
        """The sample indices of a split. UserError for an unknown or empty one; `alternative` is another remedy."""
        indices = self.all_indices if split == "all" else self.indices.get(split)
        if indices is None:
            raise UserError(f"there is no split {split!r}; {nearest(split, [*self.indices, 'all'])}")
        if len(indices) == 0:
            share = f"set a larger share, such as task.split.{split}=0.2"
            share = "lower the shares of the others" if split == "train" else share
            if split != "train" and len(self.all_indices) < _MIN_SPLIT:
                share = f"more {self.noun}"
            if self.groups:
                share = "change task.group so that there are more groups, each class in several"
            raise UserError(
                f"the {split} split of {len(self.all_indices):,} {self.noun} is empty; add {self.remedy} named "
                f"{split}, or {share}{alternative and f', or {alternative}'}"
            )
        return indices

    def has_samples(self, split: str) -> bool:
        """Whether a split has samples."""
        return len(self.all_indices if split == "all" else self.indices.get(split, ())) > 0

    @property
    def removed(self) -> int:
        """How many samples were dropped from training because they are also in validation or test."""
        return self.indices.removed if isinstance(self.indices, SplitIndices) else 0

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the groups in each split; empty without groups."""
        return self.indices.groups if isinstance(self.indices, SplitIndices) else {}

    @property
    def final(self) -> str:
        """The split on which a finished model is evaluated: test, or validation if there is no test."""
        return "test" if self.has_rollouts or len(self.indices["test"]) else "validation"
