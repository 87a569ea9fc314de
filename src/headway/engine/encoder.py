"""Programs for stacks that process complete documents: encoders, towers, chess boards.

A program processes the tokens of several documents one after the other, without padding. It is used for packed weights
(`use_programs`): for fp32 torch's matrix products are faster. Modules without an instruction stay with torch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headway.engine.builder import FEW, Builder, CannotLowerError, PackedWeights, ParameterReads, Slot
from headway.engine.document_attention import (
    BY_DISTANCE,
    BY_DOCUMENT,
    COLUMNS,
    DISENTANGLED,
    NO_BIAS,
    QUERIES,
    SPAN,
    padded_to_columns,
)
from headway.engine.document_attention_bf16 import bf16_scratch_sizes
from headway.engine.document_loop import run_documents
from headway.engine.instructions import Opcode
from headway.engine.lowering import BlockLowering, Inner, unread_by_blocks
from headway.engine.machine import announce_compilation
from headway.engine.operations import SILU
from headway.engine.packed_weights import PackedTensor
from headway.engine.pool import pool
from headway.engine.processor import HAS_BF16_UNIT
from headway.layout import Layout
from headway.nn.kernels import recorder
from headway.nn.mixers.attention import QKNorm, SelfAttention
from headway.nn.models.block import Block
from headway.nn.models.convolved import ConvolvedBlock
from headway.nn.models.disentangled import Disentangled, PositionTerms
from headway.nn.models.score_biases import Alibi, Relative, Smolgen
from headway.nn.models.stack import Stack
from headway.nn.parts.experts import Experts
from headway.visibility import Causal, Full, Local, Pattern

_MAX_TOKENS = 128  # per run of a program, unless a document is longer
_FAR = 1 << 40  # further than any document reaches
_TABLE_ROWS = math.lcm(QUERIES, COLUMNS)
_WITHOUT_BIAS = {  # operands
    "bias_kind": NO_BIAS,
    "bias": 0,
    "span": 0,
    "table": 0,
    "rows": 0,
    "terms": 0,
}


@dataclass(frozen=True)
class DocumentsProgram:
    """Instructions for up to `tokens` tokens."""

    table: np.ndarray  # the instructions
    scratch: np.ndarray  # [threads, bytes]
    x: Slot  # input
    y: Slot  # output
    tokens: int
    buffers: list[Any]


class StackProgram:
    """Computes complete documents instead of a stack's blocks. Raises CannotLowerError for a module without an
    instruction.

    A document's result depends only on its tokens, bit for bit, not on other documents or on threads.
    """

    def __init__(self, stack: Stack, threads: int | None = None) -> None:
        """`threads` None: as many as torch uses at each call."""
        self._stack = stack
        self._weights, self._lock, self._threads = PackedWeights(), threading.Lock(), threads
        # A bias computed from all tokens of a board needs exactly that length.
        self._length = max((bias.config.length for bias in stack.modules() if isinstance(bias, Smolgen)), default=None)
        self._program = self._lower(max(FEW + 1, self._length or 0), 1)

    def fits(self, x: Float[Tensor, "B T D"], layout: Layout) -> bool:
        """Whether these are complete documents without groups, computed without gradients, and no attention weights are
        recorded.
        """
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and layout.group is None
        read = not self._stack.training and not (torch.is_grad_enabled() and x.requires_grad)
        complete = layout.dense
        if not complete and not self._length:
            positions = layout.positions[layout.mask]
            after = torch.where(positions == 0, 0, positions.roll(1) + 1)
            first = layout.positions.gather(1, layout.mask.int().argmax(1, keepdim=True))
            complete = bool((positions == after).all()) and bool((first <= 0).all())
        return plain and read and complete and recorder() is None and self._length in (None, layout.length)

    def __call__(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T E"]:
        """Padding gets zeros."""
        if layout.dense:
            outputs = self.forward(x.flatten(0, 1), np.full(layout.batch, layout.length))
            return outputs.unflatten(0, x.shape[:2])
        starts = torch.cat([layout.positions[layout.mask] == 0, torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
        outputs = self.forward(x[layout.mask], np.diff(starts.numpy()))
        y = x.new_zeros(*x.shape[:2], outputs.shape[1])
        y[layout.mask] = outputs
        return y

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "N D"], lengths: np.ndarray) -> Float[Tensor, "N E"]:
        """Process documents of these lengths, int [B], one after the other."""
        outputs, start = torch.empty(x.shape[0], self._program.y.width), 0
        with self._lock:  # a program has one set of buffers
            for batch in _parts(lengths.tolist()):
                end = start + sum(batch)
                self._run(x[start:end], batch, outputs[start:end])
                start = end
        return outputs

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of a stack has no program, because its weights may change."""
        return type(None), ()

    def _run(self, x: Tensor, lengths: list[int], out: Tensor) -> None:
        tokens, workers = len(x), pool(self._threads or torch.get_num_threads())
        threads, counter = workers.threads, workers.counter
        if tokens > self._program.tokens or threads > len(self._program.scratch):
            self._program = self._lower(max(_MAX_TOKENS, tokens, self._program.tokens), threads)
        program = self._program
        documents = np.array([len(lengths), 0, *np.cumsum(lengths)], np.int64)
        program.x.rows(tokens).copy_(x)
        scratch = [-(-buffer.ctypes.data // 64) * 64 for buffer in program.scratch]
        fields = (program.table.ctypes.data, len(program.table), documents.ctypes.data)

        def job(thread: int) -> None:
            run_documents(*fields, scratch[thread], counter, thread, threads)

        with announce_compilation(run_documents):
            workers.run(job)
        out.copy_(program.y.rows(tokens))

    def _lower(self, tokens: int, threads: int) -> DocumentsProgram:
        with torch.inference_mode(), ParameterReads() as reads:
            program = _StackLowering(self._stack, self._weights, tokens).program(threads)
        reads.check(self._stack, unread_by_blocks(self._stack))
        return program


def use_programs(model: nn.Module) -> None:
    """Use programs for complete documents in all stacks with packed weights that have instructions."""
    for stack in model.modules():
        if not isinstance(stack, Stack) or not any(isinstance(p, PackedTensor) for p in stack.parameters()):
            continue
        try:
            stack.program = StackProgram(stack)
        except CannotLowerError:
            continue


def _parts(lengths: list[int]) -> Iterator[list[int]]:
    """Documents that are computed together."""
    batch: list[int] = []
    for length in lengths:
        if batch and sum(batch) + length > _MAX_TOKENS:
            yield batch
            batch = []
        batch.append(length)
    if batch:
        yield batch


class _StackLowering(BlockLowering):
    def __init__(self, stack: Stack, weights: PackedWeights, tokens: int) -> None:
        super().__init__(Builder(weights, tokens, 0), stack.width_in)
        self.stack, self.tokens = stack, tokens
        self._distances: dict[int, int] = {}  # addresses of tables, by module id
        self._terms: dict[int, int] = {}  # addresses of the terms of relative positions, by rows of their table
        self._scratch: dict[tuple[int, bool], dict[str, int]] = {}  # operands of attention, by head size

    def program(self, threads: int) -> DocumentsProgram:
        build, read = self.build, self.x
        for block in self.stack.blocks:
            if not isinstance(block, Block) or isinstance(block, ConvolvedBlock):
                raise CannotLowerError(type(block).__name__)
            if isinstance(block.feed_forward, Experts):
                raise CannotLowerError("experts in an encoder")
            build.reuse_shared()
            self.block(block)
        y = self.norm(self.stack.norm, self.x)
        scratch = np.zeros((threads, build.scratch + 64), np.uint8)
        return DocumentsProgram(build.table(), scratch, read, y, build.rows, build.buffers)

    def read(self, block: Block, x: Slot) -> Inner:
        raise CannotLowerError("cross-attention in an encoder")

    def mix(self, block: Block, x: Slot) -> Inner:
        mixer, build = block.mixer, self.build
        if not isinstance(mixer, SelfAttention):
            raise CannotLowerError(f"{type(mixer).__name__} in an encoder")
        if mixer.config.placed:
            raise CannotLowerError("positions in queries and keys")
        heads, groups, size = mixer.heads, mixer.groups, mixer.size
        before, after = _reach(mixer.config.pattern)
        bias = self._bias(mixer, x)
        qkv = self.qkv(mixer, x)
        # The matrix unit has no products with relative positions.
        bf16 = HAS_BF16_UNIT and isinstance(mixer.qkv.weight, PackedTensor) and bias["bias_kind"] != DISENTANGLED
        if (size, bf16) not in self._scratch:
            spans = -(-self.tokens // SPAN) * SPAN
            sizes = bf16_scratch_sizes(size, self.tokens) if bf16 else (
                4 * spans * size, 4 * spans * padded_to_columns(size), 4 * QUERIES * size, 4 * QUERIES * spans,
                4 * max(size, QUERIES), 4 * QUERIES * padded_to_columns(size),
            )  # fmt: skip
            names = ("keys", "values", "q", "scores", "spare", "result")
            self._scratch[size, bf16] = {"bf16": bf16, **dict(zip(names, map(build.private_bytes, sizes)))}
        norms = (mixer.qk_norm.q, mixer.qk_norm.k) if isinstance(mixer.qk_norm, QKNorm) else None
        out = build.shared(heads * size)
        build.emit(
            Opcode.ATTEND_DOCUMENTS,
            qkv=qkv.address, stride=qkv.stride, heads=heads, groups=groups, size=size, before=before, after=after,
            sinks=build.constant(mixer.sinks), out=out.address, out_stride=out.stride, **bias,
            **self.head_norms(norms), **self.angles(mixer.rotary, self.tokens),
            **self._scratch[size, bf16],
            cap=mixer.config.soft_cap or 0.0, scale=mixer.config.scale or 1 / math.sqrt(size),
        )  # fmt: skip
        build.barrier()
        return out, mixer.out

    def _bias(self, mixer: SelfAttention, x: Slot) -> dict[str, int]:
        """Biases of the scores: a table by distance, one computed from the tokens of each board, or products of
        queries and keys with relative positions.
        """
        module = getattr(mixer._bias, "__self__", None)  # the module of the method
        if module is None:
            return _WITHOUT_BIAS
        if isinstance(module, Smolgen):
            # [B, H, T, T] for documents of exactly T tokens. Rows are tokens first, then documents, then the heads of
            # each document.
            build, config = self.build, module.config
            length, heads = config.length, config.heads
            if heads > length:  # the program has as many rows as tokens
                raise CannotLowerError(f"a bias of {heads} heads over {length} tokens")
            compressed = build.project(x, module.compress)
            build.barrier()
            build.emit(Opcode.BATCH, rows=1)
            document = Slot(compressed.address, length * compressed.stride, length * config.compressed)
            for projection, norm in ((module.summary, module.summary_norm), (module.split, module.split_norm)):
                hidden = build.shared(projection.weight.shape[0])
                build.project(document, projection, hidden, activation=SILU)
                build.barrier()
                build.norm(norm, hidden, hidden)
                build.barrier()
                document = hidden
            build.emit(Opcode.BATCH, rows=heads)
            head_rows = Slot(document.address, 4 * config.generated, config.generated)
            bias = build.project(head_rows, module.spread)
            build.barrier()
            build.emit(Opcode.BATCH, rows=0)
            return _WITHOUT_BIAS | {
                "bias_kind": BY_DOCUMENT,
                "bias": bias.address,
                "span": length,
                "table": build.constant(module.table),
            }
        if isinstance(module, Disentangled):
            return self._relative(mixer, module)
        if not isinstance(module, (Alibi, Relative)):
            raise CannotLowerError(f"the bias {type(module).__name__}")
        if id(module) not in self._distances:
            positions = torch.arange(2 * self.tokens - 1)[None]
            middle = Layout(positions[:, self.tokens - 1 : self.tokens])
            table = module(torch.zeros(1), middle, Layout(positions))
            self._distances[id(module)] = self.build.constant(table[0, :, 0])
        bias = self._distances[id(module)]
        return _WITHOUT_BIAS | {
            "bias_kind": BY_DISTANCE,
            "bias": bias,
            "span": self.tokens,
        }

    def _relative(self, mixer: SelfAttention, module: Disentangled) -> dict[str, int]:
        """A layer's relative positions as keys and as queries, which need no input, and the row of each distance."""
        assert isinstance(mixer.terms, PositionTerms)
        numbers = module.numbers(torch.arange(self.tokens - 1, -self.tokens, -1))
        first = int(numbers[-1])
        end = int(numbers[0]) + 1
        if id(module) not in self._distances:
            self._distances[id(module)] = self.build.constant((numbers - first).int())
        # The whole table is projected, so that a document's result does not depend on the program's size.
        keys, queries = (
            torch.zeros(end - first, mixer.heads, mixer.size) if rows is None else rows[first:end].float()
            for rows in mixer.terms.project(module.norm(module.table), mixer.qkv)
        )
        rows = -(-(end - first) // _TABLE_ROWS) * _TABLE_ROWS
        queries = queries * (mixer.config.scale or mixer.size**-0.5)  # the queries of tokens are scaled later
        keys, queries = (F.pad(part, (0, 0, 0, 0, 0, rows - len(part))).transpose(0, 1) for part in (keys, queries))
        panels = keys.unflatten(1, (-1, COLUMNS)).transpose(2, 3)
        table = torch.cat([panels.flatten(), queries.flatten()])
        if rows not in self._terms:
            spans = -(-self.tokens // SPAN) * SPAN
            self._terms[rows] = self.build.private_bytes(4 * rows * (QUERIES + spans))
        return {
            "bias_kind": DISENTANGLED,
            "bias": self._distances[id(module)],
            "span": self.tokens,
            "table": self.build.constant(table),
            "rows": rows,
            "terms": self._terms[rows],
        }


def _reach(pattern: Pattern) -> tuple[int, int]:
    """How far back a position sees, and how far ahead."""
    if isinstance(pattern, Full):
        return _FAR, _FAR
    if isinstance(pattern, Local):
        return pattern.reach, pattern.reach
    if isinstance(pattern, Causal):
        return _FAR if pattern.window is None else pattern.window - 1, 0
    raise CannotLowerError(f"attention with the pattern {type(pattern).__name__}")
