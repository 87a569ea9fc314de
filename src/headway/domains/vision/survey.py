"""What a user's images are like, from a look at some of them before any is decoded for training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.processor import grey, read_image
from headway.data.splits import side_number
from headway.data.targets import target_of
from headway.domains.vision.samples import LabelledImages
from headway.errors import UserError
from headway.learn import examples

_MOST, _LEAST = 4000, 64  # images that are looked at
_BYTES = 30_000_000  # of image files that are read for it
_SIDE = 16  # pixels by which images are compared
_TOLD = 30  # images whose nearest is a mirror image, from which on these tell something
_DOUBT = 2  # standard deviations by which mirror images have to harm photographs
_TWO_TONES = 0.85  # of an image that is drawn: 0.93 of handwritten digits, 0.71 of clothes
_ALIKE = 0.02  # of the numbers from 0 to 255 that red, green and blue differ by where an image is grey


class Survey(NamedTuple):
    """How many images there are to train on, of how many `classes` (0 of numbers and of several labels), `fewest` of a
    class, their median height and width, whether all that were looked at are grey, whether they are drawn or written,
    in two tones, and whether what an image shows is the same in a mirror, which what is drawn never is taken to be.
    """

    images: int
    classes: int
    fewest: int
    size: tuple[int, int]
    grey: bool
    drawn: bool
    flips: bool


class _Seen(NamedTuple):
    """One of the images: its size, whether it is grey, which share of it is as dark or as bright as any of it, and its
    brightness in a few fields.
    """

    size: tuple[int, int]
    grey: bool
    toned: float
    small: Float[np.ndarray, "S S"]


def survey(samples: LabelledImages, target: str = "auto") -> Survey | None:
    """A look at images spread over those that are not named for the test; None where none of them can be read.

    It draws nothing at random and reads a fixed number of bytes, so that the same data get the same answer.
    """
    rows = np.flatnonzero(samples.named <= side_number("train"))
    labels = [samples.labels[row] for row in rows.tolist()]
    chosen = examples.spread(rows, _number(samples, rows))
    seen, names = [], []
    for row, found in _read(samples, chosen):
        seen.append(found)
        names.append(samples.labels[row])
    if not seen:
        return None
    high, wide = (int(np.median([found.size[side] for found in seen])) for side in (0, 1))
    counts = Counter(labels)
    numbers = np.unique(np.array(names), return_inverse=True)[1]
    plain = all(found.grey for found in seen)
    drawn = plain and float(np.median([found.toned for found in seen])) > _TWO_TONES
    kind = target_of([label for label in counts if label], "class" if samples.classes else target).kind
    # what a number says of an image may depend on left and right, which no comparison of neighbours tells
    flips = not drawn and kind != "number" and mirrored(np.stack([found.small for found in seen]), numbers, not plain)
    classes, fewest = (len(counts), min(counts.values())) if kind == "class" else (0, len(rows))
    return Survey(len(rows), classes, fewest, (high, wide), plain, drawn, flips)


def mirrored(small: Float[np.ndarray, "N S S"], classes: Int[np.ndarray, "N"], coloured: bool) -> bool:
    """Whether mirror images of the others help an image to find its class, as its nearest neighbour, or do no harm that
    is more than chance. Where hardly any image is near to a mirror image, coloured ones are taken for photographs,
    whose left and right say nothing, and grey ones for what is drawn or written.
    """
    itself, mirror = _compared(small), _compared(small[:, :, ::-1])
    near, turned = itself @ itself.T, itself @ mirror.T
    for table in (near, turned):
        np.fill_diagonal(table, -np.inf)
    nearer = turned.max(1) > near.max(1)
    if nearer.sum() < _TOLD:
        return coloured
    before, after = (classes[table.argmax(1)] == classes for table in (near, turned))
    gains, losses = (after & ~before & nearer).sum(), (before & ~after & nearer).sum()
    return bool(losses - gains <= (_DOUBT if coloured else 1) * math.sqrt(gains + losses))


def _compared(images: Float[np.ndarray, "N S S"]) -> Float[np.ndarray, "N P"]:
    """Of unit length and mean 0, so that what is near does not hang on light."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def _number(samples: LabelledImages, rows: np.ndarray) -> int:
    """How many images are looked at: fewer of large files."""
    if samples.files is None or len(rows) == 0:
        return min(_MOST, len(rows))
    some = examples.spread(rows, _LEAST)
    mean = sum(samples.files[row].stat().st_size for row in some.tolist()) / len(some)
    return min(max(_LEAST, min(_MOST, int(_BYTES / max(1.0, mean)))), len(rows))


def _read(samples: LabelledImages, rows: Int[np.ndarray, "K"]) -> Iterator[tuple[int, _Seen]]:
    """What of `rows` can be read."""
    for row in rows.tolist():
        if samples.grey is not None:
            image = samples.grey[row]
            yield row, _Seen((image.shape[0], image.shape[1]), True, _toned(image), _small(image))
            continue
        assert samples.files is not None  # one of the two always is
        try:
            pixels = read_image(samples.files[row])
        except UserError:  # the task says so, or leaves it out
            continue
        light = grey(pixels)[..., 0]
        few = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)].astype(np.int16)
        is_grey = float(np.abs(few - few[..., :1]).mean()) <= _ALIKE * 255
        yield row, _Seen((light.shape[0], light.shape[1]), is_grey, _toned(light), _small(light))


def _toned(image: UInt8[np.ndarray, "H W"]) -> float:
    """The share of pixels within a sixth of the darkest or the brightest."""
    low, high = int(image.min()), int(image.max())
    edge = (high - low) / 6
    return float(((image <= low + edge) | (image >= high - edge)).mean())


def _small(image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Means of fields of nearly equal size; small images as they are, each pixel drawn out."""
    x = image.astype(np.float64)
    for axis in (0, 1):
        x = _fields(x, axis)
    return x


def _fields(x: np.ndarray, axis: int) -> np.ndarray:
    count = x.shape[axis]
    if count <= _SIDE:
        return np.take(x, np.arange(_SIDE) * count // _SIDE, axis)
    starts = np.arange(_SIDE) * count // _SIDE
    lengths = np.diff(np.append(starts, count))
    shape = [1, 1]
    shape[axis] = _SIDE
    return np.add.reduceat(x, starts, axis) / lengths.reshape(shape)
