"""Tables of captioned images, and the images as model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.codecs.image_processor import ImageProcessor, decode_image, pillow
from headway.data import read_table
from headway.data.image_cache import DecodedImages, ImageSource, Pixels, open_images
from headway.data.input_files import File, read_blocks
from headway.data.token_store import fingerprint
from headway.errors import UserError
from headway.io.files import file_of_row


class CaptionColumns(NamedTuple):
    """A table's column names; the language is optional."""

    image: str = "path"
    caption: str = "caption"
    language: str = "language"


COLUMNS = CaptionColumns()


@dataclass(frozen=True)
class Captions:
    """Texts for M images.

    `images` are distinct files. Text n of `texts` [N] belongs to image `of[n]` (int64 [N]), comes from `locations[n]`
    and is in the language `languages[n]` (None: unknown). `is_query`, bool [N], marks the texts used in evaluation; the
    others are only for training. `named_splits`, uint8 [M], is the split that the table's name assigns to each image.
    Images in the same group of `groups` [M] are always in the same split; without groups, images with equal pixels are.
    """

    images: list[File]
    texts: list[str]
    image_of: np.ndarray
    locations: list[str]
    named_splits: np.ndarray
    is_query: np.ndarray
    languages: list[str] | None = None
    groups: list[str] | None = None


def read_captions(paths: Sequence[Path | str], columns: CaptionColumns = COLUMNS) -> Captions:
    """Read .csv, .tsv and .jsonl tables. Image paths are relative to the table's folder.

    Several rows may name the same image. UserErrors as in `read_table`, and for rows whose image is not a file.
    """
    table = read_table(paths, columns._asdict(), optional=("language",))

    rows: dict[tuple[Path, str], int] = {}  # the first row of each image
    for row, ((file, _), name) in enumerate(zip(table.locations, table.columns["image"])):
        rows.setdefault((file.path, name), row)
    paths_of = {key: file_of_row(*key, table.location(row)).absolute() for key, row in rows.items()}
    files = [paths_of[file.path, name] for (file, _), name in zip(table.locations, table.columns["image"])]
    missing = {file for file in set(files) if not file.is_file()}
    if missing:
        missing_rows = [row for row, file in enumerate(files) if file in missing]
        first = missing_rows[0]
        raise UserError(
            f"{table.location(first)}: there is no image {table.columns['image'][first]!r} ({files[first]}); "
            f"{len(missing_rows):,} of {len(files):,} rows have no file. Paths are relative to the table's folder; "
            "correct them, or remove these rows"
        )
    image_index: dict[Path, int] = {}
    image_of = np.array([image_index.setdefault(file, len(image_index)) for file in files], np.int64)
    named_splits = np.zeros(len(image_index), np.uint8)
    np.maximum.at(named_splits, image_of, table.named_splits)  # an image held out in any table is held out
    locations = [table.location(row) for row in range(len(table))]
    images, texts = [File(file) for file in image_index], table.columns["caption"]
    return Captions(
        images, texts, image_of, locations, named_splits, np.ones(len(texts), bool), table.columns.get("language")
    )


_KEY_BYTES = 16  # bytes per key


def decode_images(files: Sequence[File], processor: ImageProcessor, skip: bool) -> DecodedImages:
    """Images from files and from members of .zip archives, resized and cropped for a model; cached.

    UserError for the first image that is corrupt, not an image or too large to decode; with `skip` such images are
    counted in a warning, and their pixels are black.
    """
    if processor.shape is None:
        raise UserError("the image processor outputs images of different sizes; make it resize or crop to one")
    pillow()  # fails early if Pillow is missing
    settings = (processor.size, processor.shortest, processor.resample, processor.crop)
    shape = (*processor.shape, processor.channels)

    def read(index: int) -> Pixels:
        file = files[index]
        return processor.pixels(decode_image(b"".join(read_blocks(file)), str(file)))

    return open_images(ImageSource(read, len(files), shape, (fingerprint(files), settings), _KEY_BYTES), skip)
