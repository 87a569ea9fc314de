"""Image data sets with labels, decoded once to the model's input size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headway.codecs.processor import ImageProcessor, pillow, read_image
from headway.data.files import File, kind_of, lines
from headway.data.fingerprint import fingerprint
from headway.data.idx import IdxPart, idx_files, is_idx, read_parts
from headway.data.labelled import read_labelled
from headway.data.pixels import DecodedImages, ImageReading, Pixels, key_of, open_images
from headway.data.splits import side_number
from headway.errors import UserError
from headway.received import place_of

_DIGEST = 8  # bytes per key


def load_images(samples: LabelledImages, processor: ImageProcessor, skip: bool) -> DecodedImages:
    """The images at the model's input size, from the cache if the same contents were decoded for this size before.

    An unreadable file is a UserError that names it; with `skip`, such files are counted in the log and listed in
    `errors`.
    """
    shape = (*(processor.shape or ()), processor.channels)
    if samples.grey is not None and samples.grey.shape[1:] == shape[:2] and shape[2] == 1:
        pixels = samples.grey[..., None]
        return DecodedImages(pixels, [key_of(image, _DIGEST) for image in pixels], {})
    if samples.files is not None:
        pillow()  # fails early if Pillow is missing
        content = fingerprint(File(path) for path in samples.files)
    else:
        assert samples.grey is not None  # exactly one of the two is set
        content = hashlib.blake2b(samples.grey.tobytes(), digest_size=16).hexdigest()
    how = (processor.size, processor.shortest, processor.resample, processor.crop)

    def read(number: int) -> Pixels:
        if samples.files is not None:
            return processor.pixels(read_image(samples.files[number]))
        assert samples.grey is not None  # exactly one of the two is set
        return processor.pixels(np.repeat(samples.grey[number][:, :, None], 3, axis=2))

    return open_images(ImageReading(read, len(samples), shape, (content, how), _DIGEST), skip)


KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_LEVELS = 16  # the maximum pixel value of scikit-learn's digits


@dataclass(frozen=True)
class LabelledImages:
    """The label of each image, its named split, uint8 [N] (0: none), and its location for messages.

    The images are in `files` or in `grey`, [N, H, W]. `classes` is whether the labels are known to be classes: names
    of folders, or those of formats other than tables of paths.
    """

    labels: list[str]
    named: np.ndarray
    places: Sequence[str]
    files: list[Path] | None = None
    grey: UInt8[np.ndarray, "N H W"] | None = None
    classes: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> LabelledImages:
        """The images of `rows`, in this order."""
        if len(rows) == len(self):
            return self
        chosen = [int(row) for row in rows]
        labels, places = [self.labels[row] for row in chosen], [self.places[row] for row in chosen]
        files = None if self.files is None else [self.files[row] for row in chosen]
        grey = None if self.grey is None else self.grey[rows]
        return LabelledImages(labels, self.named[rows], places, files, grey, self.classes)


def read_samples(paths: Sequence[Path], names: Sequence[str] = (), label: str = "label") -> LabelledImages:
    """Read folders of image files, one folder per class; tables of path and label; folders of IDX files; or tables of
    numbers without a header, one image per row, its class last. `names` are the names of numeric classes from 0 on, and
    `label` is the label column in tables of paths.
    """
    known = [place_of(path) for path in paths]
    inside = [file for path in known for file in (idx_files(path) if path.is_dir() else [path])]
    if known and inside and all(map(is_idx, inside)):
        return _of_parts(read_parts(inside), names)
    if len(known) == 1 and known[0].is_file() and _is_numbers(known[0]):
        return _of_numbers(known[0], names)
    found = read_labelled(known, KINDS, "image", label)
    return LabelledImages(found.labels, found.named, found.places, found.files, classes=found.folders)


def _of_parts(parts: Sequence[IdxPart], names: Sequence[str]) -> LabelledImages:
    sizes = {part.images.shape[1:] for part in parts}
    if len(sizes) > 1:
        told = " and ".join(f"{part.place} of {part.images.shape[1]} x {part.images.shape[2]}" for part in parts)
        raise UserError(f"images of several sizes: {told}; use files of one set")
    classes = np.concatenate([part.labels for part in parts])
    named = np.concatenate(
        [np.full(len(part.labels), 0 if part.side is None else side_number(part.side), np.uint8) for part in parts]
    )
    places = [f"{part.place}, image {i + 1}" for part in parts for i in range(len(part.labels))]
    labels = _labels(classes, names, places)
    return LabelledImages(labels, named, places, grey=np.concatenate([part.images for part in parts]))


def _labels(classes: np.ndarray, names: Sequence[str], places: Sequence[str]) -> list[str]:
    if not names:
        return [str(number) for number in classes.tolist()]
    outside = np.flatnonzero(classes >= len(names))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{places[row]} has class {classes[row]}, but task.names has {len(names)} names; name all classes"
        )
    return [names[int(number)] for number in classes]


def _is_numbers(path: Path) -> bool:
    """Whether a .csv, compressed or not, starts with a row of numbers, so it has no header."""
    if kind_of(path.name) != ".csv":
        return False
    first = next(lines(File(path)), "").split(",")
    return len(first) > 2 and all(_number(value) is not None for value in first)


def _number(value: str) -> int | None:
    """An integer, also if written as 3.0 or 3.000e+00."""
    try:
        found = float(value)
    except ValueError:
        return None
    return int(found) if found.is_integer() else None


def _of_numbers(path: Path, names: Sequence[str]) -> LabelledImages:
    rows: list[list[int]] = []
    for number, line in enumerate(lines(File(path)), 1):
        if line.strip():
            found = [_number(value) for value in line.split(",")]
            if None in found:
                wrong = line.split(",")[found.index(None)]
                raise UserError(f"{path}, line {number} has {wrong!r}, which is not an integer; correct it")
            rows.append([value for value in found if value is not None])
    wide = math.isqrt(len(rows[0]) - 1)
    odd = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if odd is not None or wide * wide != len(rows[0]) - 1:
        where, count = f"{path}, line {odd or 1}", len(rows[(odd or 1) - 1])
        raise UserError(f"{where} has {count} numbers; each row needs a square image and its class")
    table = np.array(rows, np.int64)
    pixels, classes = table[:, :-1], table[:, -1]
    if table.min() < 0 or pixels.max() > 255:
        raise UserError(f"{path} has the value {table.min() if table.min() < 0 else pixels.max()}; use 0 to 255")
    if pixels.max() <= _LEVELS:
        pixels = (pixels * 255 + _LEVELS // 2) // _LEVELS
    places = [f"{path}, line {i + 1}" for i in range(len(rows))]
    grey = pixels.astype(np.uint8).reshape(-1, wide, wide)
    return LabelledImages(_labels(classes, names, places), np.zeros(len(rows), np.uint8), places, grey=grey)
