"""Tables of captioned images, and the images as model inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.codecs.image_processor import ImageProcessor, decode_image, pillow
from headway.data import read_table
from headway.data.image_cache import (
    DecodedImages,
    ImageSource,
    Pixels,
    open_images,
    open_prepared_images,
    stored_images,
)
from headway.data.input_files import File, read_blocks
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import is_prepared
from headway.data.token_store import fingerprint
from headway.errors import ConfigError, UserError
from headway.formats.usage import Usage
from headway.io.files import file_of_row
from headway.io.json_files import parse_json


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
    `prepared` images are in shards; their files are only names.
    """

    images: list[File]
    texts: list[str]
    image_of: np.ndarray
    locations: list[str]
    named_splits: np.ndarray
    is_query: np.ndarray
    languages: list[str] | None = None
    groups: list[str] | None = None
    prepared: PreparedSamples | None = None


def read_captions(
    paths: Sequence[Path | str], columns: CaptionColumns = COLUMNS, remedy: str | None = None
) -> Captions:
    """Read .csv, .tsv and .jsonl tables. Image paths are relative to the table's folder.

    Several rows may name the same image. UserErrors as in `read_table`, with this `remedy`, and for rows
    whose image is not a file.
    """
    table = read_table(paths, columns._asdict(), optional=("language",), remedy=remedy)

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


def open_captions(paths: Sequence[Path], columns: CaptionColumns = COLUMNS) -> Captions:
    """The captions of prepared images, or those in tables (`read_captions`). UserError for a damaged table, ConfigError
    for other columns than those that were prepared.
    """
    if not paths or not is_prepared(paths[0]):
        return read_captions(paths, columns)
    samples = open_prepared_images(paths, "images with captions")
    if columns != COLUMNS:
        raise ConfigError(f"the columns were decided when {samples.data.name} was prepared; remove their settings")
    captions = []
    for image, label in enumerate(samples.labels):
        try:
            for row, text, language in parse_json(label):
                if type(row) is not int or not isinstance(text, str) or not isinstance(language, str | None):
                    raise ValueError("a caption has another type")
                captions.append((row, image, text, language))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"a caption in {samples.data.name} is damaged ({error}); prepare the data again") from None
    captions.sort(key=lambda caption: caption[0])  # in the order of the tables
    names = list(samples.names)
    languages = [language for *_, language in captions if language is not None]
    return Captions(
        [File(Path(name)) for name in names],
        [text for _, _, text, _ in captions],
        np.array([image for _, image, *_ in captions], np.int64),
        [names[image] for _, image, *_ in captions],
        samples.named_splits,
        np.ones(len(captions), bool),
        languages if len(languages) == len(captions) else None,
        prepared=samples,
    )


def prepared_size(paths: Sequence[Path], usage: Usage) -> tuple[int, int] | None:
    """The height and width of prepared images, which a model takes if it has no image processor of its own yet."""
    if usage.processor or not paths or not is_prepared(paths[0]):
        return None
    height, width, _ = open_prepared_images(paths, "images with captions").details["shape"]
    return height, width


def prepared_processor(kind: str, shape: Sequence[int]) -> ImageProcessor:
    """How prepared images are decoded: as by CLIP's processor for image-text, as by ViT's for caption."""
    height, width = shape[:2]
    if kind == "image-text" and height == width:
        return ImageProcessor(None, height, _BICUBIC, (height, width))
    return ImageProcessor((height, width), None, _BICUBIC)


def decode_captioned(captions: Captions, processor: ImageProcessor, skip: bool) -> DecodedImages:
    """The images of captions. UserErrors as in `decode_images`, and for prepared images that the model does not
    take.
    """
    samples = captions.prepared
    if samples is None:
        return decode_images(captions.images, processor, skip)
    stored = prepared_processor(samples.data.index.kind, samples.details["shape"])
    settings, expected = ((p.size, p.shortest, p.resample, p.crop) for p in (stored, processor))
    if settings != expected or samples.details["shape"][2] != processor.channels:
        height, width, channels = samples.details["shape"]
        raise UserError(
            f"{samples.data.name} contains images of {height} x {width} pixels with {channels} channels, but the model "
            f"takes {' x '.join(map(str, processor.shape or ()))} with {processor.channels}, or other filters or crops;"
            " prepare them again with --pixels, or train on the image files"
        )
    return stored_images(samples, KEY_BYTES)


KEY_BYTES, _BICUBIC = 16, 3  # bytes per key; Pillow's filter


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

    return open_images(ImageSource(read, len(files), shape, (fingerprint(files), settings), KEY_BYTES), skip)
