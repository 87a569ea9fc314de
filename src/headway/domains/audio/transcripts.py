"""Sounds and what is said in them, as people have both: a table of path and text beside the sounds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.data.tables import TABLE_KINDS, Table, read_table
from headway.domains.audio.sound import KINDS
from headway.errors import UserError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Transcripts:
    """Files, what is said in each, and what is said of its split, uint8 [N]; `places` says where, for messages."""

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
    """What .tsv, .csv and .jsonl files say in the columns `path`, relative to the table's folder, and `text`. A folder
    gives all tables in it, and every sound in it is to have a transcript.

    UserErrors, or with `skip` lines in the log: transcripts without a file, and sounds without a transcript.
    """
    if not paths:
        raise UserError("no transcripts are given; name a .tsv of path and text, or a folder of sounds that holds one")
    for place in paths:
        if not place.expanduser().is_dir() and place.suffix.lower() not in TABLE_KINDS:
            fact = "is no folder and no table" if place.exists() else "does not exist"
            raise UserError(f"{place} {fact}; give a .tsv of path and text, or a folder of sounds that holds one")
    table = read_table([_with_table(place.expanduser()) for place in paths], {"path": path, "text": text})
    files = [_beside(table, row) for row in range(len(table))]
    missing = [row for row, file in enumerate(files) if not file.is_file()]
    if missing:
        row = missing[0]
        fact = f"{table.place(row)}: {table.columns['path'][row]} is not a file in {table.places[row][0].path.parent}"
        _refuse(skip, fact, "transcripts", len(missing), len(files), "correct it, or leave the line out")
    found = Transcripts(files, table.columns["text"], table.named, [table.place(row) for row in range(len(table))])
    _check_untold([place.expanduser() for place in paths], files, skip)
    kept = np.setdiff1d(np.arange(len(files)), missing)
    if not len(kept):
        raise UserError(f"none of {len(files)} transcripts has a sound; check the paths in {table.places[0][0]}")
    return found.select(kept)


def _with_table(place: Path) -> Path:
    if place.is_dir() and not any(file.suffix.lower() in TABLE_KINDS for file in place.rglob("*")):
        raise UserError(f"{place} holds no transcripts; put a .tsv into it, with the columns path and text")
    return place


def _beside(table: Table, row: int) -> Path:
    return table.places[row][0].path.parent / Path(table.columns["path"][row]).expanduser()


def _check_untold(paths: Sequence[Path], files: Sequence[Path], skip: bool) -> None:
    """Sounds in the folders given that no table names."""
    told = {file.resolve() for file in files}
    sounds = [
        file
        for place in paths
        if place.is_dir()
        for file in sorted(place.rglob("*"))
        if file.suffix.lower() in KINDS and not file.name.startswith(".")
    ]
    untold = [file for file in sounds if file.resolve() not in told]
    if untold:
        fact = f"{untold[0]} has no transcript"
        _refuse(skip, fact, "sounds", len(untold), len(sounds), "write one, or take the sound out of the folder")


def _refuse(skip: bool, fact: str, what: str, count: int, total: int, remedy: str) -> None:
    if not skip:
        others = f" (and {count - 1} more of {total} {what})" if count > 1 else ""
        raise UserError(f"{fact}{others}; {remedy}, or leave such out with task.skip_bad=true")
    _LOG.warning("%d of %d %s are left out (%s)", count, total, what, fact)
