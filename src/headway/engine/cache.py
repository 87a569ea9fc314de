"""Keys and values in blocks of 32 positions, which rows share until one writes; and what recurrent mixers keep of a
row.

`keys` says what lies in a block.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.engine.attention import keep_positions
from headway.engine.keys import block_bytes
from headway.engine.machine import compiled, i64
from headway.engine.operations import BLOCK, share
from headway.engine.pool import Pool, pool
from headway.engine.rounded_keys import rounding_bytes
from headway.engine.tiles import FP32
from headway.nn.mixers.associative import Associative, FastWeights
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.conditional_gru import ConditionalGRU, Summary
from headway.nn.mixers.dynamic_links import DynamicLinks, FastLinks
from headway.nn.mixers.recurrence import Recurrence, Vectors
from headway.nn.models import Decoding
from headway.nn.models.block import Block
from headway.pages import large_pages

_SLAB = 1 << 24  # bytes that are asked for at once


@compiled
def copy_blocks(pairs: int, count: int, size: int, thread: int, threads: int) -> None:
    """One thread's share of the blocks of `size` bytes, from the first address of each pair to the second."""
    places = i64(pairs)
    first, last = share(count, thread, threads)
    for n in range(first, last):
        source, target = i64(places[2 * n]), i64(places[2 * n + 1])
        for i in range(size // 8):
            target[i] = source[i]


class OutOfBlocksError(Exception):
    """All blocks that there may be are in use."""


class Blocks:
    """A store of blocks of `size` bytes each, at most `most` of them. Memory comes in slabs and is used again when no
    row needs it. No position is seen from `window` positions further on or more; None: all are always seen.

    One thread at a time takes and gives back. What is let go, by any thread, is given back when it is gathered.
    """

    def __init__(self, size: int, window: int | None = None, threads: Pool | None = None) -> None:
        self.size, self.window = size, window
        self.threads = threads or pool(1)
        self.most: int | None = None
        self._slabs: list[np.ndarray] = []
        self._free: list[int] = []
        self._users: dict[int, int] = {}
        self._let_go: deque[list[int]] = deque()

    @property
    def held(self) -> int:
        """How many blocks rows need now."""
        self.gather()
        return len(self._users)

    @property
    def left(self) -> float:
        """How many more there may be; infinity where there is no limit."""
        return math.inf if self.most is None else self.most - self.held

    def take(self) -> int:
        """The address of a block for one row. OutOfBlocksError where there may be no more."""
        if self.most is not None and len(self._users) >= self.most:
            raise OutOfBlocksError(f"all {self.most} blocks of keys and values are in use")
        if not self._free:
            count = max(1, _SLAB // max(1, self.size))
            slab = large_pages(count * self.size)
            self._slabs.append(slab)
            self._free = [slab.ctypes.data + self.size * i for i in reversed(range(count))]
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

    def let_go(self, blocks: list[int]) -> None:
        """`give_back`, from any thread and at any time."""
        self._let_go.append(blocks)

    def gather(self) -> None:
        """Give back what was let go. Not while blocks are still to be copied: theirs might be among them."""
        while self._let_go:
            self.give_back(self._let_go.popleft())

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


class Layer(NamedTuple):
    """What a layer keeps of a row. Position p lies in slot p modulo S. `form` is one of `keys.FORMS`; in INT8 keys are
    kept less their `mean`, of each position from 0 on, or one of all.
    """

    form: int
    keys: Float[Tensor, "S G K"]
    values: Float[Tensor, "S G V"]
    mean: Float[Tensor, "P G K"] | None = None


def write(store: Blocks, layers: list[Layer], length: int) -> list[int]:
    """New blocks with the positions below `length` that are still seen; 0 for blocks of which none is."""
    if not layers:
        return []
    first, start = store.first_seen(length), 0
    blocks = [store.take() for _ in range(first, -(-length // BLOCK))]
    table = np.array(blocks, np.int64)
    for form, *both, mean in layers:
        keys, values = (part.float().contiguous() for part in both)
        means = torch.zeros(0) if mean is None else mean.float().contiguous()
        (slots, groups, size), width = keys.shape, values.shape[-1]
        room = np.empty(rounding_bytes(max(size, width)), np.uint8)
        each = block_bytes(form, 1, size, width)
        begin = max(first * BLOCK, length - slots)
        places = table.ctypes.data + 8 * (begin // BLOCK - first)
        keep_positions(
            form, keys.data_ptr(), values.data_ptr(), means.data_ptr(), len(means), slots, groups, size, width, begin,
            length, places, start, each, room.ctypes.data,
        )  # fmt: skip
        start += groups * each
    return [0] * first + blocks


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
    form: int  # of keys and values
    fixed: np.ndarray  # [rows, N]
    runs: np.ndarray  # how many runs of rows that read the same blocks there are, where each begins, and all end


def memory_of(blocks: list[Block], rows: int, capacity: int, form: int, size: Callable[[Block, int], int]) -> Memory:
    """For so many rows and positions below `capacity`; `size` is what a block of the model keeps there, in bytes."""
    tables = np.zeros((rows, -(-capacity // BLOCK) + 1), np.int64)
    fixed = np.zeros((rows, sum(fixed_numbers(block.mixer) for block in blocks)), np.float32)
    lengths, runs = np.zeros(rows, np.int64), np.zeros(rows + 3, np.int64)
    return Memory(tables, lengths, sum(size(block, form) for block in blocks), form, fixed, runs)


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
