"""Keys and values in blocks of 32 positions, which rows share until one of them writes.

`keys` says what lies in a block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from headway.engine.machine import compiled, i64
from headway.engine.operations import BLOCK, share
from headway.engine.pool import Pool, pool

_SLAB = 1 << 24  # bytes that are asked for at once
_LINE = 64  # vectors that lie across two lines of memory are slow


@compiled
def copy_blocks(pairs: int, count: int, size: int, thread: int, threads: int) -> None:
    """One thread's share of the blocks of `size` bytes, from the first address of each pair to the second."""
    places = i64(pairs)
    first, last = share(count, thread, threads)
    for n in range(first, last):
        source, target = i64(places[2 * n]), i64(places[2 * n + 1])
        for i in range(size // 8):
            target[i] = source[i]


class Blocks:
    """A store of blocks of `size` bytes each. Memory comes in slabs and is used again when no row needs it. No position
    is seen from `window` positions further on or more; None: all are always seen.
    """

    def __init__(self, size: int, window: int | None = None, threads: Pool | None = None) -> None:
        self.size, self.window = size, window
        self.threads = threads or pool(1)
        self._slabs: list[np.ndarray] = []
        self._free: list[int] = []
        self._users: dict[int, int] = {}

    @property
    def held(self) -> int:
        """How many blocks rows need now."""
        return len(self._users)

    def take(self) -> int:
        """The address of a block for one row."""
        if not self._free:
            count = max(1, _SLAB // max(1, self.size))
            slab = np.empty(count * self.size + _LINE, np.uint8)
            self._slabs.append(slab)
            start = -(-slab.ctypes.data // _LINE) * _LINE
            self._free = [start + self.size * i for i in reversed(range(count))]
        block = self._free.pop()
        self._users[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        for block in filter(None, blocks):
            self._users[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        for block in filter(None, blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                del self._users[block]
                self._free.append(block)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """The content of the first block of each pair into the second."""
        places = np.array(pairs, np.int64)
        fields = (places.ctypes.data, len(pairs), self.size)
        self.threads.run(lambda thread: copy_blocks(*fields, thread, self.threads.threads))

    def alone(self, block: int) -> bool:
        return self._users[block] == 1

    def view(self, block: int) -> np.ndarray:
        """The bytes of a block."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(block))

    def first_seen(self, position: int) -> int:
        """The number of the first block of which this position, or a later one, sees anything."""
        return 0 if self.window is None else max(0, position - self.window + 1) // BLOCK


class Rows:
    """The blocks of the rows of a batch, given back when this is dropped. One that no position sees any more is 0."""

    def __init__(self, store: Blocks, blocks: list[list[int]]) -> None:
        self.store, self.blocks = store, blocks
        self.table = np.zeros((max(1, len(blocks)), 1), np.int64)
        self._fill()

    def select(self, rows: Sequence[int]) -> Rows:
        """Chosen rows, which share their blocks with these."""
        chosen = [list(self.blocks[row]) for row in rows]
        for blocks in chosen:
            self.store.share(blocks)
        return Rows(self.store, chosen)

    def assign(self, target: Sequence[int], source: Sequence[int]) -> None:
        """Rows `target` become as rows `source` are."""
        chosen = [list(self.blocks[row]) for row in source]
        for blocks in chosen:
            self.store.share(blocks)
        for row, blocks in zip(target, chosen):
            self.store.give_back(self.blocks[row])
            self.blocks[row] = blocks
        self._fill()

    def forget(self, positions: np.ndarray) -> None:
        """Give back what rows that are at these positions, and will not go back, see no longer."""
        for position, blocks in zip(positions.tolist(), self.blocks):
            number = min(self.store.first_seen(position), len(blocks)) - 1
            while number >= 0 and blocks[number]:
                self.store.give_back([blocks[number]])
                blocks[number] = 0
                number -= 1

    def make_room(self, positions: np.ndarray) -> None:
        """A block of its own for each row to write its next position in; -1 writes nothing."""
        if self.store.size == 0:
            return
        changed, copies = False, []
        for position, blocks in zip(positions.tolist(), self.blocks):
            if position < 0:
                continue
            number = position // BLOCK
            while len(blocks) <= number:
                blocks.append(self.store.take())
                changed = True
            if not self.store.alone(blocks[number]):
                copy = self.store.take()
                copies.append((blocks[number], copy))
                self.store.give_back([blocks[number]])
                blocks[number] = copy
                changed = True
        if copies:
            self.store.copy(copies)
        if changed:
            self._fill()

    def _fill(self) -> None:
        widest = max((len(blocks) for blocks in self.blocks), default=0)
        if widest > self.table.shape[1]:
            self.table = np.zeros((len(self.blocks), 2 * widest), np.int64)
        for row, blocks in enumerate(self.blocks):
            self.table[row, : len(blocks)] = blocks

    def __del__(self) -> None:
        for blocks in self.blocks:
            self.store.give_back(blocks)
