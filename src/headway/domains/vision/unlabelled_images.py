"""Unlabelled images: from folders, IDX files and tables, and those for pre-training next to the images of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from headway.codecs.image_processor import ImageProcessor, pillow, read_image
from headway.data.image_cache import DecodedImages, ImageSource, open_images, open_prepared_images
from headway.data.input_files import File
from headway.data.labelled_files import idx_files, is_idx, read_idx
from headway.data.prepared.prepared_samples import JoinedArrays, PreparedSamples, SampleArrays
from headway.data.prepared.shard_index import INDEX_FILE
from headway.data.prepared.shard_reader import is_index, is_prepared
from headway.data.table_files import TABLE_KINDS, read_table
from headway.data.token_store import fingerprint
from headway.data.unlabelled_files import UnlabelledFiles
from headway.domains.vision.labelled_images import (
    IMAGE_EXTENSIONS,
    RESAMPLE,
    is_number_table,
    prepared_images,
    read_number_table,
)
from headway.domains.vision.task import ImageDataset
from headway.errors import UserError
from headway.formats.out_of_distribution import image_statistics
from headway.io.files import open_file, user_path
from headway.io.remote import remote_url
from headway.learn import Recipe, Task
from headway.learn.objectives.masked_patches import distinct
from headway.learn.pretraining import UnlabelledData, similar_share

UNLABELLED_KEY_BYTES = 16  # bytes per key
_COMPARED_SIDE, _MAX_COMPARED = 32, 1000  # pixels per side of images, and images of each kind, that are compared
_LABELS = "labels"  # in the name of an IDX file without images


@dataclass(frozen=True)
class UnlabelledImages(UnlabelledFiles):
    """Images in files of their own, in IDX files and tables of numbers, or prepared."""

    kind = "images"
    _arrays: dict[Path, np.ndarray | SampleArrays] = field(default_factory=dict)

    def array(self, file: Path) -> np.ndarray | SampleArrays:
        """Prepared images [N, H, W, C], or the grey images [N, H, W] in an IDX file or a table of numbers, read
        once.
        """
        if file not in self._arrays:
            if is_index(file):
                samples = self.samples_of(file)
                self._arrays[file] = SampleArrays(samples, tuple(samples.details["shape"]))
            else:
                self._arrays[file] = read_idx(file, 3) if is_idx(file) else cast(Any, read_number_table(file).grey)
        return self._arrays[file]

    def open_prepared(self, folder: Path) -> PreparedSamples:
        return open_prepared_images([folder], "images")

    @property
    def prepared_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the first prepared images."""
        return next((tuple(samples.details["shape"]) for samples in self.prepared.values()), None)

    def pixels(self, row: int) -> np.ndarray:
        """An image at its own size, [H, W, 3], or [H, W] if it is grey. UserError for one that cannot be read."""
        file, index = self.files[row], self.indices[row]
        if index is None:
            return read_image(file)
        image = self.array(file)[index]
        return image[..., 0] if image.shape[2:] == (1,) else image

    def keys(self) -> list[str]:
        """Keys that are equal for equal contents: of a file, or of an image in an array."""
        keys, digest = [], partial(hashlib.blake2b, digest_size=UNLABELLED_KEY_BYTES)
        for row, (file, index) in enumerate(zip(self.files, self.indices)):
            if index is not None:
                keys.append(digest(self.pixels(row).tobytes()).hexdigest())
                continue
            with open_file(file) as opened:
                keys.append(hashlib.file_digest(opened, digest).hexdigest())
        return keys

    def decode(self, processor: ImageProcessor, skip: bool) -> DecodedImages:
        """The images at the model's size, which prepared ones must have, from the cache if the same files were decoded
        to this size before. An unreadable one is a UserError that names it; with `skip`, such images are counted in the
        log.
        """
        parts = self.parts()
        if self.prepared and parts:
            decoded = [
                self.select(part.rows.tolist())._decode_files(processor, skip)
                if part.samples is None
                else prepared_images(part.samples, processor, UNLABELLED_KEY_BYTES)
                for part in parts
            ]
            rows = [part.rows for part in parts]
            keys = {row: key for part, inner in zip(rows, decoded) for row, key in zip(part.tolist(), inner.keys)}
            errors = {int(part[row]): text for part, inner in zip(rows, decoded) for row, text in inner.errors.items()}
            pixels = JoinedArrays([inner.pixels for inner in decoded], rows)
            return DecodedImages(pixels, [keys[row] for row in range(len(self))], errors)
        return self._decode_files(processor, skip)

    def _decode_files(self, processor: ImageProcessor, skip: bool) -> DecodedImages:
        shape = (*(processor.shape or ()), processor.channels)
        content = fingerprint(File(path) for path in dict.fromkeys(self.files)), self.indices
        settings = (processor.size, processor.shortest, processor.resample, processor.crop)
        read = partial(_processed, self, processor)
        return open_images(ImageSource(read, len(self), shape, (content, settings), UNLABELLED_KEY_BYTES), skip)


