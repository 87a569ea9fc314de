"""Keys and values in blocks of 32 positions, which rows share until one writes; and what recurrent mixers keep of a
row.

`keys` says what lies in a block.
"""

from __future__ import annotations

import ctypes
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from headway.engine.keys import block_bytes
from headway.engine.machine import compiled, i64
from headway.engine.operations import BLOCK, share
from headway.engine.tiles import FP32
from headway.nn.mixers.associative import Associative, FastWeights
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.conditional_gru import ConditionalGRU, Summary
from headway.nn.mixers.dynamic_links import DynamicLinks, FastLinks
from headway.nn.mixers.recurrence import Recurrence, Vectors
from headway.nn.models import Decoding
from headway.nn.models.block import Block


class Pool:
    """`threads` workers, of which the caller is the first. They sleep between calls, and do not outlive the program.

    Inside a call they meet at a barrier (`machine.barrier`), whose counter is at `counter`. Calls from several threads
    come one after the other.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._turns = np.zeros(8, np.int64)  # a cache line of its own
        self._lock = threading.Lock()
        self._start = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._done = threading.Semaphore(0)
        self._job: Callable[[int], None] = _nothing
        for number, start in enumerate(self._start, start=1):
            threading.Thread(target=self._work, args=(number, start), daemon=True).start()

    @property
    def counter(self) -> int:
        return self._turns.ctypes.data

    def run(self, job: Callable[[int], None]) -> None:
        """`job(thread)` on every thread; returns when all have finished. Ctrl-C waits until then, as a thread that was
        left at a barrier would wait for ever.
        """
        with self._lock, _uninterrupted():
            self._job, self._turns[:] = job, 0
            for start in self._start:
                start.release()
            job(0)
            for _ in self._start:
                self._done.acquire()

    def _work(self, number: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            self._job(number)
            self._done.release()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Within, an interrupt is noted; it comes at the end."""
    own = signal.getsignal(signal.SIGINT)
    if not callable(own) or threading.current_thread() is not threading.main_thread():
        yield  # nothing would interrupt
        return
    noted: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)
    if noted:
        own(*noted[0])


def _nothing(thread: int) -> None:
    return None


_POOLS: dict[int, Pool] = {}


def pool(threads: int) -> Pool:
    """The one pool of that many threads."""
    if threads not in _POOLS:
        _POOLS[threads] = Pool(threads)
    return _POOLS[threads]


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


class RowBlocks:
    """The blocks of the rows of a batch, given back when this is dropped. One that no position sees any more is 0."""

    def __init__(self, store: Blocks, blocks: list[list[int]]) -> None:
        self.store, self.blocks = store, blocks
        self.table = np.zeros((max(1, len(blocks)), 1), np.int64)
        self._fill()

    def select(self, rows: Sequence[int]) -> RowBlocks:
        """Chosen rows, which share their blocks with these."""
        chosen = [list(self.blocks[row]) for row in rows]
        for blocks in chosen:
            self.store.share(blocks)
        return RowBlocks(self.store, chosen)

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


class Layer(NamedTuple):
    """What a layer keeps of a row. Position p lies in slot p modulo S. `form` is what the blocks have: FP32 or INT8."""

    form: int
    keys: Float[Tensor, "S G K"]
    values: Float[Tensor, "S G V"]


