"""IDX files, the format of MNIST and similar sets: a header of sizes, then bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headway.data.files import COMPRESSIONS, File, blocks
from headway.data.splits import named_side
from headway.errors import UserError
from headway.received import check_whole

_BYTES = 0x08  # the header's code for unsigned bytes
_NAME = re.compile(r"(?P<stem>.*?)[-_.]?(?P<what>images|labels)[-_.]idx\d-ubyte$")


@dataclass(frozen=True)
class IdxPart:
    """Greyscale images and their class indices, from two files; `named_split` is the split that their name states."""

    images: UInt8[np.ndarray, "N H W"]
    labels: UInt8[np.ndarray, "N"]
    side: str | None
    place: str


def is_idx(path: Path) -> bool:
    return _NAME.fullmatch(_plain(path.name)) is not None


def idx_files(folder: Path) -> list[Path]:
    """The IDX files directly in a folder."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_idx(path))


def read_parts(paths: Sequence[Path]) -> list[IdxPart]:
    """Read pairs of files NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, compressed or not. NAME is train, t10k
    (MNIST's test split) or any other. UserError if one file of a pair is missing, counts differ or a file is damaged.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        match = _NAME.fullmatch(_plain(path.name))
        if match is None:
            raise UserError(f"{path} does not have the name of an IDX file; rename it like train-images-idx3-ubyte.gz")
        found.setdefault(match["stem"], {})[match["what"]] = path
    return [_part(stem, pair) for stem, pair in found.items()]


def _part(stem: str, pair: dict[str, Path]) -> IdxPart:
    for what, other in (("images", "labels"), ("labels", "images")):
        if what not in pair:
            raise UserError(f"{pair[other]} has no file of {what} next to it; add that file")
    images, labels = read_idx(pair["images"], 3), read_idx(pair["labels"], 1)
    if len(images) != len(labels):
        raise UserError(
            f"{pair['images']} contains {len(images):,} images but {pair['labels'].name} {len(labels):,} labels; "
            "download both again"
        )
    if 0 in images.shape:
        raise UserError(f"{pair['images']} is empty ({_by(images.shape)} pixels); download it again")
    side = "test" if stem == "t10k" else named_side(stem)
    return IdxPart(images, labels, side, str(pair["images"]))


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The bytes of one file. UserError for another type or number of dimensions, a wrong length or damage."""
    start = 4 + 4 * dimensions
    held, wanted = bytearray(), None
    for block in blocks(File(path)):
        held += block
        if wanted is None and len(held) >= start:
            wanted = start + math.prod(_sizes(path, held, dimensions))
            check_whole(str(path), path.stat().st_size, wanted)
        if wanted is not None and len(held) > wanted:
            raise UserError(f"{path} is longer than the {wanted:,} bytes in its header; download it again")
    if wanted is None or len(held) < wanted:
        said = f"of the {wanted:,} in its header" if wanted is not None else "and an incomplete header"
        raise UserError(f"{path} is truncated: it has {len(held):,} bytes {said}; download it again")
    return np.frombuffer(held, np.uint8, offset=start).reshape(_sizes(path, held, dimensions))


def _sizes(path: Path, held: bytearray, dimensions: int) -> tuple[int, ...]:
    if held[:2] != b"\0\0" or held[2] != _BYTES or held[3] != dimensions:
        raise UserError(
            f"{path} starts with the bytes {bytes(held[:4]).hex(' ')}, not with 00 00 08 0{dimensions} as IDX files "
            f"with {dimensions} dimensions do; use files in MNIST's format"
        )
    return tuple(int.from_bytes(held[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _plain(name: str) -> str:
    """A file's name without the extension of a compression."""
    path = Path(name)
    return path.stem if path.suffix.lower() in COMPRESSIONS else name
