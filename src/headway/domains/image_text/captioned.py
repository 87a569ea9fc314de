"""Images and their captions, wherever they come from: what a captioner is trained on and judged by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from headway.codecs.images import read_image
from headway.codecs.processor import ImageProcessor
from headway.data import SplitConfig, sides_of
from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column, read_info, write_info
from headway.data.tables import read_table
from headway.domains.image_text.images import fitted
from headway.errors import UserError

_LOG = logging.getLogger(__name__)
_VERSION = 1  # of the cache
_SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class Captioned:
    """N samples. `pixels(rows)` are their images, all of one size; `images` are equal for samples of the same image,
    whose captions are one another's alternatives; `sides` are the samples of each split, "train", "validation", "test"
    and perhaps others; `shown(row)` is a sample's name for people, `place(row)` where it stands, for messages.
    """

    captions: Sequence[str]
    images: Int[np.ndarray, "N"]
    sides: dict[str, Int[np.ndarray, "K"]]
    pixels: Callable[[Int[np.ndarray, "B"]], UInt8[np.ndarray, "B H W 3"]]
    shown: Callable[[int], str]
    place: Callable[[int], str]


def read_captioned(
    paths: Sequence[Path], columns: dict[str, str], processor: ImageProcessor, split: SplitConfig, skip_bad: bool
) -> Captioned:
    """The rows of .csv, .tsv and .jsonl files with a `path`, relative to the file's folder, and a `caption`.

    Images are decoded once and kept in the cache, resized as `processor` says. Equal files are one image, all of whose
    captions are on the same side of a split. UserErrors: a file that is not there; an image that is none, cut off or
    corrupt, unless `skip_bad` leaves it out, which is counted in the log.
    """
    table = read_table(paths, columns)
    files = [_file(table.places[row][0].path, name, table.place(row)) for row, name in enumerate(table.columns["path"])]
    contents = {file: _content(file) for file in dict.fromkeys(files)}
    distinct = {content: file for file, content in contents.items()}
    stored = _decoded(distinct, processor, skip_bad)
    kept = np.array([row for row, file in enumerate(files) if contents[file] in stored.places], np.int64)
    chosen = [files[row] for row in kept.tolist()]
    _tell_of_corrupt(
        len(files) - len(kept), [file for content, file in distinct.items() if content not in stored.places]
    )
    if not chosen:
        raise UserError(f"all {len(files)} images of {', '.join(map(str, paths))} are corrupt; get them again")
    images = np.array([stored.places[contents[file]] for file in chosen], np.int64)
    return Captioned(
        captions=[table.columns["caption"][row] for row in kept.tolist()],
        images=images,
        sides=sides_of([contents[file] for file in chosen], table.named[kept], split),
        pixels=lambda rows: np.asarray(stored.pixels[images[rows]]),
        shown=lambda row: chosen[row].name,
        place=lambda row: table.place(int(kept[row])),
    )


def _file(table: Path, name: str, place: str) -> Path:
    file = table.parent / Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"{place}: {name} is no file in {table.parent}; correct it, or leave the line out")
    return file


def _content(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _tell_of_corrupt(rows: int, files: Sequence[Path]) -> None:
    if rows:
        shown = ", ".join(map(str, files[:_SHOWN])) + (", ..." if len(files) > _SHOWN else "")
        _LOG.warning("%d rows are left out, as %d images are corrupt: %s", rows, len(files), shown)


class _Stored(NamedTuple):
    """Decoded images in the cache, and the place of each by its file's content; corrupt ones have none."""

    pixels: UInt8[np.ndarray, "F H W 3"]
    places: dict[str, int]


def _decoded(files: Mapping[str, Path], processor: ImageProcessor, skip: bool) -> _Stored:
    """The images of files by their content."""
    key = cache_key("captioned", _VERSION, processor, skip, list(files))
    folder = open_or_build(cache_root() / key, lambda part: _build(part, files, processor, skip))
    info = read_info(folder)
    shape = tuple(info["shape"])
    pixels = read_column(folder, "pixels", np.uint8, int(np.prod(shape))).reshape(shape)
    return _Stored(pixels, {content: place for place, content in enumerate(info["contents"])})


def _build(part: Path, files: Mapping[str, Path], processor: ImageProcessor, skip: bool) -> None:
    contents: list[str] = []
    shape: tuple[int, ...] = (0, 0, 3)
    with Columns(part, {"pixels": np.uint8}) as columns:
        for content, file in files.items():
            try:
                image = fitted(processor, read_image(file))
            except UserError:
                if not skip:
                    raise
                continue
            contents.append(content)
            shape = image.shape
            columns.append("pixels", image)
    write_info(part, {"shape": [len(contents), *shape], "contents": contents})