def _processed(images: UnlabelledImages, processor: ImageProcessor, row: int) -> np.ndarray:
    pixels = images.pixels(row)
    return processor.pixels(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))


def read_images(paths: Sequence[Path]) -> UnlabelledImages:
    """The images below folders, in IDX files, prepared ones, and those in tables with the column `path`. These may have
    a column `image`, an index from 0 on in an IDX file, a table of numbers or the index.json of prepared images;
    otherwise all images of the file are read. UserError for other files and for folders without images.
    """
    found = UnlabelledImages()
    for path in paths:
        if is_prepared(path):
            _add_file(found, path / INDEX_FILE)
            continue
        path = user_path(path)
        if path.is_dir():
            images = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_EXTENSIONS]
            files = [*idx_files(path), *(file for file in images if file.name[0] != "." and file.is_file())]
        elif path.suffix.lower() in TABLE_KINDS and not is_number_table(path):
            _add_table(found, path)
            continue
        else:
            files = [path]
        if not files or not path.exists():
            fact = "contains no images" if path.exists() else "does not exist"
            raise UserError(f"{path} {fact}; pass a folder with images ({', '.join(sorted(IMAGE_EXTENSIONS))})")
        for file in files:
            _add_file(found, file)
    pillow()  # fails early if Pillow is missing
    return found


def _add_file(found: UnlabelledImages, file: Path, index: str | None = None, location: str = "") -> None:
    if file.suffix.lower() in IMAGE_EXTENSIONS:
        found.add(file)
    elif is_idx(file) and _LABELS in file.name:
        pass
    elif is_index(file) or is_idx(file) or is_number_table(file):
        found.add_numbered(file, found.array(file).shape[0], index, location)
    else:
        raise UserError(
            f"{file} is not an image; pass images ({', '.join(sorted(IMAGE_EXTENSIONS))}), a folder of them, IDX files "
            "or a .csv with path"
        )


def _add_table(found: UnlabelledImages, path: Path) -> None:
    table = read_table([path], {"path": "path", "image": "image"}, ("image",), "name the column path")
    images = table.columns.get("image")
    for row, name in enumerate(table.columns["path"]):
        file = found.file_of_row(path, name, table.location(row))
        _add_file(found, file, None if images is None else images[row], table.location(row))


def _comparable_keys(*groups: UnlabelledImages) -> list[list[str]]:
    """Keys of images that are equal for equal contents or, if some are prepared, for equal pixels at their size; empty
    for an unreadable image.
    """
    shape = next((images.prepared_shape for images in groups if images.prepared_shape is not None), None)
    if shape is None:
        return [images.keys() for images in groups]
    half = (0.5,) * shape[2]
    processor = ImageProcessor(shape[:2], resample=RESAMPLE, mean=half, std=half)
    decoded = [images.decode(processor, skip=True) for images in groups]
    return [["" if row in images.errors else key for row, key in enumerate(images.keys)] for images in decoded]


def read_unlabelled(recipe: Recipe, task: Task, paths: Sequence[Path]) -> UnlabelledData:
    """The images at the paths without duplicates and held-out images, followed by the training images of the task.
    Raises UserError if none remains.
    """
    dataset, found = cast(ImageDataset, task.examples), read_images(paths)
    images = UnlabelledImages()
    if dataset.prepared is not None:
        images.add_prepared(dataset.prepared, dataset.rows)
    else:
        for row in dataset.rows.tolist():
            file, index = dataset.origins[row] if dataset.files is None else (dataset.files[row], None)
            images.add(file, index)
    train = [int(row) for row in dataset.splits.rows("train")]
    found_keys, labelled_keys = _comparable_keys(found, images)
    unlabelled = found.select(distinct(found_keys, frozenset(labelled_keys)))
    if not len(unlabelled):
        names = ", ".join(str(remote_url(path) or path) for path in paths[:3])
        raise UserError(f"{names}: all {len(found):,} images are also in the labelled data; pass other images")
    labelled = images.select([train[row] for row in distinct([labelled_keys[row] for row in train])])
    processor = ImageProcessor(size=(_COMPARED_SIDE, _COMPARED_SIDE))
    first, second = ([(images, row) for row in range(len(images))] for images in (unlabelled, labelled))
    measure = lambda image: image_statistics(_processed(image[0], processor, image[1]))  # noqa: E731
    similar = similar_share(first, second, measure, _MAX_COMPARED)
    return UnlabelledData(
        [*unlabelled.rows("image"), *labelled.rows("image")],
        len(unlabelled),
        len(labelled),
        "images",
        similar,
        "of the labelled images are within the range of the unlabelled ones in brightness, colours and edges",
        "which may show other things, or differ in light or size",
    )
