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
from headway.io.durable import read_json, write_json

MIN_IMAGE_SIZE = 4  # pixels per side
_GRID = 4  # rows and columns of the cells whose mean brightness is taken
_BRIGHTNESS_BINS, _DIFFERENCE_BINS = 8, 6  # of histograms of brightness and of differences between neighbouring pixels
_MIN_SAMPLES = 100  # samples needed for statistics; with fewer, an outlier may be random
_MAX_SAMPLES = 10_000
_QUANTILE = 0.999  # quantile of the training distances above which a sample is an outlier
_BRIGHTNESS_GAP = 0.2  # difference of the mean brightness, 0 to 1, that explains why an image is an outlier
_MIN_VARIANCE = 1e-4  # added to the variance of each feature, whose range is 0 to 1


@dataclass(frozen=True)
class SampleStatistics:
    """Gaussian model of the training samples' statistics (`image_statistics`, or `sound_statistics`): their mean
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
    def fit(features: Float[np.ndarray, "N F"], seed: int = 0) -> SampleStatistics | None:
        """Fit the statistics; None for too few samples. The limit is cross-validated: each half is measured with the
        other's mean and scale.
        """
        if len(features) < _MIN_SAMPLES:
            return None
        order = np.random.default_rng(seed).permutation(len(features))[:_MAX_SAMPLES]
        halves = features[order[::2]], features[order[1::2]]
        distances = [_distances(half, *_fit(other_half)) for half, other_half in (halves, halves[::-1])]
        limit = float(np.quantile(np.concatenate(distances), _QUANTILE, method="higher"))
        middle, scale = _fit(features[order])
        rows = tuple(tuple(row) for row in scale.round(6).tolist())
        return SampleStatistics(tuple(middle.round(6).tolist()), rows, limit, float(features[:, -1].min()))

    def find_outliers(self, features: Float[np.ndarray, "N F"]) -> np.ndarray:
        """Return which samples are outliers, or blank although no training sample was, bool [N]."""
        is_outlier = _distances(features, np.array(self.middle), np.array(self.scale)) > self.limit
        return is_outlier | (features[:, -1] < self.contrast / 2)


def image_statistics(pixels: UInt8[np.ndarray, "H W C"]) -> Float[np.ndarray, "F"]:
    """Return statistics, mostly from 0 to 1, of an image of at least 4 x 4 pixels: the brightness of 16 cells, the mean
    of each channel, histograms of brightness and of differences between neighbours, the mean differences down and
    across, and the contrast.
    """
    image = pixels.astype(np.float32) / 255
    grey = image.mean(2)
    cells = [cell.mean() for band in np.array_split(grey, _GRID) for cell in np.array_split(band, _GRID, axis=1)]
    down, across = (np.abs(np.diff(grey, axis=axis)) for axis in (0, 1))
    levels = np.histogram(grey, _BRIGHTNESS_BINS, (0, 1))[0] / grey.size
    steps = np.histogram(across, _DIFFERENCE_BINS, (0, 1))[0] / across.size
    means = image.mean((0, 1))
    return np.array([*cells, *means, *levels, *steps, down.mean(), across.mean(), grey.std()], np.float64)


def stack_image_statistics(images: Iterable[UInt8[np.ndarray, "H W C"]]) -> Float[np.ndarray, "N F"]:
    return np.stack([image_statistics(image) for image in images])


def _fit(features: Float[np.ndarray, "N F"]) -> tuple[np.ndarray, np.ndarray]:
    mean = features.mean(0)
    covariance = np.cov(features, rowvar=False) + _MIN_VARIANCE * np.eye(features.shape[1])
    return mean, np.linalg.inv(np.linalg.cholesky(covariance)).T


def _distances(features: Float[np.ndarray, "N F"], middle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.linalg.norm((features - middle) @ scale, axis=1)


FILE = "familiar.json"
_MAX_COUNTED_IDS = 1 << 26  # maximum training ids to count
_CHUNK = 1 << 20
_UNEXPECTED_SHARE = 0.2  # share of unseen tokens that makes a text unexpected: new words of a known language have fewer
_MAX_QUOTE = 40  # characters of a text quoted in a message


@dataclass(frozen=True)
class TrainingStatistics:
    """What the training data contained. `longest` is the maximum number of tokens per text (None: texts were packed in
    rows and have no length), `unseen` are the ids that no text contained, and `alike` describes images or audio.
    """

    longest: int | None = None
    unseen: tuple[int, ...] = ()
    alike: SampleStatistics | None = None

    @staticmethod
    def from_ids(
        ids: np.ndarray, vocab_size: int, max_length: int | None = None, special_tokens: Collection[int | None] = ()
    ) -> TrainingStatistics:
        """Count the ids [N] of the training texts. `vocab_size` is the number of ids; `special_tokens`, which frame
        texts, never count as unseen.
        """
        counts = np.zeros(vocab_size, dtype=np.int64)
        for start in range(0, min(len(ids), _MAX_COUNTED_IDS), _CHUNK):
            counts += np.bincount(ids[start : start + _CHUNK], minlength=vocab_size)
        return TrainingStatistics(
            max_length, tuple(i for i in np.flatnonzero(counts == 0).tolist() if i not in special_tokens)
        )

    @cached_property
    def _unseen_ids(self) -> frozenset[int]:
        return frozenset(self.unseen)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))

    def unexpected_texts(self, texts: Sequence[str], rows: Iterable[Sequence[int]]) -> list[str]:
        """Describe which texts, passed with their ids, are out of distribution; usually an empty list."""
        if self.longest is None and not self.unseen:
            return []
        too_long, unexpected, max_length = 0, [], 0
        for text, row in zip(texts, rows):
            if self.longest is not None and len(row) > self.longest:
                too_long, max_length = too_long + 1, max(max_length, len(row))
            if row and sum(token in self._unseen_ids for token in row) >= _UNEXPECTED_SHARE * len(row):
                unexpected.append(text.strip())
        messages = []
        if too_long:
            messages.append(
                f"longer than any text in training: {too_long:,} of {len(texts):,}, with up to {max_length:,} tokens "
                f"(the longest in training had {self.longest:,}); split them into sentences, or do not trust the output"
            )
        if unexpected:
            first = unexpected[0]
            first = first if len(first) <= _MAX_QUOTE else f"{first[: _MAX_QUOTE - 3]}..."
            messages.append(
                f"with tokens that never occurred in training: {len(unexpected):,} of {len(texts):,}, such as "
                f"{first!r}; do not trust the output"
            )
        return messages

    def unexpected_samples(self, names: Sequence[str], features: np.ndarray, kind: str = "image") -> list[str]:
        """Describe which samples of a kind, passed with their statistics [N, F], are unlike the training data."""
        if self.alike is None or not len(features):
            return []
        indices = np.flatnonzero(self.alike.find_outliers(features))
        if not len(indices):
            return []
        first = names[int(indices[0])]
        return [
            f"unlike the {kind}s in training: {len(indices):,} of {len(features):,}, such as {first}; do not trust the "
            "labels"
        ]

    def describe_images(self, features: Float[np.ndarray, "N F"]) -> list[str | None]:
        """In which way each image, as its statistics (`image_statistics`), is unlike those in training; None if it is
        not.
        """
        if self.alike is None:
            return [None] * len(features)
        cells = slice(_GRID * _GRID)
        gaps = features[:, cells].mean(1) - np.mean(self.alike.middle[cells])
        words = np.where(gaps > _BRIGHTNESS_GAP, "much brighter than", "unlike")
        words = np.where(gaps < -_BRIGHTNESS_GAP, "much darker than", words)
        outliers = self.alike.find_outliers(features)
        return [f"{word} the images in training" if outlier else None for word, outlier in zip(words, outliers)]


def read_training_statistics(directory: Path) -> TrainingStatistics:
    """Read the statistics saved next to a model; without such a file nothing is out of distribution."""
    path = directory / FILE
    return from_dict(TrainingStatistics, read_json(path), str(path)) if path.is_file() else TrainingStatistics()
