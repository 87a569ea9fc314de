"""IDX files, in which MNIST and its kin are published: a header of sizes, then bytes."""

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

_BYTES = 0x08  # the type of numbers that the header states
_NAME = re.compile(r"(?P<stem>.*?)[-_.]?(?P<what>images|labels)[-_.]idx\d-ubyte$")


@dataclass(frozen=True)
class IdxPart:
    """Grey images with the number of each one's class, from two files; `side` is the split that their name states."""

    images: UInt8[np.ndarray, "N H W"]
    labels: UInt8[np.ndarray, "N"]
    side: str | None
    place: str


def is_idx(path: Path) -> bool:
    return _NAME.fullmatch(_plain(path.name)) is not None


def idx_files(folder: Path) -> list[Path]:
    """The IDX files that lie directly in a folder."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_idx(path))


def read_parts(paths: Sequence[Path]) -> list[IdxPart]:
    """Pairs of files NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, compressed or not. NAME is train, t10k (the
    test split of MNIST) or any other. UserErrors: one without the other, counts that differ, damage.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        match = _NAME.fullmatch(_plain(path.name))
        if match is None:
            raise UserError(f"{path} is named as no IDX file; name them like train-images-idx3-ubyte.gz")
        found.setdefault(match["stem"], {})[match["what"]] = path
    return [_part(stem, pair) for stem, pair in found.items()]


def _part(stem: str, pair: dict[str, Path]) -> IdxPart:
    for what, other in (("images", "labels"), ("labels", "images")):
        if what not in pair:
            raise UserError(f"{pair[other]} has no file of {what} beside it; put it there")
    images, labels = read_idx(pair["images"], 3), read_idx(pair["labels"], 1)
    if len(images) != len(labels):
        raise UserError(
            f"{pair['images']} holds {len(images):,} images and {pair['labels'].name} {len(labels):,} labels; "
            "they are not of one set: get both again"
        )
    if 0 in images.shape:
        raise UserError(f"{pair['images']} holds {_by(images.shape)} pixels: nothing at all; get it again")
    side = "test" if stem == "t10k" else named_side(stem)
    return IdxPart(images, labels, side, str(pair["images"]))


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The bytes of one file. UserErrors: another type or number of dimensions, cut off or too long, damage."""
    start = 4 + 4 * dimensions
    held, wanted = bytearray(), None
    for block in blocks(File(path)):
        held += block
        if wanted is None and len(held) >= start:
            wanted = start + math.prod(_sizes(path, held, dimensions))
            check_whole(str(path), path.stat().st_size, wanted)
        if wanted is not None and len(held) > wanted:
            raise UserError(f"{path} goes on after the {wanted:,} bytes that its header says; get it again")
    if wanted is None or len(held) < wanted:
        said = f"of the {wanted:,} that its header says" if wanted is not None else "and no whole header"
        raise UserError(f"{path} is cut off: it holds {len(held):,} bytes {said}; get it again")
    return np.frombuffer(held, np.uint8, offset=start).reshape(_sizes(path, held, dimensions))


def _sizes(path: Path, held: bytearray, dimensions: int) -> tuple[int, ...]:
    if held[:2] != b"\0\0" or held[2] != _BYTES or held[3] != dimensions:
        raise UserError(
            f"{path} begins with the bytes {bytes(held[:4]).hex(' ')}, not 00 00 08 0{dimensions}, as IDX files of "
            f"bytes in {dimensions} dimensions do; give files in the format of MNIST"
        )
    return tuple(int.from_bytes(held[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _plain(name: str) -> str:
    """A file's name without the end that says how it is compressed."""
    path = Path(name)
    return path.stem if path.suffix.lower() in COMPRESSIONS else name
