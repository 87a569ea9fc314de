"""IDX files, the format of MNIST and similar sets: a header of sizes, then bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headway.data.input_files import COMPRESSIONS, File, read_blocks
from headway.data.splits import split_from_name
from headway.errors import UserError
from headway.safe_io import check_in_memory

_UNSIGNED_BYTE = 0x08  # the header's code for unsigned bytes
_NAME = re.compile(r"(?P<stem>.*?)[-_.]?(?P<what>images|labels)[-_.]idx\d-ubyte$")


@dataclass(frozen=True)
class IdxPart:
    """Greyscale images and their class indices, from two files; `named_split` is the split in their name."""

    images: UInt8[np.ndarray, "N H W"]
    labels: UInt8[np.ndarray, "N"]
    named_split: str | None
    path: str


def is_idx(path: Path) -> bool:
    return _NAME.fullmatch(_without_compression(path.name)) is not None


def idx_files(folder: Path) -> list[Path]:
    """The IDX files directly in a folder."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_idx(path))


def read_idx_pairs(paths: Sequence[Path]) -> list[IdxPart]:
    """Read pairs of files NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, compressed or not. NAME is train, t10k
    (MNIST's test split) or any other. UserError if half of a pair is missing, counts differ or a file is damaged.
    """
    pairs: dict[str, dict[str, Path]] = {}
    for path in paths:
        match = _NAME.fullmatch(_without_compression(path.name))
        if match is None:
            raise UserError(f"{path} is not named like an IDX file; use a name such as train-images-idx3-ubyte.gz")
        pairs.setdefault(match["stem"], {})[match["what"]] = path
    return [_read_pair(stem, pair) for stem, pair in pairs.items()]


def _read_pair(stem: str, pair: dict[str, Path]) -> IdxPart:
    for name, other_name in (("images", "labels"), ("labels", "images")):
        if name not in pair:
            raise UserError(f"{pair[other_name]} has no file of {name} next to it; add that file")
    images, labels = read_idx(pair["images"], 3), read_idx(pair["labels"], 1)
    if len(images) != len(labels):
        raise UserError(
            f"{pair['images']} contains {len(images):,} images but {pair['labels'].name} {len(labels):,} labels; "
            "download both again"
        )
    if 0 in images.shape:
        raise UserError(f"{pair['images']} is empty ({_format_sizes(images.shape)} pixels); download it again")
    split = "test" if stem == "t10k" else split_from_name(stem)
    return IdxPart(images, labels, split, str(pair["images"]))


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The bytes of one file. UserError for another type or number of dimensions, a wrong length or damage."""
    start = 4 + 4 * dimensions
    buffer, expected = bytearray(), None
    for block in read_blocks(File(path)):
        buffer += block
        if expected is None and len(buffer) >= start:
            expected = start + math.prod(_header_sizes(path, buffer, dimensions))
            check_in_memory(str(path), path.stat().st_size, expected)
        if expected is not None and len(buffer) > expected:
            raise UserError(f"{path} is longer than the {expected:,} bytes in its header; download it again")
    if expected is None or len(buffer) < expected:
        comparison = f"of the {expected:,} in its header" if expected is not None else "and an incomplete header"
        raise UserError(f"{path} is truncated: it has {len(buffer):,} bytes {comparison}; download it again")
    return np.frombuffer(buffer, np.uint8, offset=start).reshape(_header_sizes(path, buffer, dimensions))


def _header_sizes(path: Path, buffer: bytearray, dimensions: int) -> tuple[int, ...]:
    if buffer[:2] != b"\0\0" or buffer[2] != _UNSIGNED_BYTE or buffer[3] != dimensions:
        raise UserError(
            f"{path} starts with the bytes {bytes(buffer[:4]).hex(' ')}, not with 00 00 08 0{dimensions} as IDX files "
            f"with {dimensions} dimensions do; use files in MNIST's format"
        )
    return tuple(int.from_bytes(buffer[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))


def _format_sizes(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _without_compression(name: str) -> str:
    """A file's name without a compression extension."""
    path = Path(name)
    return path.stem if path.suffix.lower() in COMPRESSIONS else name
