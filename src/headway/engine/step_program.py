"""Lowering of a model's modules to a program. A model with a module that has no instruction runs with torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.engine import operations as code
from headway.engine.builder import STATES, Builder, CannotLowerError, PackedWeights, ParameterReads, Slot
from headway.engine.cache import BlockTables, block_tables, fixed_size, memory_block_bytes, self_block_bytes, state_size
from headway.engine.instructions import Opcode
from headway.engine.interpreter import SHARING, run_all_step, run_step
from headway.engine.kv_kernels import block_bytes
from headway.engine.lowering import (
    LINEAR,
    RECURRENT,
    BlockLowering,
    Inner,
    activation_code,
    lower_conditional,
    segments_within,
    unread_by_blocks,
)
from headway.engine.means import KeyMeans, rotations_by_chunk
from headway.engine.operations import BLOCK, GATED
from headway.engine.paged_attention import query_bytes, scratch_bytes
from headway.layout import Layout
from headway.nn.mixers.associative import LogDecay, Strength
from headway.nn.mixers.attention import QKNorm, SelfAttention
from headway.nn.mixers.conditional_gru import ConditionalGRU
from headway.nn.mixers.cross import CrossAttention
from headway.nn.mixers.qk_norms import EachQKNorm, WideQKNorm
from headway.nn.mixers.recurrence import Recurrence
from headway.nn.models import Transformer
from headway.nn.models.block import Block, Branch, LayerScale
from headway.nn.models.embeds import TokenEmbed, TypeEmbed
from headway.nn.models.heads import Transform, VocabularyHead
from headway.nn.models.maxout import Maxout
from headway.nn.models.score_biases import Alibi, Relative
from headway.nn.models.stack import Stack
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.experts import Experts
from headway.nn.parts.feedforward import MLP, Gated
from headway.nn.parts.norm import LayerNorm, RMSNorm
from headway.nn.parts.positions import Learned, Sinusoidal
from headway.nn.parts.projection import Projection
from headway.visibility import Causal


@dataclass(frozen=True)
class StepProgram:
    """Instructions for one new token of up to `rows` rows whose positions stay below `capacity`."""

    run: Any  # the compiled loop
    table: np.ndarray  # the instructions
    scratch: list[int]  # scratch address of each thread
    body: int  # number of instructions before the head's
    x: Slot  # input of the head
    vocab_size: int  # logits per row
    kv_tables: BlockTables
    memory_tables: BlockTables
    rows: int
    capacity: int
    buffers: list[Any]
    state_words: tuple[np.ndarray, np.ndarray]  # rows and columns of the table that are state addresses
    state_offsets: np.ndarray  # those addresses, relative to the start of the states
    state_size: int  # floats per row


def lower(
    model: Transformer, weights: PackedWeights, rows: int, capacity: int, reach: int, cache_dtype: int, means: KeyMeans,
    threads: int,
) -> StepProgram:  # fmt: skip
    """The program of a decoder whose encoder outputs have at most `reach` positions, and which stores keys, minus these
    means, and values in `cache_dtype`. Raises CannotLowerError, also for a parameter that nothing reads.
    """
    with ParameterReads() as reads:
        program = _Lowering(model, weights, rows, capacity, reach, cache_dtype, means).program(threads)
    # Parameters that torch reads before the first step, or that the next token does not need.
    elsewhere = list(unread_by_blocks(model.stack))
    for module in model.modules():
        if isinstance(module, CrossAttention):
            elsewhere += module.kv.parameters()
        elif isinstance(module, ConditionalGRU):
            elsewhere += (module.keys if module.config.context == "additive" else module.context).parameters()
        if isinstance(module, Recurrence) and module.start is not None:
            elsewhere += module.start
    for name, head in model.heads.items():
        if name != "vocabulary":
            elsewhere += head.parameters()
    reads.check(model, elsewhere)
    return program


def check(model: Transformer) -> None:
    """Raise CannotLowerError for a module without an instruction, before any weight is packed or initialised."""
    for name, module in model.named_modules():
        if not isinstance(module, _KNOWN):
            raise CannotLowerError(f"{type(module).__name__} ({name})")
        if isinstance(module, (SelfAttention, CrossAttention)) and module.config.placed:
            raise CannotLowerError(f"positions in queries and keys ({name})")
        if isinstance(module, SelfAttention) and not isinstance(module.config.pattern, Causal):
            raise CannotLowerError(f"attention with the pattern {type(module.config.pattern).__name__} ({name})")


class _Lowering(BlockLowering):
    def __init__(
        self, model: Transformer, weights: PackedWeights, rows: int, capacity: int, reach: int, cache_dtype: int,
        means: KeyMeans,
    ) -> None:  # fmt: skip
        blocks = [block for block in model.stack.blocks if isinstance(block, Block)]
        self.state_size = sum(state_size(block.mixer) for block in blocks)
        super().__init__(Builder(weights, rows, self.state_size), model.config.width)
        self.model, self.capacity = model, capacity
        self.cache_dtype, self.means = cache_dtype, means
        self.kv_tables = block_tables(blocks, rows, capacity, cache_dtype, self_block_bytes)
        self.memory_tables = block_tables(blocks, rows, reach, cache_dtype, memory_block_bytes)
        self._by_chunk: dict[Any, int] = {}  # rotary angles by chunk, which rotate the means of keys
        self._layers = {"own": 0, "read": 0, "fixed": 0}  # where the next layer's part of each store starts

    def program(self, threads: int) -> StepProgram:
        build, model = self.build, self.model
        self._embed(model.embed)
        build.barrier()
        for block in model.stack.blocks:
            assert isinstance(block, Block)
            build.reuse_shared()
            self.block(block)
        body = len(build)
        vocab_size = self._head(model.heads["vocabulary"], self.norm(model.stack.norm, self.x))
        table = build.table()
        rows, words = np.array(build.state_words, np.int64).reshape(-1, 2).T
        loop = run_all_step if (table[:, 0] >= Opcode.COMBINE).any() else run_step
        scratch = np.zeros((threads, build.scratch + 64), np.uint8)
        build.buffers.append(scratch)
        return StepProgram(
            loop, table, [part.ctypes.data for part in scratch], body, self.x, vocab_size, self.kv_tables,
            self.memory_tables, build.rows, self.capacity, build.buffers, (rows, words),
            table[rows, words] - STATES, self.state_size,
        )  # fmt: skip

    def _embed(self, embed: nn.Module) -> None:
        if type(embed) is not TokenEmbed or not isinstance(embed.project, nn.Identity):
            raise CannotLowerError(f"the embedding {type(embed).__name__}")
        packed = self.build.weights.matrix(embed.table)
        positions = None
        if embed.positions is not None:
            limit = self.capacity
            if isinstance(embed.positions, Learned):
                limit = min(limit, embed.positions.table.shape[0] - embed.positions.offset)
            positions = embed.positions(Layout.full(1, limit), torch.zeros(1, 1, packed.columns))[0]
        if embed.types is not None:
            first = embed.types.table[:1]
            positions = first.expand(self.capacity, -1) if positions is None else positions + first
        self.build.emit(
            Opcode.EMBED, format=packed.kind, table=packed.addresses[0], scales=packed.addresses[1],
            width=packed.columns, out=self.x.address, stride=self.x.stride, positions=self.build.constant(positions),
            limit=0 if positions is None else positions.shape[0], offset=0, scale=embed.scale,
        )  # fmt: skip
        if not isinstance(embed.norm, nn.Identity):
            self.build.barrier()
            self.norm(embed.norm, self.x, self.x)

    def mix(self, block: Block, x: Slot) -> Inner:
        mixer = block.mixer
        if isinstance(mixer, ConditionalGRU):
            if fixed_size(mixer):
                layer = self._next("fixed", fixed_size(mixer))
            else:
                layer = self._next("read", memory_block_bytes(block, self.cache_dtype))
            return lower_conditional(self.build, mixer, x, self.memory_tables, layer), mixer.out
        lowered = _RECURRENT.get(type(mixer))
        if lowered is not None:
            return lowered(self.build, mixer, x), cast(nn.Module, mixer.out)
        if not isinstance(mixer, SelfAttention):
            raise CannotLowerError(type(mixer).__name__)
        pattern, mean, rotations = mixer.config.pattern, self.means.get(mixer), 0
        assert isinstance(pattern, Causal)  # ensured by `check`
        qkv = self.qkv(mixer, x)
        bias = None
        if mixer._bias is not None:  # by distance, [H, capacity], as the last query sees them, from itself backwards
            positions = torch.arange(self.capacity)[None]
            bias = mixer._bias(torch.zeros(1), Layout(positions[:, -1:]), Layout(positions))
        if mean is not None and mixer.rotary is not None:
            kind = (mixer.rotary.config, mixer.rotary.size)
            if kind not in self._by_chunk:
                angles = mixer.rotary.angles(Layout.full(1, self.capacity), torch.zeros(1))
                self._by_chunk[kind] = self.build.constant(rotations_by_chunk(*angles))
            rotations = self._by_chunk[kind]
        norms = (mixer.qk_norm.q, mixer.qk_norm.k) if isinstance(mixer.qk_norm, QKNorm) else None
        return self._attend(
            mixer, qkv, self.kv_tables, self._next("own", self_block_bytes(block, self.cache_dtype)), norms,
            stores_kv=True, bias=0 if bias is None else self.build.constant(bias[0, :, 0].flip(-1)),
            window=pattern.window or 0, sinks=mixer.sinks, mean=self.build.constant(mean), rotations=rotations,
            cap=mixer.config.soft_cap or 0.0, **self.angles(mixer.rotary, self.capacity),
        ), mixer.out  # fmt: skip

    def read(self, block: Block, x: Slot) -> Inner:
        cross = block.cross
        assert cross is not None
        norms = None if isinstance(cross.q_norm, nn.Identity) else (cross.q_norm, cross.k_norm)
        q = self.build.project(x, cross.q)
        self.build.barrier()
        return self._attend(
            cross, q, self.memory_tables, self._next("read", memory_block_bytes(block, self.cache_dtype)),
            norms, stores_kv=False, bias=0, window=0, sinks=None, mean=0, rotations=0,
            cap=cross.config.soft_cap or 0.0, **self.angles(None, self.capacity),
        ), cross.out  # fmt: skip

    def _attend(
        self, mixer: SelfAttention | CrossAttention, q: Slot, memory: BlockTables, layer: int,
        norms: tuple[nn.Module, nn.Module] | None, *, stores_kv: bool, window: int, sinks: Tensor | None,
        **operands: Any,
    ) -> Slot:  # fmt: skip
        """Attention over blocks in which the layer's keys start at byte `layer`."""
        build, heads, size = self.build, mixer.heads, mixer.size
        group_heads, capacity = heads // mixer.groups, memory.tables.shape[1] * BLOCK
        partial_capacity = 0 if build.wide else segments_within(min(capacity, window) if window else capacity)
        head_norms = self.head_norms(norms)
        partials = build.shared(heads * max(partial_capacity, 1) * (size + 2))
        build.emit(
            Opcode.ATTEND, qkv=q.address, stride=q.stride, heads=heads, groups=mixer.groups, size=size,
            stores_kv=stores_kv, window=window, span=self.capacity, tables=memory.tables.ctypes.data,
            table_step=memory.tables.shape[1], lengths=memory.lengths.ctypes.data, layer=layer,
            partials=partials.address, q=build.private_bytes(group_heads * SHARING * query_bytes(memory.dtype, size)),
            scores=build.private_bytes(scratch_bytes(memory.dtype, size)), dtype=memory.dtype,
            group_bytes=block_bytes(memory.dtype, 1, size, size), runs=memory.runs.ctypes.data,
            capacity=partial_capacity, spare=build.private_bytes(4 * group_heads * SHARING * (size + 2)),
            scale=mixer.config.scale or 1 / math.sqrt(size), **head_norms, **operands,
        )  # fmt: skip
        build.barrier()
        out = build.small(heads * size)
        lengths = 0 if stores_kv else memory.lengths.ctypes.data
        build.merge(partials, heads, partial_capacity, out, lengths, window, sinks)
        return out

    def _next(self, which: str, size: int) -> int:
        """The byte of a block where a layer's keys start; reserves `size` bytes."""
        start = self._layers[which]
        self._layers[which] += size
        return start

    def _head(self, head: nn.Module, x: Slot) -> int:
        if not isinstance(head, VocabularyHead):
            raise CannotLowerError(f"the head {type(head).__name__}")
        transform = head.transform
        if isinstance(transform, Transform):
            y = self.build.project(x, transform.dense, activation=activation_code(transform.activation))
            self.build.barrier()
            x = self.norm(transform.norm, y)
        elif isinstance(transform, Maxout):
            x = self.build.project(x, transform.dense, mode=GATED, activation=code.MAXOUT)
            self.build.barrier()
        elif not isinstance(transform, nn.Identity):
            raise CannotLowerError(f"the head's {type(transform).__name__}")
        vocab_size, cap = head.weight.shape[0], head.config.soft_cap
        logits = Slot(0, 4 * vocab_size, vocab_size)  # address set before each run
        activation = code.NONE if cap is None else code.SOFT_CAP
        self.build.multiply(
            x, head.weight, head.bias, logits, activation=activation, cap=cap or 0.0, scale=head.config.scale
        )
        return vocab_size


_RECURRENT = RECURRENT | LINEAR
_KNOWN = (
    Transformer, TokenEmbed, TypeEmbed, Learned, Sinusoidal, Stack, Block, Branch, LayerScale, SelfAttention, QKNorm,
    WideQKNorm, EachQKNorm, CrossAttention, ConditionalGRU, *_RECURRENT, Strength, LogDecay, Projection, MLP, Gated,
    Experts, LayerNorm, RMSNorm, VocabularyHead, Transform, Maxout, Alibi, Relative, Dropout, nn.Identity,
    nn.ModuleList, nn.ModuleDict, nn.ParameterList,
)  # fmt: skip
