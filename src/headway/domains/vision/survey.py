"""Statistics of a user's images, from a sample of them read before any decoding for training."""

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

_MOST, _LEAST = 4000, 64  # maximum and minimum images in the sample
_BYTES = 30_000_000  # maximum bytes of image files to read
_SIDE = 16  # pixels per side for comparing images
_TOLD = 30  # images whose nearest neighbour is mirrored, needed to draw a conclusion
_DOUBT = 2  # standard deviations by which mirroring must harm photographs
_TWO_TONES = 0.85  # minimum share in a drawing: 0.93 in handwritten digits, 0.71 in clothes
_ALIKE = 0.02  # maximum difference of red, green and blue in a grey image, as a share of 255


class Survey(NamedTuple):
    """The number of training images, their number of `classes` (0 for numbers and several labels), `fewest` images of a
    class, their median height and width, whether all sampled images are grey, whether they are drawings or writing, in
    two tones, and whether mirroring keeps their meaning, which is never assumed of drawings.
    """

    images: int
    classes: int
    fewest: int
    size: tuple[int, int]
    grey: bool
    drawn: bool
    flips: bool


class _Seen(NamedTuple):
    """Statistics of one image: its size, whether it is grey, its share of darkest and brightest pixels, and a thumbnail
    of its brightness.
    """

    size: tuple[int, int]
    grey: bool
    toned: float
    small: Float[np.ndarray, "S S"]


def survey(samples: LabelledImages, target: str = "auto") -> Survey | None:
    """Survey a sample of images outside the test split; None if none can be read.

    It is deterministic and reads a limited number of bytes, so the same data get the same result.
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
    # a number may depend on left and right, which comparing neighbours does not show
    flips = not drawn and kind != "number" and mirrored(np.stack([found.small for found in seen]), numbers, not plain)
    classes, fewest = (len(counts), min(counts.values())) if kind == "class" else (0, len(rows))
    return Survey(len(rows), classes, fewest, (high, wide), plain, drawn, flips)


def mirrored(small: Float[np.ndarray, "N S S"], classes: Int[np.ndarray, "N"], coloured: bool) -> bool:
    """Whether mirror images help an image to find its class by its nearest neighbour, or do no significant harm. If
    hardly any image is close to a mirror image, coloured ones are assumed to be photographs, whose left and right do
    not matter, and grey ones to be drawings or writing.
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
    """Unit-length, zero-mean vectors, so that similarity does not depend on brightness."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def _number(samples: LabelledImages, rows: np.ndarray) -> int:
    """The sample size: fewer for large files."""
    if samples.files is None or len(rows) == 0:
        return min(_MOST, len(rows))
    some = examples.spread(rows, _LEAST)
    mean = sum(samples.files[row].stat().st_size for row in some.tolist()) / len(some)
    return min(max(_LEAST, min(_MOST, int(_BYTES / max(1.0, mean)))), len(rows))


def _read(samples: LabelledImages, rows: Int[np.ndarray, "K"]) -> Iterator[tuple[int, _Seen]]:
    """The statistics of the readable images among `rows`."""
    for row in rows.tolist():
        if samples.grey is not None:
            image = samples.grey[row]
            yield row, _Seen((image.shape[0], image.shape[1]), True, _toned(image), _small(image))
            continue
        assert samples.files is not None  # exactly one of the two is set
        try:
            pixels = read_image(samples.files[row])
        except UserError:  # the task reports it, or skips it
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
    """Block means; small images are enlarged by repeating pixels."""
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
