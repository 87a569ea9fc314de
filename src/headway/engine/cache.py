"""Keys and values in blocks of 32 positions, shared by rows until one writes, and the states of recurrent mixers.

The layout of a block is described in `kv_kernels`.
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

from headway.engine.int8_keys import rounding_bytes
from headway.engine.kv_kernels import block_bytes
from headway.engine.machine import compiled, i64
from headway.engine.operations import BLOCK, share
from headway.engine.paged_attention import store_positions
from headway.engine.pool import Pool, pool
from headway.engine.tiles import FP32
from headway.io.machine_memory import large_pages
from headway.nn.mixers.associative import Associative
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.conditional_gru import ConditionalGRU
from headway.nn.mixers.dynamic_links import DynamicLinks
from headway.nn.mixers.recurrence import Recurrence
from headway.nn.models.block import Block

_SLAB = 1 << 24  # bytes per allocation


@compiled
def copy_blocks(pairs: int, count: int, size: int, thread: int, threads: int) -> None:
    """One thread's share of copying blocks of `size` bytes, from the first address of each pair to the second."""
    addresses = i64(pairs)
    first, last = share(count, thread, threads)
    for n in range(first, last):
        source, target = i64(addresses[2 * n]), i64(addresses[2 * n + 1])
        for i in range(size // 8):
            target[i] = source[i]


class OutOfBlocksError(Exception):
    """All blocks within the limit are in use."""


class Blocks:
    """A reference-counted store of blocks of `size` bytes, at most `max_blocks`. Memory comes in slabs; free blocks are
    reused. A position is visible to the next `window` positions only; None: to all.

    Only one thread may take and release blocks. `release_later` may be called by any thread; `release_pending` then
    releases them.
    """

    def __init__(self, size: int, window: int | None = None, threads: Pool | None = None) -> None:
        self.size, self.window = size, window
        self.threads = threads or pool(1)
        self.max_blocks: int | None = None
        self._slabs: list[np.ndarray] = []
        self._free: list[int] = []
        self._users: dict[int, int] = {}
        self._to_release: deque[list[int]] = deque()

    @property
    def used(self) -> int:
        """How many blocks are in use."""
        self.release_pending()
        return len(self._users)

    @property
    def available(self) -> float:
        """How many more blocks may be taken; infinity without a limit."""
        return math.inf if self.max_blocks is None else self.max_blocks - self.used

    def take(self) -> int:
        """The address of a block for one row. Raises OutOfBlocksError at the limit."""
        if self.max_blocks is not None and len(self._users) >= self.max_blocks:
            raise OutOfBlocksError(f"all {self.max_blocks} blocks of keys and values are in use")
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

    def release(self, blocks: Sequence[int]) -> None:
        for block in filter(None, blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                del self._users[block]
                self._free.append(block)

    def release_later(self, blocks: list[int]) -> None:
        """`release`, from any thread and at any time."""
        self._to_release.append(blocks)

    def release_pending(self) -> None:
        """Release the blocks passed to `release_later`. Not while copies are pending, whose source might be one."""
        while self._to_release:
            self.release(self._to_release.popleft())

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy the first block of each pair to the second."""
        addresses = np.array(pairs, np.int64)
        fields = (addresses.ctypes.data, len(pairs), self.size)
        self.threads.run(lambda thread: copy_blocks(*fields, thread, self.threads.threads))

    def most_blocks(self, tokens: int, chunk: int) -> int:
        """The maximum number of blocks that a row holds at once if it processes `tokens` tokens in chunks."""
        blocks = -(-tokens // BLOCK) if self.size else 0
        return blocks if self.window is None else min(blocks, (self.window + chunk) // BLOCK + 2)

    def is_exclusive(self, block: int) -> bool:
        return self._users[block] == 1

    def view(self, block: int) -> np.ndarray:
        """The bytes of a block."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(block))

    def first_visible(self, position: int) -> int:
        """The index of the first block visible to this position or a later one."""
        return 0 if self.window is None else max(0, position - self.window + 1) // BLOCK


class Layer(NamedTuple):
    """One layer's keys and values for one row. Position p is in slot p modulo S. `dtype` is one of
    `kv_kernels.CACHE_DTYPES`; in INT8 the keys are stored minus their `mean`, one per position from 0 on, or one for
    all.
    """

    dtype: int
    keys: Float[Tensor, "S G K"]
    values: Float[Tensor, "S G V"]
    mean: Float[Tensor, "P G K"] | None = None


def write(store: Blocks, layers: list[Layer], length: int) -> list[int]:
    """New blocks with the positions below `length` that are still visible; 0 for blocks without any."""
    if not layers:
        return []
    first, start = store.first_visible(length), 0
    blocks = [store.take() for _ in range(first, -(-length // BLOCK))]
    table = np.array(blocks, np.int64)
    for dtype, *both, mean in layers:
        keys, values = (part.float().contiguous() for part in both)
        means = torch.zeros(0) if mean is None else mean.float().contiguous()
        (slots, groups, size), width = keys.shape, values.shape[-1]
        scratch = np.empty(rounding_bytes(max(size, width)), np.uint8)
        group_bytes = block_bytes(dtype, 1, size, width)
        first_position = max(first * BLOCK, length - slots)
        block_addresses = table.ctypes.data + 8 * (first_position // BLOCK - first)
        store_positions(
            dtype, keys.data_ptr(), values.data_ptr(), means.data_ptr(), len(means), slots, groups, size, width,
            first_position, length, block_addresses, start, group_bytes, scratch.ctypes.data,
        )  # fmt: skip
        start += groups * group_bytes
    return [0] * first + blocks


def state_size(mixer: nn.Module) -> int:
    """Floats of state per row for a mixer; 0 if its state grows with the sequence."""
    if isinstance(mixer, Recurrence):
        return sum(mixer.state_sizes)
    if isinstance(mixer, Associative):
        return mixer.heads * math.prod(mixer.memory_shape)
    return mixer.cells * mixer.width if isinstance(mixer, DynamicLinks) else 0


def fixed_size(mixer: nn.Module) -> int:
    """Floats per row that a mixer derives from the encoder's output once for all tokens: c and C c."""
    if isinstance(mixer, ConditionalGRU) and mixer.config.context == "fixed":
        return sum(mixer.context.weight.shape)
    return 0


class BlockTables(NamedTuple):
    """Tables of the blocks from which a program reads keys and values, the row lengths, and the floats in an encoder's
    output that are the same for all tokens.
    """

    tables: np.ndarray  # [rows, blocks] of addresses
    lengths: np.ndarray  # [rows]
    bytes: int  # per block
    dtype: int  # of keys and values
    fixed: np.ndarray  # [rows, N]
    runs: np.ndarray  # number of row runs that share blocks, their starts, and the end


def block_tables(
    blocks: list[Block], rows: int, capacity: int, dtype: int, size: Callable[[Block, int], int]
) -> BlockTables:
    """Tables for `rows` rows and positions below `capacity`; `size` returns the bytes of one layer in a block."""
    tables = np.zeros((rows, -(-capacity // BLOCK) + 1), np.int64)
    fixed = np.zeros((rows, sum(fixed_size(block.mixer) for block in blocks)), np.float32)
    lengths, runs = np.zeros(rows, np.int64), np.zeros(rows + 3, np.int64)
    return BlockTables(tables, lengths, sum(size(block, dtype) for block in blocks), dtype, fixed, runs)


def self_block_bytes(block: Block, dtype: int) -> int:
    """Bytes of a layer's keys and values in a block of positions."""
    mixer = block.mixer
    return block_bytes(dtype, mixer.groups, mixer.size, mixer.size) if isinstance(mixer, SelfAttention) else 0


def memory_block_bytes(block: Block, dtype: int) -> int:
    """Bytes of a layer in a block of an encoder's positions; annotations are fp32."""
    mixer, cross = block.mixer, block.cross
    if isinstance(mixer, ConditionalGRU):
        additive = mixer.config.context == "additive"
        return block_bytes(FP32, 1, mixer.keys.weight.shape[0], mixer.context.weight.shape[1]) if additive else 0
    return 0 if cross is None else block_bytes(dtype, cross.groups, cross.size, cross.size)
