"""Labelled image data sets, decoded once to the model's input size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headway.codecs.image_processor import ImageProcessor, pillow, read_image
from headway.data.content_hash import fingerprint
from headway.data.idx import IdxPart, idx_files, is_idx, read_idx_pairs
from headway.data.image_cache import DecodedImages, ImageSource, Pixels, image_key, open_images
from headway.data.input_files import File, file_kind, read_lines
from headway.data.labelled_files import read_labelled_files
from headway.data.splits import split_code
from headway.errors import UserError
from headway.safe_io import user_path

_KEY_BYTES = 8  # bytes per key


def load_images(samples: LabelledImages, processor: ImageProcessor, skip: bool) -> DecodedImages:
    """The images at the model's input size, from the cache if the same contents were decoded to this size before.

    An unreadable file is a UserError that names it; with `skip`, such files are counted in the log and listed in
    `errors`.
    """
    shape = (*(processor.shape or ()), processor.channels)
    if samples.grey is not None and samples.grey.shape[1:] == shape[:2] and shape[2] == 1:
        pixels = samples.grey[..., None]
        return DecodedImages(pixels, [image_key(image, _KEY_BYTES) for image in pixels], {})
    if samples.files is not None:
        pillow()  # fails early if Pillow is missing
        content = fingerprint(File(path) for path in samples.files)
    else:
        assert samples.grey is not None  # exactly one of the two is set
        content = hashlib.blake2b(samples.grey.tobytes(), digest_size=16).hexdigest()
    settings = (processor.size, processor.shortest, processor.resample, processor.crop)

    def read(index: int) -> Pixels:
        if samples.files is not None:
            return processor.pixels(read_image(samples.files[index]))
        assert samples.grey is not None  # exactly one of the two is set
        return processor.pixels(np.repeat(samples.grey[index][:, :, None], 3, axis=2))

    return open_images(ImageSource(read, len(samples), shape, (content, settings), _KEY_BYTES), skip)


IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_MAX_DIGIT_VALUE = 16  # the maximum pixel value of scikit-learn's digits


@dataclass(frozen=True)
class LabelledImages:
    """Each image's label, its named split, uint8 [N] (0: none), and its location for messages.

    The images are in `files` or in `grey`, [N, H, W]. `classes` is whether the labels are known to be classes: if they
    are folder names, or not from a table of paths.
    """

    labels: list[str]
    named_splits: np.ndarray
    locations: Sequence[str]
    files: list[Path] | None = None
    grey: UInt8[np.ndarray, "N H W"] | None = None
    classes: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> LabelledImages:
        """The images of `rows`, in this order."""
        if len(rows) == len(self):
            return self
        indices = [int(row) for row in rows]
        labels, locations = [self.labels[row] for row in indices], [self.locations[row] for row in indices]
        files = None if self.files is None else [self.files[row] for row in indices]
        grey = None if self.grey is None else self.grey[rows]
        return LabelledImages(labels, self.named_splits[rows], locations, files, grey, self.classes)


def read_samples(paths: Sequence[Path], names: Sequence[str] = (), label: str = "label") -> LabelledImages:
    """Read folders of image files, one folder per class; tables with path and label; folders with IDX files; or tables
    of numbers without a header, with one image per row and its class last. `names` are the names of numeric classes
    from 0 on, and `label` is the label column in tables with paths.
    """
    user_paths = [user_path(path) for path in paths]
    files = [file for path in user_paths for file in (idx_files(path) if path.is_dir() else [path])]
    if user_paths and files and all(map(is_idx, files)):
        return _from_idx(read_idx_pairs(files), names)
    if len(user_paths) == 1 and user_paths[0].is_file() and _has_number_rows(user_paths[0]):
        return _from_number_table(user_paths[0], names)
    labelled = read_labelled_files(user_paths, IMAGE_EXTENSIONS, "image", label)
    return LabelledImages(
        labelled.labels, labelled.named_splits, labelled.locations, labelled.files, classes=labelled.from_folders
    )


def _from_idx(parts: Sequence[IdxPart], names: Sequence[str]) -> LabelledImages:
    sizes = {part.images.shape[1:] for part in parts}
    if len(sizes) > 1:
        size_list = " and ".join(f"{part.path} of {part.images.shape[1]} x {part.images.shape[2]}" for part in parts)
        raise UserError(f"the images have different sizes: {size_list}; use files from one data set")
    classes = np.concatenate([part.labels for part in parts])
    named_splits = np.concatenate(
        [
            np.full(len(part.labels), 0 if part.named_split is None else split_code(part.named_split), np.uint8)
            for part in parts
        ]
    )
    locations = [f"{part.path}, image {i + 1}" for part in parts for i in range(len(part.labels))]
    labels = _labels(classes, names, locations)
    return LabelledImages(labels, named_splits, locations, grey=np.concatenate([part.images for part in parts]))


def _labels(classes: np.ndarray, names: Sequence[str], locations: Sequence[str]) -> list[str]:
    if not names:
        return [str(class_index) for class_index in classes.tolist()]
    outside = np.flatnonzero(classes >= len(names))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{locations[row]} has class {classes[row]}, but task.names has only {len(names)} names; name all classes"
        )
    return [names[int(class_index)] for class_index in classes]


def _has_number_rows(path: Path) -> bool:
    """Whether a .csv file, compressed or not, starts with a row of numbers instead of a header."""
    if file_kind(path.name) != ".csv":
        return False
    first = next(read_lines(File(path)), "").split(",")
    return len(first) > 2 and all(_parse_integer(field) is not None for field in first)


def _parse_integer(text: str) -> int | None:
    """An integer, also if written as 3.0 or 3.000e+00."""
    try:
        parsed = float(text)
    except ValueError:
        return None
    return int(parsed) if parsed.is_integer() else None


def _from_number_table(path: Path, names: Sequence[str]) -> LabelledImages:
    rows: list[list[int]] = []
    for line_number, line in enumerate(read_lines(File(path)), 1):
        if line.strip():
            integers = [_parse_integer(field) for field in line.split(",")]
            if None in integers:
                field_text = line.split(",")[integers.index(None)]
                raise UserError(f"{path}, line {line_number} has {field_text!r}, which is not an integer; correct it")
            rows.append([field for field in integers if field is not None])
    width = math.isqrt(len(rows[0]) - 1)
    bad_line = next((line_number for line_number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if bad_line is not None or width * width != len(rows[0]) - 1:
        location, count = f"{path}, line {bad_line or 1}", len(rows[(bad_line or 1) - 1])
        raise UserError(f"{location} has {count} numbers; each row needs a square image and its class")
    table = np.array(rows, np.int64)
    pixels, classes = table[:, :-1], table[:, -1]
    if table.min() < 0 or pixels.max() > 255:
        raise UserError(f"{path} has the value {table.min() if table.min() < 0 else pixels.max()}; use 0 to 255")
    if pixels.max() <= _MAX_DIGIT_VALUE:
        pixels = (pixels * 255 + _MAX_DIGIT_VALUE // 2) // _MAX_DIGIT_VALUE
    locations = [f"{path}, line {i + 1}" for i in range(len(rows))]
    grey = pixels.astype(np.uint8).reshape(-1, width, width)
    return LabelledImages(_labels(classes, names, locations), np.zeros(len(rows), np.uint8), locations, grey=grey)
