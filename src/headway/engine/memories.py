"""Where programs find keys and values: tables of blocks, and how large these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from headway.engine.keys import block_bytes
from headway.engine.operations import BLOCK
from headway.engine.states import fixed_numbers
from headway.engine.tiles import FP32
from headway.mixers.attention import Attention
from headway.mixers.conditional_gru import ConditionalGRU
from headway.models.block import Block


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
    return block_bytes(form, mixer.groups, mixer.size, mixer.size) if isinstance(mixer, Attention) else 0


def reads(block: Block, form: int) -> int:
    """The bytes that a block keeps of a block of positions of a memory; annotations are fp32."""
    mixer, cross = block.mixer, block.cross
    if isinstance(mixer, ConditionalGRU):
        additive = mixer.config.context == "additive"
        return block_bytes(FP32, 1, mixer.keys.weight.shape[0], mixer.context.weight.shape[1]) if additive else 0
    return 0 if cross is None else block_bytes(form, cross.groups, cross.size, cross.size)
