"""What the engine keeps of sequences, and what it is asked to compute of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from headway.engine.cache import Blocks
from headway.engine.operations import BLOCK


class _Held:
    """Blocks that are given back when this is dropped. One that no position sees any more is 0."""

    def __init__(self, store: Blocks, blocks: list[int]) -> None:
        self.store, self.blocks = store, blocks
        self.table = np.zeros(max(1, len(blocks)), np.int64)  # the same numbers, for a program to read
        self._note()

    def _note(self) -> None:
        if len(self.blocks) > len(self.table):
            self.table = np.zeros(2 * len(self.blocks), np.int64)
        self.table[: len(self.blocks)] = self.blocks

    def __del__(self) -> None:
        self.store.let_go(self.blocks)


class Reading(_Held):
    """What rows read of a memory: the blocks of its keys and values, how many positions they have, and the numbers
    that are the same for all tokens.
    """

    def __init__(self, store: Blocks, blocks: list[int], length: int, fixed: np.ndarray) -> None:
        super().__init__(store, blocks)
        self.length, self.fixed = length, fixed


class Row(_Held):
    """What the engine keeps of one sequence: the blocks of its keys and values, what it reads, and the states of its
    mixers. Where the sequence stands is not said here: what is written at a position stands until it is written again.
    """

    def __init__(self, store: Blocks, blocks: list[int], reading: Reading | None, state: np.ndarray) -> None:
        super().__init__(store, blocks)
        self.reading, self.state = reading, state

    def fork(self) -> Row:
        """Another row that is as this one; they share their blocks until one of them writes."""
        self.store.share(self.blocks)
        return Row(self.store, list(self.blocks), self.reading, self.state.copy())

    def become(self, other: Row) -> None:
        """Have said from now on what the other has; what is read stays."""
        self.store.share(other.blocks)
        self.store.give_back(self.blocks)
        self.blocks = list(other.blocks)
        self.state[:] = other.state
        self._note()

    def begin_with(self, blocks: Sequence[int]) -> None:
        """Have these blocks, shared with others, in place of its first ones, which say the same or are not there."""
        self.store.share(blocks)
        self.store.give_back(self.blocks[: len(blocks)])
        self.blocks[: len(blocks)] = blocks
        self._note()

    def close(self) -> None:
        """Give all blocks back now."""
        self.store.give_back(self.blocks)
        self.blocks = []

    def keep(self, positions: int) -> None:
        """Give back the blocks of what lies beyond so many positions."""
        blocks = -(-positions // BLOCK)
        self.store.give_back(self.blocks[blocks:])
        del self.blocks[blocks:]

    def forget(self, position: int) -> None:
        """Give back what is seen no longer from this position on."""
        number = min(self.store.first_seen(position), len(self.blocks)) - 1
        while number >= 0 and self.blocks[number]:
            self.store.give_back([self.blocks[number]])
            self.blocks[number] = self.table[number] = 0
            number -= 1

    def lacks(self, first: int, last: int) -> int:
        """How many blocks are still to be taken to write positions `first` to `last` - 1."""
        if not self.store.size or last <= first:
            return 0
        held = self.blocks[first // BLOCK : (last - 1) // BLOCK + 1]
        return (last - 1) // BLOCK + 1 - first // BLOCK - sum(self.store.alone(block) for block in held)

    def make_room(self, first: int, last: int) -> list[tuple[int, int]]:
        """Blocks of its own to write positions `first` to `last` - 1 in; pairs of a block and its copy, whose content
        is still to be copied. OutOfBlocksError where there are no more blocks.
        """
        if not self.store.size or last <= first:
            return []
        changed, copies = False, []
        for number in range(first // BLOCK, (last - 1) // BLOCK + 1):
            if number >= len(self.blocks):
                self.blocks.append(self.store.take())
                changed = True
            elif not self.store.alone(self.blocks[number]):
                copy = self.store.take()
                if number * BLOCK < first or last < (number + 1) * BLOCK:
                    copies.append((self.blocks[number], copy))
                self.store.give_back([self.blocks[number]])
                self.blocks[number] = copy
                changed = True
        if changed:
            self._note()
        return copies


class Piece(NamedTuple):
    """Symbols of a row that come next, at the positions from `start` on, and after how many of the last of them logits
    are wanted. A `start` of -1 stands for a row that is idle: what comes of its one symbol is arbitrary.
    """

    row: Row
    start: int
    ids: Sequence[int]
    wanted: int = 1


class Kept(NamedTuple):
    """A generation under way, as `headway.nn.models.Decoding`: its rows, the position at which each goes on, and the
    memories, which as many rows read each.
    """

    rows: list[Row]
    positions: Int[Tensor, "B"]
    readings: list[Reading]

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> Kept:
        chosen = [self.rows[row].fork() for row in rows.tolist()]
        readings = self.readings
        if readings and memory_rows is not None:
            readings = [readings[row] for row in memory_rows.tolist()]
        for number, row in enumerate(chosen if readings else ()):
            row.reading = readings[number * len(readings) // len(chosen)]
        return Kept(together(chosen), self.positions[rows], readings)

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Rows `target` become as rows `source` are."""
        for row, other in zip(target.tolist(), [self.rows[row].fork() for row in source.tolist()]):
            self.rows[row].become(other)

    def at(self, positions: Int[Tensor, "B"]) -> Kept:
        return self._replace(positions=positions)


def together(rows: list[Row]) -> list[Row]:
    """The same rows with their states next to each other, where a program finds them without a copy."""
    if rows and len(rows[0].state):
        states = np.stack([row.state for row in rows])
        for row, state in zip(rows, states):
            row.state = state
    return rows


def states_of(rows: Sequence[Row]) -> np.ndarray:
    """[B, N], those very states where they lie next to each other, else a copy."""
    first, step = rows[0].state, rows[0].state.nbytes
    if all(row.state.ctypes.data == first.ctypes.data + n * step for n, row in enumerate(rows)):
        return np.lib.stride_tricks.as_strided(first, (len(rows), len(first)), (step, first.itemsize))
    return np.stack([row.state for row in rows])


def runs_of(sources: Sequence[object], places: Iterable[int] | None, most: int) -> list[int]:
    """Where runs begin: of at most `most` rows in turn that have the same source and, with `places`, positions that
    follow each other.
    """
    starts, last, before = [], None, 0
    for n, (source, place) in enumerate(zip(sources, places if places is not None else [0] * len(sources))):
        follows = source is last and (places is None or (place == before + 1 and before >= 0))
        if not follows or n - starts[-1] == most:
            starts.append(n)
        last, before = source, place
    return starts


def write_runs(runs: np.ndarray, starts: Sequence[int], rows: int, apart: bool) -> None:
    """As programs read them: how many, whether none reads what another writes, where each begins, and where the last
    ends.
    """
    runs[0], runs[1], runs[2 : len(starts) + 2], runs[len(starts) + 2] = len(starts), apart, starts, rows
