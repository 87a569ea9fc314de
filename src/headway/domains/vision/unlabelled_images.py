"""Unlabelled images: from folders, IDX files and tables, and those for pre-training next to the images of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from headway.codecs.image_processor import ImageProcessor, pillow, read_image
from headway.data.image_cache import DecodedImages, ImageSource, open_images
from headway.data.input_files import File
from headway.data.labelled_files import idx_files, is_idx, read_idx
from headway.data.table_files import TABLE_KINDS, read_table
from headway.data.token_store import fingerprint
from headway.domains.vision.labelled_images import IMAGE_EXTENSIONS, is_number_table, read_number_table
from headway.domains.vision.task import ImageDataset
from headway.errors import UserError
from headway.formats.out_of_distribution import image_statistics
from headway.io.files import file_of_row, open_file, user_path
from headway.learn import Recipe, Task
from headway.learn.objectives.masked_patches import distinct
from headway.learn.pretraining import UnlabelledData, similar_share

_KEY_BYTES = 16  # bytes per key
_COMPARED_SIDE, _MAX_COMPARED = 32, 1000  # pixels per side of images, and images of each kind, that are compared
_LABELS = "labels"  # in the name of an IDX file without images


@dataclass(frozen=True)
class UnlabelledImages:
    """The files of images, and the index of each image in its file; None for a file of one image."""

    files: list[Path] = field(default_factory=list)
    indices: list[int | None] = field(default_factory=list)
    _arrays: dict[Path, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def add(self, file: Path, index: int | None = None) -> None:
        self.files.append(file)
        self.indices.append(index)

    def select(self, rows: Sequence[int]) -> UnlabelledImages:
        """The images of `rows`, in this order."""
        return UnlabelledImages([self.files[row] for row in rows], [self.indices[row] for row in rows], self._arrays)

    def array(self, file: Path) -> np.ndarray:
        """The grey images [N, H, W] in an IDX file or a table of numbers, read once."""
        if file not in self._arrays:
            self._arrays[file] = read_idx(file, 3) if is_idx(file) else cast(Any, read_number_table(file).grey)
        return self._arrays[file]

    def pixels(self, row: int) -> np.ndarray:
        """An image at its own size, [H, W, 3], or [H, W] if it is grey. UserError for one that cannot be read."""
        file, index = self.files[row], self.indices[row]
        if index is None:
            return read_image(file)
        images = self.array(file)
        if not 0 <= index < len(images):
            raise UserError(f"{file} has {len(images):,} images, so there is no image {index}; correct the table")
        return images[index]

    def keys(self) -> list[str]:
        """Keys that are equal for equal contents: of a file, or of an image in an array."""
        keys, digest = [], partial(hashlib.blake2b, digest_size=_KEY_BYTES)
        for row, (file, index) in enumerate(zip(self.files, self.indices)):
            if index is not None:
                keys.append(digest(self.pixels(row).tobytes()).hexdigest())
                continue
            with open_file(file) as opened:
                keys.append(hashlib.file_digest(opened, digest).hexdigest())
        return keys

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of a table of these images, which `read_images` reads."""
        for file, index in zip(self.files, self.indices):
            yield {"path": str(file), "image": str(index or 0)}

    def decode(self, processor: ImageProcessor, skip: bool) -> DecodedImages:
        """The images at the model's size, from the cache if the same files were decoded to this size before. An
        unreadable one is a UserError that names it; with `skip`, such images are counted in the log.
        """
        shape = (*(processor.shape or ()), processor.channels)
        content = fingerprint(File(path) for path in dict.fromkeys(self.files)), self.indices
        settings = (processor.size, processor.shortest, processor.resample, processor.crop)
        read = partial(_processed, self, processor)
        return open_images(ImageSource(read, len(self), shape, (content, settings), _KEY_BYTES), skip)


def _processed(images: UnlabelledImages, processor: ImageProcessor, row: int) -> np.ndarray:
    pixels = images.pixels(row)
    return processor.pixels(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))


def read_images(paths: Sequence[Path]) -> UnlabelledImages:
    """The images below folders, in IDX files, and in tables with the column `path`. These may have a column `image`, an
    index from 0 on in an IDX file or a table of numbers; otherwise all images of the file are read. UserError for other
    files and for folders without images.
    """
    found = UnlabelledImages()
    for path in map(user_path, paths):
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


def _add_file(found: UnlabelledImages, file: Path) -> None:
    if file.suffix.lower() in IMAGE_EXTENSIONS:
        found.add(file)
    elif is_idx(file) and _LABELS in file.name:
        pass
    elif is_idx(file) or is_number_table(file):
        for index in range(len(found.array(file))):
            found.add(file, index)
    else:
        raise UserError(
            f"{file} is not an image; pass images ({', '.join(sorted(IMAGE_EXTENSIONS))}), a folder of them, IDX files "
            "or a .csv with path"
        )


def _add_table(found: UnlabelledImages, path: Path) -> None:
    table = read_table([path], {"path": "path", "image": "image"}, ("image",), "name the column path")
    images = table.columns.get("image")
    for row, name in enumerate(table.columns["path"]):
        file = file_of_row(path, name, table.location(row))
        if not file.is_file():
            raise UserError(f"{table.location(row)}: there is no file {name}; correct or remove the line")
        if images is None or file.suffix.lower() in IMAGE_EXTENSIONS:
            _add_file(found, file)
        elif images[row].isdecimal():
            found.add(file, int(images[row]))
        else:
            raise UserError(f"{table.location(row)}: the image is {images[row]!r}; use an index from 0 on")


def read_unlabelled(recipe: Recipe, task: Task, paths: Sequence[Path]) -> UnlabelledData:
    """The images at the paths without duplicates and held-out images, followed by the training images of the task.
    Raises UserError if none remains.
    """
    dataset = cast(ImageDataset, task.examples)
    if dataset.prepared is not None:
        raise UserError(f"{dataset.prepared.data.name} has no image files to pre-train on; pass the folder of images")
    images = UnlabelledImages()
    for row in dataset.rows.tolist():
        file, index = dataset.origins[row] if dataset.files is None else (dataset.files[row], None)
        images.add(file, index)
    labelled_keys, splits = images.keys(), dataset.splits
    train = [int(row) for row in splits.rows("train")]
    found = read_images(paths)
    unlabelled = found.select(distinct(found.keys(), frozenset(labelled_keys)))
    if not len(unlabelled):
        names = ", ".join(map(str, paths[:3]))
        raise UserError(f"{names}: all {len(found):,} images are also in the labelled data; pass other images")
    labelled = images.select([train[row] for row in distinct([labelled_keys[row] for row in train])])
    processor = ImageProcessor(size=(_COMPARED_SIDE, _COMPARED_SIDE))
    first, second = ([(images, row) for row in range(len(images))] for images in (unlabelled, labelled))
    measure = lambda image: image_statistics(_processed(image[0], processor, image[1]))  # noqa: E731
    similar = similar_share(first, second, measure, _MAX_COMPARED)
    return UnlabelledData(
        [*unlabelled.rows(), *labelled.rows()],
        len(unlabelled),
        len(labelled),
        "images",
        similar,
        "of the labelled images are within the range of the unlabelled ones in brightness, colours and edges",
        "which may show other things, or differ in light or size",
    )
