"""What images or sounds of a training set have in common, so that one which is quite another can be told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

SMALLEST = 4  # pixels of a side
_GRID = 4  # rows and columns of the parts whose brightness is taken
_LEVELS, _STEPS = 8, 6  # of brightness, and of the differences between neighbours, whose shares are counted
_FEWEST = 100  # samples that have something in common: one in so many others is beyond them by chance
_MOST = 10_000
_BEYOND = 0.999  # the share of training images that are not beyond
_LEAST = 1e-4  # variance of a number, from 0 to 1, below which no difference counts as small


@dataclass(frozen=True)
class Alike:
    """The distance of Mahalanobis of a sample's look (`look`, or `glance` of a sound) from the `middle` of those in
    training, and the `limit` that one in a thousand of them exceeded. `scale` [F, F] makes the numbers of a look
    uncorrelated, each with variance 1. `contrast`, the last number of a look, is the least in training.
    """

    middle: tuple[float, ...]
    scale: tuple[tuple[float, ...], ...]
    limit: float
    contrast: float

    @staticmethod
    def of(looks: Float[np.ndarray, "N F"], seed: int = 0) -> Alike | None:
        """None for too few samples. The limit is taken of samples that the middle was not: each half by the other."""
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
        """Which of some samples are as few in training were, or blank, which none was, bool [N]."""
        away = _distances(looks, np.array(self.middle), np.array(self.scale)) > self.limit
        return away | (looks[:, -1] < self.contrast / 2)


def look(pixels: UInt8[np.ndarray, "H W C"]) -> Float[np.ndarray, "F"]:
    """How an image of at least 4 x 4 pixels looks at a glance, in numbers from 0 to 1: the brightness of 16 parts, the
    mean of each channel, shares of levels of brightness and of differences between neighbours, the mean differences
    down and across, and the contrast.
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
