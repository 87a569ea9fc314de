"""Statistics of the texts and images in training, to warn about out-of-distribution inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from headway.config import from_dict, to_dict
from headway.errors import ConfigError
from headway.formats.durable import read_json, write_json

SMALLEST = 4  # pixels per side
_GRID = 4  # rows and columns of the cells whose mean brightness is taken
_LEVELS, _STEPS = 8, 6  # histogram bins of brightness and of the differences between neighbouring pixels
_FEWEST = 100  # samples needed for statistics; with fewer, an outlier may be random
_MOST = 10_000
_BEYOND = 0.999  # quantile of the training distances above which a sample is an outlier
_LEAST = 1e-4  # added to the variance of each feature, whose range is 0 to 1


@dataclass(frozen=True)
class Alike:
    """Gaussian model of the training samples' statistics (`image_statistics`, or `glance` of a sound): their mean
    `middle`, and the `limit` that the Mahalanobis distance of one in a thousand training samples exceeded.

    `scale` [F, F] whitens the statistics. `contrast`, the last statistic, is the minimum in training.
    """

    middle: tuple[float, ...]
    scale: tuple[tuple[float, ...], ...]
    limit: float
    contrast: float

    def __post_init__(self) -> None:
        count = len(self.middle)
        if len(self.scale) != count or any(len(row) != count for row in self.scale):
            raise ConfigError(
                f"{FILE} is inconsistent ({count} statistics per sample, {len(self.scale)} rows of the scale); restore "
                "it from a copy"
            )

    @staticmethod
    def of(looks: Float[np.ndarray, "N F"], seed: int = 0) -> Alike | None:
        """Fit the statistics; None for too few samples. The limit is cross-validated: each half is measured with the
        other's mean and scale.
        """
        if len(looks) < _FEWEST:
            return None
        order = np.random.default_rng(seed).permutation(len(looks))[:_MOST]
        halves = looks[order[::2]], looks[order[1::2]]
        away = [_distances(one, *_fitted(other)) for one, other in (halves, halves[::-1])]
        limit = float(np.quantile(np.concatenate(away), _BEYOND, method="higher"))
        middle, scale = _fitted(looks[order])
        rows = tuple(tuple(row) for row in scale.round(6).tolist())
        return Alike(tuple(middle.round(6).tolist()), rows, limit, float(looks[:, -1].min()))

    def beyond(self, looks: Float[np.ndarray, "N F"]) -> np.ndarray:
        """Return which samples are outliers, or blank although no training sample was, bool [N]."""
        away = _distances(looks, np.array(self.middle), np.array(self.scale)) > self.limit
        return away | (looks[:, -1] < self.contrast / 2)


def look(pixels: UInt8[np.ndarray, "H W C"]) -> Float[np.ndarray, "F"]:
    """Return statistics, mostly from 0 to 1, of an image of at least 4 x 4 pixels: the brightness of 16 cells, the mean
    of each channel, histograms of brightness and of differences between neighbours, the mean differences down and
    across, and the contrast.
    """
    image = pixels.astype(np.float32) / 255
    grey = image.mean(2)
    parts = [part.mean() for band in np.array_split(grey, _GRID) for part in np.array_split(band, _GRID, axis=1)]
    down, across = (np.abs(np.diff(grey, axis=axis)) for axis in (0, 1))
    levels = np.histogram(grey, _LEVELS, (0, 1))[0] / grey.size
    steps = np.histogram(across, _STEPS, (0, 1))[0] / across.size
    means = image.mean((0, 1))
    return np.array([*parts, *means, *levels, *steps, down.mean(), across.mean(), grey.std()], np.float64)


def looks(images: Iterable[UInt8[np.ndarray, "H W C"]]) -> Float[np.ndarray, "N F"]:
    return np.stack([look(image) for image in images])


def _fitted(some: Float[np.ndarray, "N F"]) -> tuple[np.ndarray, np.ndarray]:
    middle = some.mean(0)
    spread = np.cov(some, rowvar=False) + _LEAST * np.eye(some.shape[1])
    return middle, np.linalg.inv(np.linalg.cholesky(spread)).T


def _distances(some: Float[np.ndarray, "N F"], middle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.linalg.norm((some - middle) @ scale, axis=1)


FILE = "familiar.json"
_LOOKED_AT = 1 << 26  # training ids counted, at most
_AT_ONCE = 1 << 20
_STRANGE = 0.2  # share of unseen tokens that makes a text unexpected: new words of a known language have fewer
_SHOWN = 40  # characters of a text quoted in a message


@dataclass(frozen=True)
class Familiar:
    """What the training data contained. `longest` is the maximum number of tokens per text (None: texts were packed in
    rows and have no length), `unseen` are the ids that no text contained, and `alike` describes images or sounds.
    """

    longest: int | None = None
    unseen: tuple[int, ...] = ()
    alike: Alike | None = None

    @staticmethod
    def of(ids: np.ndarray, symbols: int, longest: int | None = None, marks: Collection[int | None] = ()) -> Familiar:
        """Count the ids [N] of the training texts. `vocab_size` is the number of ids; `special_tokens`, which frame
        texts, never count as unseen.
        """
        counts = np.zeros(symbols, dtype=np.int64)
        for start in range(0, min(len(ids), _LOOKED_AT), _AT_ONCE):
            counts += np.bincount(ids[start : start + _AT_ONCE], minlength=symbols)
        return Familiar(longest, tuple(i for i in np.flatnonzero(counts == 0).tolist() if i not in marks))

    @cached_property
    def _strangers(self) -> frozenset[int]:
        return frozenset(self.unseen)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))

    def beyond(self, texts: Sequence[str], rows: Iterable[Sequence[int]]) -> list[str]:
        """Describe which texts, passed with their ids, are out of distribution; usually returns nothing."""
        if self.longest is None and not self.unseen:
            return []
        long, strange, most = 0, [], 0
        for text, row in zip(texts, rows):
            if self.longest is not None and len(row) > self.longest:
                long, most = long + 1, max(most, len(row))
            if row and sum(symbol in self._strangers for symbol in row) >= _STRANGE * len(row):
                strange.append(text.strip())
        found = []
        if long:
            found.append(
                f"longer than any text in training: {long:,} of {len(texts):,}, with up to {most:,} tokens, where the "
                f"longest had {self.longest:,}; pass them sentence by sentence, or do not trust the output"
            )
        if strange:
            first = _short(strange[0])
            found.append(
                f"with tokens that no text in training had: {len(strange):,} of {len(texts):,}, such as {first!r}; do "
                "not trust the output"
            )
        return found

    def strange(self, names: Sequence[str], looks: np.ndarray, kind: str = "image") -> list[str]:
        """Describe which samples of a kind, passed with their statistics [N, F], are unlike the training data."""
        if self.alike is None or not len(looks):
            return []
        places = np.flatnonzero(self.alike.beyond(looks))
        if not len(places):
            return []
        first = names[int(places[0])]
        return [
            f"unlike the {kind}s in training: {len(places):,} of {len(looks):,}, such as {first}; do not trust the "
            "labels"
        ]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def read_familiar(directory: Path) -> Familiar:
    """Read the statistics saved next to a model; without such a file nothing is out of distribution."""
    path = directory / FILE
    return from_dict(Familiar, read_json(path), str(path)) if path.is_file() else Familiar()