def write(store: Blocks, layers: list[Layer], length: int) -> list[int]:
    """New blocks with the positions below `length` that are still seen; 0 for blocks of which none is."""
    if not layers:
        return []
    first = store.first_seen(length)
    blocks = [store.take() for _ in range(first, -(-length // BLOCK))]
    start = 0
    for layer in layers:
        content = _content(layer, first * BLOCK, len(blocks) * BLOCK, length).numpy()
        for block, part in zip(blocks, content):
            store.view(block)[start : start + len(part)] = part
        start += content.shape[1]
    return [0] * first + blocks


def _content(layer: Layer, begin: int, room: int, length: int) -> UInt8[Tensor, "N Y"]:
    """The bytes of a layer in each of the blocks from position `begin` on, as `keys` describes them."""
    keys, values = (_ordered(part, begin, room, length) for part in layer[1:])
    scales: list[Tensor] = []
    if layer.form != FP32:
        (keys, *one), (values, *two) = _rounded(keys), _rounded(values)
        scales = [*one, *two]
    orders = [(keys, (0, 2, 3, 1)), (values, (0, 2, 1, 3)), *((scale, (0, 2, 3, 1)) for scale in scales)]
    parts = [part.unflatten(0, (-1, BLOCK)).permute(order).flatten(2).contiguous() for part, order in orders]
    return torch.cat([part.view(torch.uint8) for part in parts], -1).flatten(1)


def _rounded(part: Float[Tensor, "T G K"]) -> tuple[Tensor, Tensor]:
    """Whole numbers and a scale for each position and group, as `attention.keep` makes them."""
    largest = part.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    return (part * inverse).round().to(torch.int8), largest / 127


def _ordered(part: Float[Tensor, "S G K"], begin: int, room: int, length: int) -> Float[Tensor, "T G K"]:
    slots, out = part.shape[0], part.new_zeros(room, *part.shape[1:], dtype=torch.float32)
    first = max(begin, length - slots)
    held = part[first:length] if length <= slots else part[torch.arange(first, length) % slots]
    out[first - begin : length - begin] = held.float()
    return out


def state_numbers(mixer: nn.Module) -> int:
    """How many floats the engine keeps of a row for a mixer; 0 where its state grows."""
    if isinstance(mixer, Recurrence):
        return sum(mixer.state_sizes)
    if isinstance(mixer, Associative):
        return mixer.heads * math.prod(mixer.memory_shape)
    return mixer.cells * mixer.width if isinstance(mixer, DynamicLinks) else 0


def fixed_numbers(mixer: nn.Module) -> int:
    """How many floats it has of a memory that are the same for all tokens: c and C c."""
    if isinstance(mixer, ConditionalGRU) and mixer.config.context == "fixed":
        return sum(mixer.context.weight.shape)
    return 0


def flat_states(decoding: Decoding) -> Float[Tensor, "B N"]:
    """The states of torch in the order in which a program has them, layer by layer."""
    parts = [torch.zeros(len(decoding.positions), 0)]
    for state in decoding.states:
        if isinstance(state, Vectors):
            parts += state.now
        elif isinstance(state, (FastWeights, FastLinks)):
            parts.append(state.matrix)
    return torch.cat([part.detach().float().flatten(1) for part in parts], 1)


def flat_summaries(decoding: Decoding) -> Float[Tensor, "M N"]:
    """What memories say that is the same for all tokens, layer by layer; no rows where there is nothing."""
    parts = [part for memory in decoding.memories or () if isinstance(memory, Summary) for part in memory]
    return torch.cat([part.detach().float() for part in parts], 1) if parts else torch.zeros(0, 0)


class Memory(NamedTuple):
    """Where a program finds keys and values of rows: tables of blocks and how many positions they have. And what is the
    same of a memory for all tokens.
    """

    tables: np.ndarray  # [rows, blocks], addresses
    lengths: np.ndarray  # [rows]
    bytes: int  # of a block
    form: int  # of keys and values: FP32 or INT8
    fixed: np.ndarray  # [rows, N]
    sharing: np.ndarray  # [1], how many rows in turn have the same blocks


def memory_of(blocks: list[Block], rows: int, capacity: int, form: int, size: Callable[[Block, int], int]) -> Memory:
    """For so many rows and positions below `capacity`; `size` is what a block of the model keeps there, in bytes."""
    tables = np.zeros((rows, -(-capacity // BLOCK) + 1), np.int64)
    fixed = np.zeros((rows, sum(fixed_numbers(block.mixer) for block in blocks)), np.float32)
    return Memory(
        tables, np.zeros(rows, np.int64), sum(size(block, form) for block in blocks), form, fixed, np.ones(1, np.int64)
    )


def grows(block: Block, form: int) -> int:
    """The bytes of a block's keys and values in a block of positions."""
    mixer = block.mixer
    return block_bytes(form, mixer.groups, mixer.size, mixer.size) if isinstance(mixer, SelfAttention) else 0


def reads(block: Block, form: int) -> int:
    """The bytes that a block keeps of a block of positions of a memory; annotations are fp32."""
    mixer, cross = block.mixer, block.cross
    if isinstance(mixer, ConditionalGRU):
        additive = mixer.config.context == "additive"
        return block_bytes(FP32, 1, mixer.keys.weight.shape[0], mixer.context.weight.shape[1]) if additive else 0
    return 0 if cross is None else block_bytes(form, cross.groups, cross.size, cross.size)
