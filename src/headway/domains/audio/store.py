"""Sounds decoded once into a memory map, and tables of transcripts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column, read_info, write_info
from headway.data.tables import TABLE_KINDS, read_table
from headway.domains.audio.mel import RATE
from headway.domains.audio.sound import KINDS, FileSound
from headway.errors import UserError, logger
from headway.received import opened, place_of

_LOG = logger(__name__)
_FORMAT = 2
_AT_ONCE = 256  # sounds decoded in memory at a time
_SHOWN = 3


class Sounds:
    """The samples of files at 16 kHz, as from `read_sound`; `keys` identify their contents.

    `unreadable` are files that could not be read, which are errors unless skipping was requested; for `out_of_phase`
    files only the loudest channel was used, because their channels cancel each other out.
    """

    def __init__(self, files: Sequence[Path], keys: Sequence[str], folder: Path) -> None:
        info = read_info(folder)
        self.files, self.keys = files, keys
        self.bad: list[int] = info["bad"]
        self.opposed: list[int] = info["opposed"]
        self._offsets = np.asarray(read_column(folder, "offsets", np.int64, len(files) + 1))
        self._samples = read_column(folder, "samples", np.float32, info["samples"])

    def __len__(self) -> int:
        return len(self.files)

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each, int64 [N]."""
        return np.diff(self._offsets)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Notes on how the sounds were read, as sentences."""
        if not self.opposed:
            return ()
        names = ", ".join(str(self.files[number]) for number in self.opposed[:_SHOWN])
        what = f"the channels of {len(self.opposed)} of {len(self)} sounds cancel each other out"
        return (f"{what}, so only the loudest channel is used ({names}).",)

    def __getitem__(self, number: int) -> Float[Tensor, "N"]:
        return torch.from_numpy(np.array(self._samples[self._offsets[number] : self._offsets[number + 1]]))


def open_sounds(files: Sequence[Path], skip: bool = False) -> Sounds:
    """The sounds of files, from the cache if the same contents were decoded before.

    An invalid or empty file is a UserError, or with `skip` counted in the log and left empty.
    """
    with ThreadPoolExecutor() as workers:
        keys = list(workers.map(_digest, files))
        key = cache_key("sounds", _FORMAT, RATE, keys)
        folder = open_or_build(cache_root() / key, lambda part: _build(part, files, workers, skip))
    found = Sounds(files, keys, folder)
    if found.bad:
        if not skip:
            _read(files[found.bad[0]], skip=False)  # raises the error
        names = ", ".join(str(files[number]) for number in found.bad[:_SHOWN])
        _LOG.warning("left out %d of %d sounds, which cannot be read (%s)", len(found.bad), len(files), names)
    for remark in found.remarks:
        _LOG.warning("%s", remark)
    return found


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _build(part: Path, files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> None:
    bad: list[int] = []
    opposed: list[int] = []
    total = 0
    with Columns(part, {"samples": np.float32, "offsets": np.int64}) as columns:
        columns.append("offsets", [0])
        for number, found in enumerate(_decoded(files, workers, skip)):
            if found is None:
                bad.append(number)
            else:
                columns.append("samples", found[0].numpy())
                total += len(found[0])
                opposed += [number] if found[1] else []
            columns.append("offsets", [total])
    write_info(part, {"samples": total, "bad": bad, "opposed": opposed})


def _decoded(files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> Iterator[tuple[Tensor, bool] | None]:
    """In the order of the files, whichever worker finishes first."""
    for start in range(0, len(files), _AT_ONCE):
        yield from workers.map(lambda path: _read(path, skip), files[start : start + _AT_ONCE])


def _read(path: Path, skip: bool) -> tuple[Tensor, bool] | None:
    """The samples of a file, and whether its channels are out of phase."""
    try:
        sound = FileSound(path, told=False)
        return torch.cat(list(sound.blocks())), sound.opposed
    except UserError as error:
        if not os.path.isfile(path):
            raise
        if skip:
            return None
        raise UserError(f"{error}; or leave such sounds out with task.skip_bad=true") from None


@dataclass(frozen=True)
class Transcripts:
    """Files, their transcripts and their named splits, uint8 [N]; `locations` are for messages."""

    files: list[Path]
    texts: list[str]
    named: np.ndarray
    places: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def select(self, rows: np.ndarray) -> Transcripts:
        files, texts, places = ([column[row] for row in rows] for column in (self.files, self.texts, self.places))
        return Transcripts(files, texts, self.named[rows], places)


def read_transcripts(paths: Sequence[Path], path: str = "path", text: str = "text", skip: bool = False) -> Transcripts:
    """Read .tsv, .csv and .jsonl files with the columns `path`, relative to the table's folder, and `text`. A folder
    provides all its tables, and each of its sounds must have a transcript.

    Transcripts without a file and sounds without a transcript are UserErrors, or with `skip` lines in the log.
    """
    if not paths:
        raise UserError("there are no transcripts; pass a .tsv of path and text, or a folder of sounds with one")
    for place in paths:
        if not place_of(place).is_dir() and place.suffix.lower() not in TABLE_KINDS:
            fact = "is not a folder or a table" if place.exists() else "does not exist"
            raise UserError(f"{place} {fact}; pass a .tsv of path and text, or a folder of sounds with one")
    places = [place_of(place) for place in paths]
    for place in places:
        if place.is_dir() and not any(file.suffix.lower() in TABLE_KINDS for file in place.rglob("*")):
            raise UserError(f"{place} has no transcripts; add a .tsv with the columns path and text")
    table = read_table(places, {"path": path, "text": text})
    named = table.columns["path"]
    files = [table.places[row][0].path.parent / Path(named[row]).expanduser() for row in range(len(table))]
    missing = [row for row, file in enumerate(files) if not file.is_file()]
    if missing:
        row = missing[0]
        fact = f"{table.place(row)}: {table.columns['path'][row]} is not a file in {table.places[row][0].path.parent}"
        _refuse(skip, fact, "transcripts", len(missing), len(files), "correct it, or remove the line")
    found = Transcripts(files, table.columns["text"], table.named, [table.place(row) for row in range(len(table))])
    inside = (file for place in places if place.is_dir() for file in sorted(place.rglob("*")))
    sounds = [file for file in inside if file.suffix.lower() in KINDS and not file.name.startswith(".")]
    told = {file.resolve() for file in files}
    untold = [file for file in sounds if file.resolve() not in told]
    if untold:
        fact = f"{untold[0]} has no transcript"
        _refuse(skip, fact, "sounds", len(untold), len(sounds), "add one, or remove the sound from the folder")
    kept = np.setdiff1d(np.arange(len(files)), missing)
    if not len(kept):
        raise UserError(f"none of {len(files)} transcripts has a sound; check the paths in {table.places[0][0]}")
    return found.select(kept)


def _refuse(skip: bool, fact: str, what: str, count: int, total: int, remedy: str) -> None:
    if not skip:
        others = f" (and {count - 1} more of {total} {what})" if count > 1 else ""
        raise UserError(f"{fact}{others}; {remedy}, or skip such samples with task.skip_bad=true")
    _LOG.warning("left out %d of %d %s (%s)", count, total, what, fact)
