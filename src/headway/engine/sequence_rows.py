"""Per-sequence state of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from headway.engine.cache import Blocks
from headway.engine.operations import BLOCK


class _BlockHolder:
    """Blocks that are released when this object is dropped. A block that no position sees any more is 0."""

    def __init__(self, store: Blocks, blocks: list[int]) -> None:
        self.store, self.blocks = store, blocks
        self.table = np.zeros(max(1, len(blocks)), np.int64)  # the same addresses, for a program to read
        self._note()

    def _note(self) -> None:
        if len(self.blocks) > len(self.table):
            self.table = np.zeros(2 * len(self.blocks), np.int64)
        self.table[: len(self.blocks)] = self.blocks

    def __del__(self) -> None:
        self.store.release_later(self.blocks)


class MemoryBlocks(_BlockHolder):
    """An encoder's output for some rows: the blocks of its keys and values, the number of positions, and the floats
    that are the same for all tokens.
    """

    def __init__(self, store: Blocks, blocks: list[int], length: int, fixed: np.ndarray) -> None:
        super().__init__(store, blocks)
        self.length, self.fixed = length, fixed


class Row(_BlockHolder):
    """The engine's state of one sequence: the blocks of its keys and values, its encoder output, and the states of its
    mixers. It has no current position: a token at a position remains until it is overwritten.
    """

    def __init__(self, store: Blocks, blocks: list[int], memory: MemoryBlocks | None, state: np.ndarray) -> None:
        super().__init__(store, blocks)
        self.memory, self.state = memory, state

    def fork(self) -> Row:
        """A copy of this row; both share their blocks until one of them writes."""
        self.store.share(self.blocks)
        return Row(self.store, list(self.blocks), self.memory, self.state.copy())

    def adopt_prefix(self, blocks: Sequence[int]) -> None:
        """Make these shared blocks the row's first ones. Blocks that it already has there have the same content."""
        self.store.share(blocks)
        self.store.release(self.blocks[: len(blocks)])
        self.blocks[: len(blocks)] = blocks
        self._note()

    def close(self) -> None:
        """Release all blocks now."""
        self.store.release(self.blocks)
        self.blocks = []

    def truncate(self, positions: int) -> None:
        """Release the blocks after this many positions."""
        blocks = -(-positions // BLOCK)
        self.store.release(self.blocks[blocks:])
        del self.blocks[blocks:]

    def forget(self, position: int) -> None:
        """Release the blocks that are not visible from this position on."""
        number = min(self.store.first_visible(position), len(self.blocks)) - 1
        while number >= 0 and self.blocks[number]:
            self.store.release([self.blocks[number]])
            self.blocks[number] = self.table[number] = 0
            number -= 1

    def blocks_needed(self, first: int, last: int) -> int:
        """How many blocks must still be taken to write positions `first` to `last` - 1."""
        if not self.store.size or last <= first:
            return 0
        written = self.blocks[first // BLOCK : (last - 1) // BLOCK + 1]
        return (last - 1) // BLOCK + 1 - first // BLOCK - sum(self.store.is_exclusive(block) for block in written)

    def reserve(self, first: int, last: int) -> list[tuple[int, int]]:
        """Take exclusive blocks to write positions `first` to `last` - 1; return pairs of a block and its copy, whose
        content must still be copied. Raises OutOfBlocksError if there are no more blocks.
        """
        if not self.store.size or last <= first:
            return []
        changed, copies = False, []
        for number in range(first // BLOCK, (last - 1) // BLOCK + 1):
            if number >= len(self.blocks):
                self.blocks.append(self.store.take())
                changed = True
            elif not self.store.is_exclusive(self.blocks[number]):
                copy = self.store.take()
                if number * BLOCK < first or last < (number + 1) * BLOCK:
                    copies.append((self.blocks[number], copy))
                self.store.release([self.blocks[number]])
                self.blocks[number] = copy
                changed = True
        if changed:
            self._note()
        return copies


class EngineDecoding(NamedTuple):
    """The state of a generation, as `headway.nn.models.Decoding`: its rows, the next position of each, and the encoder
    outputs, each shared by equally many rows.
    """

    rows: list[Row]
    positions: Int[Tensor, "B"]
    memories: list[MemoryBlocks]

    def select(self, rows: Int[Tensor, "R"], memory_rows: Int[Tensor, "N"] | None = None) -> EngineDecoding:
        chosen = [self.rows[row].fork() for row in rows.tolist()]
        memories = self.memories
        if memories and memory_rows is not None:
            memories = [memories[row] for row in memory_rows.tolist()]
        for number, row in enumerate(chosen if memories else ()):
            row.memory = memories[number * len(memories) // len(chosen)]
        return EngineDecoding(stack_states(chosen), self.positions[rows], memories)

    def assign(self, target: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Make rows `target` copies of rows `source`; their encoder outputs stay."""
        for number, source_row in zip(target.tolist(), [self.rows[row].fork() for row in source.tolist()]):
            row = self.rows[number]
            row.store.release(row.blocks)
            row.blocks, source_row.blocks = source_row.blocks, []
            row.state[:] = source_row.state
            row._note()

    def at(self, positions: Int[Tensor, "B"]) -> EngineDecoding:
        return self._replace(positions=positions)


def stack_states(rows: list[Row]) -> list[Row]:
    """The same rows with adjacent states, which a program can use without a copy."""
    if rows and len(rows[0].state):
        states = np.stack([row.state for row in rows])
        for row, state in zip(rows, states):
            row.state = state
    return rows


def states_of(rows: Sequence[Row]) -> np.ndarray:
    """[B, N]: the states themselves if they are adjacent, otherwise a copy."""
    first, step = rows[0].state, rows[0].state.nbytes
    if all(row.state.ctypes.data == first.ctypes.data + n * step for n, row in enumerate(rows)):
        return np.lib.stride_tricks.as_strided(first, (len(rows), len(first)), (step, first.itemsize))
    return np.stack([row.state for row in rows])


def runs_of(sources: Sequence[object], positions: Iterable[int] | None, max_rows: int) -> list[int]:
    """The starts of runs: at most `max_rows` consecutive rows that have the same source and, with `positions`,
    consecutive positions.
    """
    starts, last, before = [], None, 0
    for n, (source, position) in enumerate(zip(sources, positions if positions is not None else [0] * len(sources))):
        follows = source is last and (positions is None or (position == before + 1 and before >= 0))
        if not follows or n - starts[-1] == max_rows:
            starts.append(n)
        last, before = source, position
    return starts


def write_runs(runs: np.ndarray, starts: Sequence[int], rows: int, apart: bool) -> None:
    """Write runs in the format of programs: their number, whether no row reads what another writes, their starts, and
    the end.
    """
    runs[0], runs[1], runs[2 : len(starts) + 2], runs[len(starts) + 2] = len(starts), apart, starts, rows
