"""Images with texts, as users have them: tables that name a file and say what it shows; and the images as a model
reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.codecs.processor import ImageProcessor, decode_image, pillow
from headway.data import Table, read_table
from headway.data.files import File, blocks
from headway.data.fingerprint import fingerprint
from headway.data.pixels import DecodedImages, ImageReading, Pixels, open_images
from headway.errors import UserError


class CaptionColumns(NamedTuple):
    """What the columns of a table are called; that of the language may be missing."""

    image: str = "path"
    caption: str = "caption"
    language: str = "language"


COLUMNS = CaptionColumns()


@dataclass(frozen=True)
class Captions:
    """Texts of M images.

    `images` are files, each once. Text n of `texts` [N] belongs to image `of[n]` (int64 [N]), stands at `places[n]`
    and is in `languages[n]`, None where nothing says one. `asked` bool [N] marks those that are asked for where a model
    is judged; the others are learnt from only. `named` uint8 [M] is the split that the names of tables state for an
    image. Images of one of the `groups` [M] are never on two sides; where there are none, images of equal pixels are
    not.
    """

    images: list[File]
    texts: list[str]
    of: np.ndarray
    places: list[str]
    named: np.ndarray
    asked: np.ndarray
    languages: list[str] | None = None
    groups: list[str] | None = None


def read_captions(paths: Sequence[Path | str], columns: CaptionColumns = COLUMNS) -> Captions:
    """The rows of .csv, .tsv and .jsonl tables. A path of an image is counted from the folder of its table.

    Several rows may name one image. UserErrors: those of `read_table`, and rows whose image is no file.
    """
    table = read_table(paths, columns._asdict(), optional=("language",))
    files = _images(table)
    missing = {file for file in set(files) if not file.is_file()}
    if missing:
        lost = [row for row, file in enumerate(files) if file in missing]
        first = lost[0]
        raise UserError(
            f"{table.place(first)}: there is no image {table.columns['image'][first]!r} ({files[first]}); "
            f"{len(lost):,} of {len(files):,} rows name no file. Paths are counted from the table's folder: correct "
            "them, or leave these rows out"
        )
    numbers: dict[Path, int] = {}
    of = np.array([numbers.setdefault(file, len(numbers)) for file in files], np.int64)
    named = np.zeros(len(numbers), np.uint8)
    np.maximum.at(named, of, table.named)  # what any table holds out is held out
    places = [table.place(row) for row in range(len(table))]
    images, texts = [File(file) for file in numbers], table.columns["caption"]
    return Captions(images, texts, of, places, named, np.ones(len(texts), bool), table.columns.get("language"))


def _images(table: Table) -> list[Path]:
    """The image of each row. Where many rows name one, its path is made once."""

    @cache
    def path_of(table: Path, name: str) -> Path:
        return (table.parent / Path(name).expanduser()).absolute()

    return [path_of(file.path, name) for (file, _), name in zip(table.places, table.columns["image"])]


_DIGEST = 16  # bytes of a key


def open_pictures(files: Sequence[File], processor: ImageProcessor, skip: bool) -> DecodedImages:
    """The images of files, and of members of .zip archives, resized and cropped for a model, from the cache or into it.

    UserError for the first image that is corrupt, no image at all or too large to be decoded; with `skip` such images
    are counted in a warning, and their pixels are black.
    """
    if processor.shape is None:
        raise UserError("the image processor gives every image a size of its own; let it resize or crop to one")
    pillow()  # before any work
    steps = (processor.size, processor.shortest, processor.resample, processor.crop)
    shape = (*processor.shape, processor.channels)

    def read(number: int) -> Pixels:
        file = files[number]
        return processor.pixels(decode_image(b"".join(blocks(file)), str(file)))

    return open_images(ImageReading(read, len(files), shape, (fingerprint(files), steps), _DIGEST), skip)
