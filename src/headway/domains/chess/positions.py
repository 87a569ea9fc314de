"""Training positions, read once into a folder of memory-mapped arrays."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
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
from headway.domains.chess.boards import to_position_array
from headway.domains.chess.position_files import ReadTally, chess_files, samples
from headway.errors import UserError

_VERSION = 2  # version of the arrays; changing it invalidates older caches
_MAX_HISTORY = 7  # maximum history of a position
_RUNS_PER_BLOCK = 512  # samples, of which a game has about 80 positions, that are written at once
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
    folder = open_or_build(cache_path(files, evals, skip_bad), lambda part: _build(part, files, evals, skip_bad))
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


def cache_path(files: Sequence[File], evals: float, skip_bad: bool) -> Path:
    """Where the positions in these files are stored once they are read."""
    return cache_root() / cache_key("chess", _VERSION, fingerprint(files), evals, skip_bad)


def _build(part: Path, files: Sequence[File], evals: float, skip_bad: bool) -> None:
    tally, num_positions, num_moves = ReadTally(), 0, 0
    with ColumnWriter(part, _TYPES) as columns:
        for file in files:
            split_index = 0 if file.named_split is None else split_code(file.named_split)
            runs = samples(file, evals, skip_bad, tally)
            while block := list(islice(runs, _RUNS_PER_BLOCK)):
                lengths = [len(run.records) for run in block]
                records = [record for run in block for record in run.records]
                moves = [move_ids for run in block for move_ids in run.moves]
                columns.append("positions", to_position_array(records))
                columns.append("earlier", [min(_MAX_HISTORY, index) for length in lengths for index in range(length)])
                columns.append("keys", np.repeat(np.array([text_key(run.key) for run in block], np.uint64), lengths))
                columns.append("sides", np.full(len(records), split_index))
                columns.append("values", np.concatenate([value for run in block for value in run.values]))
                columns.append("counts", [len(move_ids) for move_ids in moves])
                columns.append("moves", [move_id for move_ids in moves for move_id in move_ids])
                columns.append("worths", [worth for run in block for worths in run.worths for worth in worths])
                num_positions = num_positions + len(records)
                num_moves = num_moves + sum(map(len, moves))
    write_info(part, {"positions": num_positions, "moves": num_moves, "tally": vars(tally)})
