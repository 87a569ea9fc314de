"""Audio decoded once into a memory map, and transcript tables."""

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

from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.table_files import TABLE_KINDS, read_table
from headway.domains.audio.mel import RATE
from headway.domains.audio.sound_files import AUDIO_EXTENSIONS, FileSound
from headway.errors import UserError, logger
from headway.safe_io import open_file, user_path

_LOG = logger(__name__)
_FORMAT = 2
_BATCH_SIZE = 256  # sounds decoded in memory at a time
_MAX_NAMES = 3


class Sounds:
    """The files' samples at 16 kHz, as from `read_sound`; `keys` identify their contents.

    `unreadable` files could not be read and are errors unless skipping was requested. For `out_of_phase` files only the
    loudest channel was used, because their channels cancel each other out.
    """

    def __init__(self, files: Sequence[Path], keys: Sequence[str], folder: Path) -> None:
        metadata = read_info(folder)
        self.files, self.keys = files, keys
        self.unreadable: list[int] = metadata["bad"]
        self.out_of_phase: list[int] = metadata["opposed"]
        self._offsets = np.asarray(read_column(folder, "offsets", np.int64, len(files) + 1))
        self._samples = read_column(folder, "samples", np.float32, metadata["samples"])

    def __len__(self) -> int:
        return len(self.files)

    @property
    def lengths(self) -> np.ndarray:
        """Samples per file, int64 [N]."""
        return np.diff(self._offsets)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Notes on how the files were read, as sentences."""
        if not self.out_of_phase:
            return ()
        names = ", ".join(str(self.files[index]) for index in self.out_of_phase[:_MAX_NAMES])
        fact = f"the channels of {len(self.out_of_phase)} of {len(self)} recordings cancel each other out"
        return (f"{fact}, so only the loudest channel is used ({names}).",)

    def __getitem__(self, index: int) -> Float[Tensor, "N"]:
        return torch.from_numpy(np.array(self._samples[self._offsets[index] : self._offsets[index + 1]]))


def open_sounds(files: Sequence[Path], skip: bool = False) -> Sounds:
    """The files' audio, from the cache if the same contents were decoded before.

    An invalid or empty file is a UserError; with `skip`, such files are counted in the log and left empty.
    """
    with ThreadPoolExecutor() as workers:
        keys = list(workers.map(_digest, files))
        key = cache_key("sounds", _FORMAT, RATE, keys)
        folder = open_or_build(cache_root() / key, lambda target: _build(target, files, workers, skip))
    sounds = Sounds(files, keys, folder)
    if sounds.unreadable:
        if not skip:
            _read(files[sounds.unreadable[0]], skip=False)  # raises the error
        names = ", ".join(str(files[index]) for index in sounds.unreadable[:_MAX_NAMES])
        _LOG.warning("skipped %d of %d audio files that cannot be read (%s)", len(sounds.unreadable), len(files), names)
    for remark in sounds.remarks:
        _LOG.warning("%s", remark)
    return sounds


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _build(folder: Path, files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> None:
    unreadable: list[int] = []
    out_of_phase: list[int] = []
    total = 0
    with ColumnWriter(folder, {"samples": np.float32, "offsets": np.int64}) as columns:
        columns.append("offsets", [0])
        for index, decoded in enumerate(_decode(files, workers, skip)):
            if decoded is None:
                unreadable.append(index)
            else:
                columns.append("samples", decoded[0].numpy())
                total += len(decoded[0])
                out_of_phase += [index] if decoded[1] else []
            columns.append("offsets", [total])
    write_info(folder, {"samples": total, "bad": unreadable, "opposed": out_of_phase})


def _decode(files: Sequence[Path], workers: ThreadPoolExecutor, skip: bool) -> Iterator[tuple[Tensor, bool] | None]:
    """In the order of the files, whichever worker finishes first."""
    for start in range(0, len(files), _BATCH_SIZE):
        yield from workers.map(lambda path: _read(path, skip), files[start : start + _BATCH_SIZE])


def _read(path: Path, skip: bool) -> tuple[Tensor, bool] | None:
    """The samples of a file, and whether its channels are out of phase."""
    try:
        sound = FileSound(path, warn=False)
        return torch.cat(list(sound.blocks())), sound.out_of_phase
    except UserError as error:
        if not os.path.isfile(path):
            raise
        if skip:
            return None
        raise UserError(f"{error}; or skip such files with task.skip_bad=true") from None


@dataclass(frozen=True)
class Transcripts:
    """Files, their transcripts and their named splits, uint8 [N]; `locations` are for messages."""

    files: list[Path]
    texts: list[str]
    named_splits: np.ndarray
    locations: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def select(self, rows: np.ndarray) -> Transcripts:
        files, texts, locations = ([column[row] for row in rows] for column in (self.files, self.texts, self.locations))
        return Transcripts(files, texts, self.named_splits[rows], locations)


def read_transcripts(paths: Sequence[Path], path: str = "path", text: str = "text", skip: bool = False) -> Transcripts:
    """Read .tsv, .csv and .jsonl files with the columns `path`, relative to the table's folder, and `text`. A folder
    stands for all its tables, and each audio file in it must have a transcript.

    Transcripts without a file and files without a transcript are UserErrors; with `skip`, they are logged instead.
    """
    if not paths:
        raise UserError(
            "there are no transcripts; pass a .tsv with path and text, or a folder with audio files and such a table"
        )
    for source in paths:
        if not user_path(source).is_dir() and source.suffix.lower() not in TABLE_KINDS:
            fact = "is neither a folder nor a table" if source.exists() else "does not exist"
            raise UserError(
                f"{source} {fact}; pass a .tsv with path and text, or a folder with audio files and such a table"
            )
    folders = [user_path(source) for source in paths]
    for source in folders:
        if source.is_dir() and not any(file.suffix.lower() in TABLE_KINDS for file in source.rglob("*")):
            raise UserError(f"{source} has no transcripts; add a .tsv with the columns path and text")
    table = read_table(folders, {"path": path, "text": text})
    file_names = table.columns["path"]
    files = [table.locations[row][0].path.parent / Path(file_names[row]).expanduser() for row in range(len(table))]
    missing = [row for row, file in enumerate(files) if not file.is_file()]
    if missing:
        row = missing[0]
        fact = (
            f"{table.location(row)}: {table.columns['path'][row]} is not a file in "
            f"{table.locations[row][0].path.parent}"
        )
        _report_unusable(skip, fact, "transcripts", len(missing), len(files), "correct it, or remove the line")
    transcripts = Transcripts(
        files, table.columns["text"], table.named_splits, [table.location(row) for row in range(len(table))]
    )
    inside = (file for source in folders if source.is_dir() for file in sorted(source.rglob("*")))
    sounds = [file for file in inside if file.suffix.lower() in AUDIO_EXTENSIONS and not file.name.startswith(".")]
    transcribed = {file.resolve() for file in files}
    untranscribed = [file for file in sounds if file.resolve() not in transcribed]
    if untranscribed:
        fact = f"{untranscribed[0]} has no transcript"
        _report_unusable(
            skip, fact, "recordings", len(untranscribed), len(sounds), "add one, or remove the file from the folder"
        )
    rows = np.setdiff1d(np.arange(len(files)), missing)
    if not len(rows):
        raise UserError(
            f"none of {len(files)} transcripts has an audio file; check the paths in {table.locations[0][0]}"
        )
    return transcripts.select(rows)


def _report_unusable(skip: bool, fact: str, noun: str, count: int, total: int, remedy: str) -> None:
    if not skip:
        more = f" (and {count - 1} more of {total} {noun})" if count > 1 else ""
        raise UserError(f"{fact}{more}; {remedy}, or skip such samples with task.skip_bad=true")
    _LOG.warning("skipped %d of %d %s (%s)", count, total, noun, fact)
