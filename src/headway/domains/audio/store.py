"""Sounds that are decoded once, into a memory map."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.data.store import (
    Columns,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.domains.audio.resample import RATE
from headway.domains.audio.sound import read_sound
from headway.errors import UserError

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_AT_ONCE = 256  # sounds that are in memory together while they are decoded
_SHOWN = 3


class Sounds:
    """The samples of files at 16,000 a second, as `read_sound` gives them; `keys` are names for their contents.

    `bad` are the files that could not be read, of which there are none here unless that was asked for.
    """

    def __init__(self, files: Sequence[Path], keys: Sequence[str], folder: Path) -> None:
        info = read_info(folder)
        self.files, self.keys = files, keys
        self.bad: list[int] = info["bad"]
        self._offsets = np.asarray(read_column(folder, "offsets", np.int64, len(files) + 1))
        self._samples = read_column(folder, "samples", np.float32, info["samples"])

    def __len__(self) -> int:
        return len(self.files)

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each, int64 [N]."""
        return np.diff(self._offsets)

    def __getitem__(self, number: int) -> Float[Tensor, "N"]:
        return torch.from_numpy(np.array(self._samples[self._offsets[number] : self._offsets[number + 1]]))


def open_sounds(files: Sequence[Path], skip: bool = False) -> Sounds:
    """The sounds of files, from the cache if the same contents have been decoded before.

    What is no sound, or one of nothing, is a UserError, or with `skip` counted in the log and left empty.
    """
    with ThreadPoolExecutor() as workers:
        keys = list(workers.map(_digest, files))
        key = cache_key("sounds", _FORMAT, RATE, keys)
        folder = open_or_build(cache_root() / key, lambda part: _build(part, files, workers, skip))
    found = Sounds(files, keys, folder)
    if found.bad:
        if not skip:
            _read(files[found.bad[0]], skip=False)  # which says what is wrong with it
        names = ", ".join(str(files[number]) for number in found.bad[:_SHOWN])
        _LOG.warning("%d of %d sounds cannot be read and are left out (%s)", len(found.bad), len(files), names)
    return found


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check it and its permissions") from error


def _build(part: Path, files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> None:
    bad: list[int] = []
    total = 0
    with Columns(part, {"samples": np.float32, "offsets": np.int64}) as columns:
        columns.append("offsets", [0])
        for number, sound in enumerate(_decoded(files, workers, skip)):
            if sound is None:
                bad.append(number)
            else:
                columns.append("samples", sound.numpy())
                total += len(sound)
            columns.append("offsets", [total])
    write_info(part, {"samples": total, "bad": bad})


def _decoded(files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> Iterator[Tensor | None]:
    """In the order of the files, whatever worker is done first."""
    for start in range(0, len(files), _AT_ONCE):
        yield from workers.map(lambda path: _read(path, skip), files[start : start + _AT_ONCE])


def _read(path: Path, skip: bool) -> Tensor | None:
    try:
        return read_sound(path)
    except UserError as error:
        if not os.path.isfile(path):
            raise
        if skip:
            return None
        raise UserError(f"{error}; or leave such sounds out with task.skip_bad=true") from None
