"""Statistics of the user's images, from a sample that is read before decoding for training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.image_processor import read_image, to_grey
from headway.data.label_targets import infer_target
from headway.data.splits import split_code
from headway.domains.vision.labelled_images import LabelledImages
from headway.errors import UserError
from headway.learn import examples

_MAX_IMAGES, _MIN_IMAGES = 4000, 64  # maximum and minimum images in the sample
_MAX_BYTES = 30_000_000  # maximum bytes of image files to read
_THUMBNAIL = 16  # pixels per side for comparing images
_MIN_EVIDENCE = 30  # images with a mirrored nearest neighbour needed for a conclusion
_MAX_DEVIATIONS = 2  # standard deviations by which mirroring must hurt photographs to be ruled out
_MIN_TWO_TONE = 0.85  # minimum share in a drawing: 0.93 in handwritten digits, 0.71 in clothes
_MAX_COLOR_DIFFERENCE = 0.02  # maximum difference between red, green and blue in a grey image, as a share of 255


class Survey(NamedTuple):
    """The number of training images, the number of `classes` (0 if targets are numbers or several labels), the number
    of images in the smallest class (`fewest`), the median height and width, whether all sampled images are grey,
    whether they are drawings or writing in two tones, and whether mirroring keeps their meaning, which is never assumed
    for drawings.
    """

    images: int
    classes: int
    min_class_size: int
    size: tuple[int, int]
    grey: bool
    is_drawing: bool
    flips: bool


class _ImageStatistics(NamedTuple):
    """Statistics of an image: its size, whether it is grey, its share of darkest and brightest pixels, and a brightness
    thumbnail.
    """

    size: tuple[int, int]
    grey: bool
    two_tone: float
    thumbnail: Float[np.ndarray, "S S"]


def survey_images(samples: LabelledImages, target: str = "auto") -> Survey | None:
    """Survey a sample of images outside the test split; None if none can be read.

    The survey is deterministic and reads a limited number of bytes.
    """
    rows = np.flatnonzero(samples.named_splits <= split_code("train"))
    labels = [samples.labels[row] for row in rows.tolist()]
    sample = examples.spread_evenly(rows, _sample_size(samples, rows))
    statistics, sampled_labels = [], []
    for row, image_statistics in _read_statistics(samples, sample):
        statistics.append(image_statistics)
        sampled_labels.append(samples.labels[row])
    if not statistics:
        return None
    height, width = (
        int(np.median([image_statistics.size[axis] for image_statistics in statistics])) for axis in (0, 1)
    )
    counts = Counter(labels)
    class_ids = np.unique(np.array(sampled_labels), return_inverse=True)[1]
    all_grey = all(image_statistics.grey for image_statistics in statistics)
    is_drawing = (
        all_grey and float(np.median([image_statistics.two_tone for image_statistics in statistics])) > _MIN_TWO_TONE
    )
    kind = infer_target([label for label in counts if label], "class" if samples.classes else target).kind
    # a numeric target may depend on left and right, which comparing neighbours does not show
    flips = (
        not is_drawing
        and kind != "number"
        and is_mirror_invariant(
            np.stack([image_statistics.thumbnail for image_statistics in statistics]), class_ids, not all_grey
        )
    )
    classes, fewest = (len(counts), min(counts.values())) if kind == "class" else (0, len(rows))
    return Survey(len(rows), classes, fewest, (height, width), all_grey, is_drawing, flips)


def is_mirror_invariant(thumbnails: Float[np.ndarray, "N S S"], classes: Int[np.ndarray, "N"], coloured: bool) -> bool:
    """Whether adding mirror images helps nearest-neighbour classification, or does not hurt it significantly. If hardly
    any image is close to a mirror image, colour images are assumed to be photographs, for which left and right do not
    matter, and grey images to be drawings or writing.
    """
    vectors, mirrored_vectors = _unit_vectors(thumbnails), _unit_vectors(thumbnails[:, :, ::-1])
    similarity, mirror_similarity = vectors @ vectors.T, vectors @ mirrored_vectors.T
    for table in (similarity, mirror_similarity):
        np.fill_diagonal(table, -np.inf)
    mirror_is_nearest = mirror_similarity.max(1) > similarity.max(1)
    if mirror_is_nearest.sum() < _MIN_EVIDENCE:
        return coloured
    before, after = (classes[table.argmax(1)] == classes for table in (similarity, mirror_similarity))
    gains, losses = (after & ~before & mirror_is_nearest).sum(), (before & ~after & mirror_is_nearest).sum()
    return bool(losses - gains <= (_MAX_DEVIATIONS if coloured else 1) * math.sqrt(gains + losses))


def _unit_vectors(images: Float[np.ndarray, "N S S"]) -> Float[np.ndarray, "N P"]:
    """Unit-length, zero-mean vectors, so that similarity does not depend on brightness."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)


def _sample_size(samples: LabelledImages, rows: np.ndarray) -> int:
    """The sample size: fewer for large files."""
    if samples.files is None or len(rows) == 0:
        return min(_MAX_IMAGES, len(rows))
    subset = examples.spread_evenly(rows, _MIN_IMAGES)
    mean = sum(samples.files[row].stat().st_size for row in subset.tolist()) / len(subset)
    return min(max(_MIN_IMAGES, min(_MAX_IMAGES, int(_MAX_BYTES / max(1.0, mean)))), len(rows))


def _read_statistics(samples: LabelledImages, rows: Int[np.ndarray, "K"]) -> Iterator[tuple[int, _ImageStatistics]]:
    """Statistics of the readable images among `rows`."""
    for row in rows.tolist():
        if samples.grey is not None:
            image = samples.grey[row]
            yield (
                row,
                _ImageStatistics((image.shape[0], image.shape[1]), True, _two_tone_share(image), _thumbnail(image)),
            )
            continue
        assert samples.files is not None  # exactly one of the two is set
        try:
            pixels = read_image(samples.files[row])
        except UserError:  # the task reports it, or skips it
            continue
        brightness = to_grey(pixels)[..., 0]
        subsampled = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)].astype(np.int16)
        is_grey = float(np.abs(subsampled - subsampled[..., :1]).mean()) <= _MAX_COLOR_DIFFERENCE * 255
        yield (
            row,
            _ImageStatistics(
                (brightness.shape[0], brightness.shape[1]), is_grey, _two_tone_share(brightness), _thumbnail(brightness)
            ),
        )


def _two_tone_share(image: UInt8[np.ndarray, "H W"]) -> float:
    """The share of pixels within a sixth of the range from the darkest or the brightest."""
    low, high = int(image.min()), int(image.max())
    edge = (high - low) / 6
    return float(((image <= low + edge) | (image >= high - edge)).mean())


def _thumbnail(image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Block means; small images are enlarged by repeating pixels."""
    x = image.astype(np.float64)
    for axis in (0, 1):
        x = _block_means(x, axis)
    return x


def _block_means(x: np.ndarray, axis: int) -> np.ndarray:
    count = x.shape[axis]
    if count <= _THUMBNAIL:
        return np.take(x, np.arange(_THUMBNAIL) * count // _THUMBNAIL, axis)
    starts = np.arange(_THUMBNAIL) * count // _THUMBNAIL
    lengths = np.diff(np.append(starts, count))
    shape = [1, 1]
    shape[axis] = _THUMBNAIL
    return np.add.reduceat(x, starts, axis) / lengths.reshape(shape)
