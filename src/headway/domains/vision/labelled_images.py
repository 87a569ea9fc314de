"""Labelled image data sets, decoded once to the model's input size, and statistics of a sample of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from headway.codecs.image_processor import ImageProcessor, pillow, read_image, to_grey
from headway.config import from_dict
from headway.data.image_cache import (
    DecodedImages,
    ImageSource,
    Pixels,
    image_key,
    open_images,
    open_prepared_images,
    stored_images,
)
from headway.data.input_files import File, file_kind, read_lines
from headway.data.labelled_files import idx_files, is_idx, read_idx_pairs, read_labelled_files
from headway.data.labels import infer_target
from headway.data.prepared.prepared_samples import PreparedSamples, SampleArrays
from headway.data.prepared.shard_reader import is_prepared
from headway.data.splits import split_code
from headway.data.token_store import fingerprint
from headway.errors import ConfigError, UserError
from headway.io.files import user_path
from headway.learn import examples

KEY_BYTES = 8  # bytes per key


RESAMPLE = 2  # filter of prepared images: bilinear, as in ViT's own processor


def load_images(samples: LabelledImages, processor: ImageProcessor, skip: bool) -> DecodedImages:
    """The images at the model's input size, from the cache if the same contents were decoded to this size before.

    An unreadable file is a UserError that names it; with `skip`, such files are counted in the log and listed in
    `errors`.
    """
    if samples.prepared is not None:
        return prepared_images(samples.prepared, processor, KEY_BYTES)
    shape = (*(processor.shape or ()), processor.channels)
    if samples.grey is not None and samples.grey.shape[1:] == shape[:2] and shape[2] == 1:
        pixels = samples.grey[..., None]
        return DecodedImages(pixels, [image_key(image, KEY_BYTES) for image in pixels], {})
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

    return open_images(ImageSource(read, len(samples), shape, (content, settings), KEY_BYTES), skip)


def prepared_images(samples: PreparedSamples, processor: ImageProcessor, key_bytes: int) -> DecodedImages:
    """Prepared images with keys of this size, which are those in the table if they have it. UserError if the model
    takes other images.
    """
    shape, stored = (*(processor.shape or ()), processor.channels), tuple(samples.details["shape"])
    if shape != stored or (processor.resample, processor.crop) != (RESAMPLE, None):
        raise UserError(
            f"{samples.data.name} contains images of {stored[0]} x {stored[1]} pixels with {stored[2]} channels, but "
            f"the model takes {' x '.join(map(str, shape[:-1]))} with {shape[-1]}, or other filters; prepare them "
            "again with --pixels and --channels, or train on the image files"
        )
    return stored_images(samples, key_bytes)


IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_MAX_DIGIT_VALUE = 16  # the maximum pixel value of scikit-learn's digits


@dataclass(frozen=True)
class LabelledImages:
    """Each image's label, its named split, uint8 [N] (0: none), and its location for messages.

    The images are in `files` or in `grey`, [N, H, W], whose `origins` are files and positions in them. `classes` is
    whether the labels are known to be classes: if they are folder names, or not from a table of paths. Images of one of
    the `groups`, if set, stay in one split. `prepared` images are in shards instead.
    """

    labels: list[str]
    named_splits: np.ndarray
    locations: Sequence[str]
    files: list[Path] | None = None
    grey: UInt8[np.ndarray, "N H W"] | None = None
    classes: bool = True
    groups: list[str] | None = None
    origins: Sequence[tuple[Path, int]] = ()
    prepared: PreparedSamples | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: np.ndarray) -> LabelledImages:
        """The images of `rows`, in this order."""
        if len(rows) == len(self):
            return self
        if self.prepared is not None:
            return _prepared_images(
                self.prepared.select(rows), None if self.groups is None else [self.groups[row] for row in rows.tolist()]
            )
        indices = [int(row) for row in rows]
        labels, locations = [self.labels[row] for row in indices], [self.locations[row] for row in indices]
        files = None if self.files is None else [self.files[row] for row in indices]
        grey = None if self.grey is None else self.grey[rows]
        groups = None if self.groups is None else [self.groups[row] for row in indices]
        origins = [self.origins[row] for row in indices] if self.origins else ()
        return LabelledImages(labels, self.named_splits[rows], locations, files, grey, self.classes, groups, origins)

    def pixels(self, row: int) -> UInt8[np.ndarray, "H W *C"]:
        """An image at its own size, [H, W, 3], or [H, W] if it is grey. UserError for a file that cannot be read."""
        if self.grey is not None:
            return self.grey[row]
        if self.prepared is not None:
            image = SampleArrays(self.prepared, self.prepared.details["shape"])[row]
            return image[..., 0] if image.shape[2] == 1 else image
        assert self.files is not None  # exactly one of the two is set
        return read_image(self.files[row])


def read_samples(
    paths: Sequence[Path], names: Sequence[str] = (), label: str = "label", group: str | None = None
) -> LabelledImages:
    """Read folders of image files, one folder per class; tables with path and label; folders with IDX files; tables of
    numbers without a header, with one image per row and its class last; or prepared images. `names` are the names of
    numeric classes from 0 on, and `label` is the label column in tables with paths. Images in files of their own may
    have a `group` (`read_labelled_files`); it is a UserError for others.
    """
    if paths and is_prepared(paths[0]):
        prepared = open_prepared_images(paths, "images")
        prepared.check_labels()
        if label != "label":
            raise ConfigError(f"task.label was decided when {prepared.data.name} was prepared; remove the setting")
        return _prepared_images(prepared, prepared.groups(group))
    user_paths = [user_path(path) for path in paths]
    files = [file for path in user_paths for file in (idx_files(path) if path.is_dir() else [path])]
    if user_paths and files and all(map(is_idx, files)):
        parts = read_idx_pairs(files)
        if len({part.images.shape[1:] for part in parts}) > 1:
            sizes = " and ".join(f"{part.path} of {part.images.shape[1]} x {part.images.shape[2]}" for part in parts)
            raise UserError(f"the images have different sizes: {sizes}; use files from one data set")
        split_codes = [0 if part.named_split is None else split_code(part.named_split) for part in parts]
        named_splits = np.repeat(np.array(split_codes, np.uint8), [len(part.labels) for part in parts])
        origins = [(Path(part.path), i) for part in parts for i in range(len(part.labels))]
        locations = [f"{path}, image {i + 1}" for path, i in origins]
        labels = _labels(np.concatenate([part.labels for part in parts]), names, locations)
        grey = np.concatenate([part.images for part in parts])
        return LabelledImages(labels, named_splits, locations, grey=grey, origins=origins)
    if len(user_paths) == 1 and is_number_table(user_paths[0]):
        return read_number_table(user_paths[0], names)
    labelled = read_labelled_files(user_paths, IMAGE_EXTENSIONS, "image", label, group)
    return LabelledImages(
        labelled.labels,
        labelled.named_splits,
        labelled.locations,
        labelled.files,
        classes=labelled.from_folders,
        groups=labelled.groups,
    )


def _prepared_images(samples: PreparedSamples, groups: list[str] | None) -> LabelledImages:
    names, classes = samples.names, samples.from_folders
    return LabelledImages(samples.labels, samples.named_splits, names, classes=classes, groups=groups, prepared=samples)


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


def _parse_integer(text: str) -> int | None:
    """An integer, also if written as 3.0 or 3.000e+00."""
    try:
        parsed = float(text)
    except ValueError:
        return None
    return int(parsed) if parsed.is_integer() else None


def is_number_table(path: Path) -> bool:
    """Whether a file is a .csv that starts with numbers instead of a header."""
    if not path.is_file() or file_kind(path.name) != ".csv":
        return False
    fields = next(read_lines(File(path)), "").split(",")
    return len(fields) > 2 and all(_parse_integer(field) is not None for field in fields)


def read_number_table(path: Path, names: Sequence[str] = ()) -> LabelledImages:
    """The square images in the rows of a table of numbers, each with its class in the last column."""
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
    origins = [(path, i) for i in range(len(rows))]
    labels = _labels(classes, names, locations)
    return LabelledImages(labels, np.zeros(len(rows), np.uint8), locations, grey=grey, origins=origins)


_MAX_IMAGES, _MIN_IMAGES = 4000, 64  # maximum and minimum images in the sample
_MAX_BYTES = 30_000_000  # maximum bytes of image files to read
_THUMBNAIL = 16  # pixels per side for comparing images
_MIN_EVIDENCE = 30  # images with a mirrored nearest neighbour needed for a conclusion
_MAX_DEVIATIONS = 2  # standard deviations by which mirroring must hurt photographs to be ruled out
_MIN_TWO_TONE = 0.85  # minimum share in a drawing: 0.93 in handwritten digits, 0.71 in clothes
_MAX_COLOR_DIFFERENCE = 0.02  # maximum difference between red, green and blue in a grey image, as a share of 255


@dataclass(frozen=True)
class Survey:
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


def survey_images(
    samples: LabelledImages, target: str = "auto", read: Callable[[int], np.ndarray] | None = None
) -> Survey | None:
    """Survey a sample of images outside the test split, with `read` instead of their own `pixels`; None if none can be
    read.

    The survey is deterministic and reads a limited number of bytes.
    """
    rows = np.flatnonzero(samples.named_splits <= split_code("train"))
    labels = [samples.labels[row] for row in rows.tolist()]
    measured = survey_pixels(read or samples.pixels, rows, samples.files)
    if measured is None:
        return None
    counts = Counter(labels)
    class_ids = np.unique(np.array([samples.labels[row] for row in measured.rows]), return_inverse=True)[1]
    kind = infer_target([label for label in counts if label], "class" if samples.classes else target).kind
    # a numeric target may depend on left and right, which comparing neighbours does not show
    can_flip = not measured.is_drawing and kind != "number"
    flips = can_flip and is_mirror_invariant(measured.thumbnails, class_ids, not measured.grey)
    classes, fewest = (len(counts), min(counts.values())) if kind == "class" else (0, len(rows))
    return Survey(len(rows), classes, fewest, measured.size, measured.grey, measured.is_drawing, flips)


def prepared_survey(samples: PreparedSamples) -> Survey:
    """The survey of prepared images, whose sample was read when they were prepared, at their present size."""
    height, width, channels = samples.details["shape"]
    survey = samples.details.get("survey")
    try:
        stated = from_dict(Survey, survey, "survey")
    except ConfigError as error:
        raise UserError(f"the index of {samples.data.name} is damaged ({error}); prepare the data again") from None
    return replace(stated, size=(height, width), grey=channels == 1)


class PixelSurvey(NamedTuple):
    """The images that could be read, in `rows`: their median height and width, whether all are grey, whether they are
    drawings or writing in two tones, and their thumbnails.
    """

    rows: list[int]
    size: tuple[int, int]
    grey: bool
    is_drawing: bool
    thumbnails: Float[np.ndarray, "N S S"]


def survey_pixels(
    read: Callable[[int], np.ndarray], rows: np.ndarray, files: Sequence[Path] | None = None
) -> PixelSurvey | None:
    """Survey a sample of the images of `rows`, each of which `read` returns as [H, W, 3], or as [H, W] if it is grey;
    None if none can be read. Of large `files`, fewer are read.
    """
    size = min(_MAX_IMAGES, len(rows))
    if files is not None and len(rows):
        subset = examples.spread_evenly(rows, _MIN_IMAGES).tolist()
        mean = sum(files[row].stat().st_size for row in subset) / len(subset)
        size = min(max(_MIN_IMAGES, min(_MAX_IMAGES, int(_MAX_BYTES / max(1.0, mean)))), len(rows))
    readable, sizes, are_grey, two_tone_shares, thumbnails = [], [], [], [], []
    for row in examples.spread_evenly(rows, size).tolist():
        try:
            pixels = read(row)
        except UserError:  # the task reports it, or skips it
            continue
        brightness, is_grey = (pixels, True) if pixels.ndim == 2 else (to_grey(pixels)[..., 0], False)
        if not is_grey:
            subsampled = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)].astype(np.int16)
            is_grey = float(np.abs(subsampled - subsampled[..., :1]).mean()) <= _MAX_COLOR_DIFFERENCE * 255
        low, high = int(brightness.min()), int(brightness.max())
        edge = (high - low) / 6  # pixels within a sixth of the range are of the darkest or the brightest tone
        two_tone_shares.append(float(((brightness <= low + edge) | (brightness >= high - edge)).mean()))
        readable.append(row)
        sizes.append(brightness.shape)
        are_grey.append(is_grey)
        thumbnails.append(_thumbnail(brightness))
    if not sizes:
        return None
    height, width = (int(np.median([size[axis] for size in sizes])) for axis in (0, 1))
    all_grey = all(are_grey)
    is_drawing = all_grey and float(np.median(two_tone_shares)) > _MIN_TWO_TONE
    return PixelSurvey(readable, (height, width), all_grey, is_drawing, np.stack(thumbnails))


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


def _thumbnail(image: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "S S"]:
    """Block means; small images are enlarged by repeating pixels."""
    x = image.astype(np.float64)
    for axis, count in enumerate(image.shape):
        starts = np.arange(_THUMBNAIL) * count // _THUMBNAIL
        if count <= _THUMBNAIL:
            x = np.take(x, starts, axis)
        else:
            lengths = np.diff(np.append(starts, count))
            x = np.add.reduceat(x, starts, axis) / (lengths[:, None] if axis == 0 else lengths)
    return x
