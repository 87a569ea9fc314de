"""Training positions, read once into a folder of memory-mapped arrays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.codecs.chess_boards import POSITION_DTYPE
from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.input_files import File
from headway.data.packing import expand_ranges
from headway.data.splits import SplitConfig, SplitIndices, split_by_key, split_code, text_key
from headway.data.token_store import fingerprint
from headway.domains.chess.boards import Record, to_position_array
from headway.domains.chess.position_files import PositionRun, ReadTally, chess_files, samples
from headway.errors import UserError

_VERSION = 2  # version of the arrays; changing it invalidates older caches
_MAX_HISTORY = 7  # maximum history of a position
_FLUSH_AT = 4096
_TYPES = {
    "positions": POSITION_DTYPE,
    "earlier": np.uint8,  # number of preceding positions in the same game
    "keys": np.uint64,
    "sides": np.uint8,
    "values": np.float16,  # three per position
    "counts": np.uint16,  # of moves
    "moves": np.uint16,
    "worths": np.float16,
}


class Targets(NamedTuple):
    """Targets of positions: moves, int64 [B, K], best first and padded with -1; the worth of each, float32 [B, K]; and
    (win, draw, loss), float32 [B, 3]. Unknown values are NaN.
    """

    moves: np.ndarray
    worths: np.ndarray
    values: np.ndarray


class Positions:
    """Records and targets by index."""

    def __init__(self, folder: Path) -> None:
        info = read_info(folder)
        self.folder = folder
        self.tally = ReadTally(**info["tally"])
        count, moves = info["positions"], info["moves"]
        sizes = dict.fromkeys(_TYPES, count) | {"values": 3 * count, "moves": moves, "worths": moves}
        columns = {name: read_column(folder, name, kind, sizes[name]) for name, kind in _TYPES.items()}
        self.positions, self.earlier, self.keys = columns["positions"], columns["earlier"], columns["keys"]
        self.split_ids, self.values = columns["sides"], columns["values"].reshape(-1, 3)
        self.counts, self.moves, self.worths = columns["counts"], columns["moves"], columns["worths"]
        self.starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.positions)

    def records(self, rows: np.ndarray, history: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return positions [B], newest first, and which of the earlier ones exist, bool [B, history]."""
        present = self.earlier[rows][:, None] > np.arange(history)
        back = [rows, *(np.where(present[:, k], rows - k - 1, rows) for k in range(history))]
        return [np.asarray(self.positions[indices]) for indices in back], present

    def targets(self, rows: np.ndarray) -> Targets:
        starts, counts = self.starts[rows], self.counts[rows].astype(np.int64)
        shape = (len(rows), max(1, int(counts.max(initial=0))))
        moves, worths = np.full(shape, -1, np.int64), np.full(shape, np.nan, np.float32)
        flat_indices, owner = expand_ranges(starts, counts)
        columns = flat_indices - starts[owner]
        moves[owner, columns], worths[owner, columns] = self.moves[flat_indices], self.worths[flat_indices]
        return Targets(moves, worths, np.asarray(self.values[rows], np.float32))

    def split(self, config: SplitConfig) -> SplitIndices:
        """Return the positions in each split, int64 [N]; all positions from a game are in the same split."""
        return split_by_key(np.asarray(self.keys), np.asarray(self.split_ids), config)


def open_positions(paths: Sequence[Path | str], evals: float, skip_bad: bool) -> Positions:
    """Return the positions in the files, cached on first use; reports skipped ones on stderr.

    UserError if there are no usable positions, and for an illegal position or a game with illegal moves or without a
    result.
    """
    files = chess_files(paths)
    folder = open_or_build(_cache_path(files, evals, skip_bad), lambda part: _build(part, files, evals, skip_bad))
    positions = Positions(folder)
    tally = positions.tally
    notes = [
        (tally.variants, f"of {tally.games:,} games are chess variants and are skipped"),
        (tally.bad, f"of {tally.games:,} games are damaged; only the part before the damage is used"),
        (tally.unlabelled, "positions have neither a move nor a value and are skipped"),
    ]
    for count, text in notes:
        if count:
            print(f"{count:,} {text}", file=sys.stderr, flush=True)
    if len(positions) == 0:
        unlabelled = tally.unlabelled
        remedy = "label them: headway data label" if unlabelled else "use other files"
        raise UserError(f"{files[0]}: nothing to learn from ({unlabelled:,} positions have no move or value); {remedy}")
    return positions


def are_cached(files: Sequence[File], evals: float, skip_bad: bool) -> bool:
    """Whether these files are already cached, so that opening them takes no time."""
    return _cache_path(files, evals, skip_bad).exists()


def _cache_path(files: Sequence[File], evals: float, skip_bad: bool) -> Path:
    return cache_root() / cache_key("chess", _VERSION, fingerprint(files), evals, skip_bad)


def _build(part: Path, files: Sequence[File], evals: float, skip_bad: bool) -> None:
    tally, total, moves = ReadTally(), 0, 0
    with ColumnWriter(part, _TYPES) as columns:
        for file in files:
            writer = _PositionWriter(columns, 0 if file.named_split is None else split_code(file.named_split))
            for sample in samples(file, evals, skip_bad, tally):
                writer.add(sample)
            writer.flush()
            total, moves = total + writer.total, moves + writer.moves
    write_info(part, {"positions": total, "moves": moves, "tally": vars(tally)})


class _PositionWriter:
    """Buffers samples and writes many at once."""

    def __init__(self, columns: ColumnWriter, split_index: int) -> None:
        self.columns, self.split_index = columns, split_index
        self.total = self.moves = 0
        self._clear()

    def add(self, sample: PositionRun) -> None:
        self.records += sample.records
        self.earlier += [min(_MAX_HISTORY, index) for index in range(len(sample.records))]
        self.keys += [text_key(sample.key)] * len(sample.records)
        self.values += sample.values
        for move_ids, worths in zip(sample.moves, sample.worths):
            self.counts.append(len(move_ids))
            self.move_ids += move_ids
            self.worths += worths
        if len(self.records) >= _FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        if self.records:
            write, count = self.columns.append, len(self.records)
            write("positions", to_position_array(self.records))
            write("earlier", self.earlier)
            write("keys", np.array(self.keys, np.uint64))
            write("sides", np.full(count, self.split_index))
            write("values", np.concatenate(self.values))
            write("counts", self.counts)
            write("moves", self.move_ids)
            write("worths", self.worths)
            self.total, self.moves = self.total + count, self.moves + len(self.move_ids)
        self._clear()

    def _clear(self) -> None:
        self.records: list[Record] = []
        self.earlier: list[int] = []
        self.keys: list[int] = []
        self.values: list[np.ndarray] = []
        self.counts: list[int] = []
        self.move_ids: list[int] = []
        self.worths: list[float] = []
