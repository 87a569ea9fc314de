"""Builds programs: a table of instructions from named fields, and the buffers that they use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from headway.engine import operations as code
from headway.engine.instructions import FLOATS, INTEGERS, LENGTH, WORDS, Opcode
from headway.engine.operations import GATED, QUANTISED, STORE
from headway.engine.packed_weights import PackedMatrix, PackedTensor, pack
from headway.engine.products import SCRATCH_BYTES
from headway.engine.tiles import FP32, GROUP
from headway.nn.parts.norm import LayerNorm, RMSNorm
from headway.nn.parts.projection import Projection


class CannotLowerError(Exception):
    """The engine has no instruction for this."""


def norm_parts(norm: nn.Module) -> tuple[int, Tensor | None, Tensor | None, float]:
    """Kind, weight, bias and epsilon of a norm."""
    if isinstance(norm, LayerNorm):
        return code.LAYER, norm.weight, norm.bias, norm.eps
    if isinstance(norm, RMSNorm):
        weight = None if norm.weight is None else norm.weight + norm.offset
        return code.RMS, weight, None, norm.eps
    raise CannotLowerError(f"the norm {type(norm).__name__}")


@dataclass(frozen=True)
class Slot:
    """Rows of floats: an address (negative: in scratch) and the stride between rows in bytes."""

    address: int
    stride: int
    width: int

    def rows(self, count: int) -> Tensor:
        """The first rows, if they are shared by all threads and contiguous."""
        assert self.address > 0
        assert self.stride == 4 * self.width
        memory = (ctypes.c_float * (count * self.width)).from_address(self.address)
        return torch.from_numpy(np.ctypeslib.as_array(memory)).view(count, self.width)

    def columns(self, start: int, width: int) -> Slot:
        at = self.address + 4 * start if self.address >= 0 else self.address - 4 * start
        return Slot(at, self.stride, width)


@dataclass(frozen=True)
class Int8Slot(Slot):
    """Rows of int8 codes in full groups, with the addresses of their scales and corrections, one per group."""

    format: int  # kind of the weights they are multiplied with
    scales: int
    corrections: int


# Operands with the address of results that may be in scratch.
_RESULTS = {
    int(kind): WORDS[kind][name] for kind, name in ((Opcode.NORM, "dst"), (Opcode.QUANTISE, "q"), (Opcode.MERGE, "out"))
}
STATES = 1 << 60  # placeholder addresses of states, until the states are known
FEW = 16  # up to this many rows, each thread computes small operations itself


class ParameterReads(TorchFunctionMode):
    """Notes the tensors whose values are read while it is active; their shapes and types do not count."""

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ != "__get__":
            self._read.update((id(item), item) for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor))
        return func(*args, **(kwargs or {}))

    def check(self, module: nn.Module, elsewhere: Iterable[Tensor] = ()) -> None:
        """Raise CannotLowerError for a parameter that was not read. Those read `elsewhere` may be missing."""
        read = self._read.keys() | set(map(id, elsewhere))
        for name, parameter in module.named_parameters():
            if id(parameter) not in read:
                raise CannotLowerError(f"the parameter {name}")


class PackedWeights:
    """A model's matrices in the engine's layout, each packed once."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Tensor, PackedMatrix]] = {}

    def matrix(self, weight: Tensor) -> PackedMatrix:
        weight = weight.detach()  # an operation, which `ParameterReads` sees
        if isinstance(weight, PackedTensor):
            return weight.packed
        key = weight.data_ptr()
        if key not in self._packed:
            self._packed[key] = (weight, pack(weight, "fp32"))
        return self._packed[key][1]


class Builder:
    """Builds a program for up to `rows` rows with states of `state_size` floats each.

    For few rows each thread computes small operations (norms, quantisation) itself, which saves barriers. In a
    `wide` program, for many rows, the threads share this work, and blocks reuse the same buffers.
    """

    def __init__(self, weights: PackedWeights, rows: int, state_size: int) -> None:
        self.weights, self.rows, self.state_size = weights, rows, state_size
        self.wide = rows > FEW
        self.buffers: list[Any] = []  # keeps alive the arrays that the table points to
        self._shared_buffers: dict[int, list[int]] = {}  # by size, addresses that blocks reuse
        self._used: dict[int, int] = {}
        self._filled_together: set[int] = set()  # addresses that threads fill together before any reads them
        self._pairs: dict[tuple[int, int], list[int]] = {}
        self._turn = 0
        self.scratch = 64  # bytes per thread
        self._products = self.private_bytes(SCRATCH_BYTES)
        self._stated = 0  # floats of the state in use
        self._instructions: list[list[int]] = []
        self._last_barrier = 0  # instructions up to the last barrier
        self.state_words: list[tuple[int, int]] = []  # instructions and their words that are addresses of states

    def __len__(self) -> int:
        return len(self._instructions)

    def table(self) -> np.ndarray:
        """The instructions, int64 [N, LENGTH]."""
        self._free()  # a program ends with a barrier
        return np.array(self._instructions, np.int64).reshape(-1, LENGTH)

    def shared(self, width: int) -> Slot:
        """Rows shared by all threads, until `reuse_shared`."""
        size = 4 * width * self.rows
        buffers, number = self._shared_buffers.setdefault(size, []), self._used.get(size, 0)
        if number == len(buffers):
            buffers.append(self._bytes(size))
        self._used[size] = number + 1
        return Slot(buffers[number], 4 * width, width)

    def lasting(self, width: int) -> Slot:
        """Rows shared by all threads, across blocks."""
        return Slot(self._bytes(4 * width * self.rows), 4 * width, width)

    def private(self, width: int) -> Slot:
        """Rows private to each thread."""
        return Slot(self.private_bytes(4 * width * self.rows), 4 * width, width)

    def small(self, width: int, lasting: bool = False) -> Slot:
        """Output rows of a norm or merge: private, or in a wide program shared, with a barrier after the operation."""
        if not self.wide:
            return self.private(width)
        slot = self.lasting(width) if lasting else self.shared(width)
        self._filled_together.add(slot.address)
        return slot

    def reuse_shared(self) -> None:
        """Reuse the buffers of `shared`; all threads must have passed a barrier since they read them."""
        self._used.clear()

    def _bytes(self, size: int) -> int:
        buffer = np.zeros(size + 64, np.uint8)
        self.buffers.append(buffer)
        return -(-buffer.ctypes.data // 64) * 64

    def _sync(self, slot: Slot) -> None:
        if slot.address in self._filled_together:
            self.barrier()

    def private_bytes(self, size: int) -> int:
        """The address of `size` bytes private to each thread."""
        start, self.scratch = self.scratch, self.scratch + -(-size // 64) * 64
        return -1 - start

    def state(self, width: int) -> Slot:
        """The next floats of each row's state, addressed from STATES."""
        start, self._stated = self._stated, self._stated + width
        assert self._stated <= self.state_size
        return Slot(STATES + 4 * start, 4 * self.state_size, width)

    def constant(self, values: Tensor | None) -> int:
        """The address of a constant, of 32-bit integers or floats; 0 for None."""
        if values is None:
            return 0
        array = (values if values.dtype == torch.int32 else values.detach().float()).contiguous()
        self.buffers.append(array)
        return array.data_ptr()

    def emit(self, kind: Opcode, **operands: Any) -> None:
        integers = [int(operands.pop(name)) for name in INTEGERS[kind]]
        floats = [float(operands.pop(name)) for name in FLOATS[kind]]
        assert not operands, f"{kind.name} has no {list(operands)}"
        self.state_words += [(len(self), n) for n, value in enumerate(integers, 1) if value >= STATES]
        words = [int(kind), *integers, *np.array(floats).view(np.int64).tolist()]
        self._instructions.append(words + [0] * (LENGTH - len(words)))

    @contextmanager
    def gathered(self, x: Slot, y: Slot, rows: int, weights: Slot, expert: int) -> Iterator[None]:
        """The instructions emitted within, which end with WEIGH, have the rows of x that are routed to the expert, in
        y; they are skipped if there are none. `rows` is the address of a private list of these rows.
        """
        start = len(self)
        self.emit(
            Opcode.GATHER, weights=weights.address, count=weights.width, expert=expert, src=x.address,
            src_stride=x.stride, dst=y.address, dst_stride=y.stride, width=x.width, rows=rows, instructions=0,
        )  # fmt: skip
        if self.wide:  # y is shared
            self.barrier()
        yield
        self._instructions[start][WORDS[Opcode.GATHER]["instructions"]] = len(self) - start - 1

    def barrier(self) -> None:
        self._free()
        self.emit(Opcode.BARRIER)
        self._last_barrier = len(self)

    def _free(self) -> None:
        """Let idle threads take parts of a product if it is the only shared work since the last barrier."""
        since = self._instructions[self._last_barrier :]
        common = [row for row in since if row[0] not in _RESULTS or row[_RESULTS[row[0]]] >= 0]
        if len(common) == 1 and common[0][0] == Opcode.MULTIPLY:
            common[0][WORDS[Opcode.MULTIPLY]["free"]] = 1

    def sum(self, x: Slot, y: Slot, residual: bool = True, gain: Tensor | None = None) -> None:
        """y = y (if residual) + gain x; no barrier follows."""
        self.emit(
            Opcode.SUM, src=x.address, src_stride=x.stride, dst=y.address, dst_stride=y.stride, width=x.width,
            residual=residual, gain=self.constant(gain),
        )  # fmt: skip

    def merge(
        self, partials: Slot, heads: int, capacity: int, out: Slot, lengths: int = 0, window: int = 0,
        sinks: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Merge partial attention results into `out`, private to each thread. `capacity` is the maximum number per
        head; 0: merged already. `lengths` is the address of the attended lengths; 0: the row's own past.
        """
        self.emit(
            Opcode.MERGE, partials=partials.address, heads=heads, size=out.width // heads, capacity=capacity,
            sinks=self.constant(sinks), out=out.address, stride=out.stride, lengths=lengths, window=window,
        )  # fmt: skip
        self._sync(out)

    def project(
        self, x: Slot, projection: Projection, y: Slot | None = None, mode: int = STORE, activation: int = code.NONE,
        rows: tuple[int, int] | None = None, cap: float = 0.0,
    ) -> Slot:  # fmt: skip
        """`multiply` by a projection, or by some of its rows; without y into new shared rows."""
        matrix = projection.matrix()
        rows = rows or (0, matrix.shape[0])
        y = y or self.shared((rows[1] - rows[0]) // (2 if mode == GATED else 1))
        bias = None if projection.bias is None else projection.offset()  # with zeros for slices without one
        self.multiply(x, matrix, bias, y, mode, activation, cap, rows=rows)
        return y

    def norm(self, norm: nn.Module, x: Slot, y: Slot, weight: Tensor | None = None) -> None:
        """y = norm(x), with another `weight` if given; no barrier follows, unless y is `small` in a wide program."""
        kind, own_weight, bias, eps = norm_parts(norm)
        weight = own_weight if weight is None else weight
        self.emit(
            Opcode.NORM, src=x.address, src_stride=x.stride, dst=y.address, dst_stride=y.stride, width=x.width,
            norm=kind, weight=self.constant(weight), bias=self.constant(bias), eps=eps,
        )  # fmt: skip
        self._sync(y)

    def inner(self, x: Slot, projection: Projection, activation: int, reader: Projection) -> Slot:
        """activation(W x + bias) in new shared rows, as the input of the projection `reader`: quantised at once if
        there are many rows and `reader` needs it. No barrier follows.
        """
        packed, wanted = (self.weights.matrix(part.matrix()) for part in (projection, reader))
        if self.wide and FP32 not in (packed.kind, wanted.kind):
            x = self._quantise(x, packed)  # before y has its turn: the product before may still read the other buffer
            y: Slot = self._int8_slot(packed.rows, wanted.kind, self._pair)
        else:
            y = self.shared(packed.rows)
        return self.project(x, projection, y, activation=activation)

    def multiply(
        self, x: Slot, weight: Tensor, bias: Tensor | None, y: Slot, mode: int = STORE, activation: int = code.NONE,
        cap: float = 0.0, scale: float = 1.0, rows: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """y = activation(scale W x + bias), y += W x + bias, or y = activation(gate) * up; no barrier follows.

        `rows` are the first row of W and the one after the last; None for all.
        """
        packed = self.weights.matrix(weight)
        first, last = rows or (0, packed.rows)
        if packed.kind != FP32 and not isinstance(x, Int8Slot):
            x = self._quantise(x, packed)
        x_scales, corrections = (x.scales, x.corrections) if isinstance(x, Int8Slot) else (0, 0)
        y_format, y_scales, y_corrections = (
            (y.format, y.scales, y.corrections) if isinstance(y, Int8Slot) else (0, 0, 0)
        )
        self.emit(
            Opcode.MULTIPLY, format=packed.kind, w=packed.addresses[0], scales=packed.addresses[1],
            bias=self.constant(None if bias is None else bias[first:]), x=x.address, x_scales=x_scales,
            corrections=corrections, stride=x.stride, y=y.address, y_stride=y.stride, start=first,
            rows=(last - first) // 2 if mode == GATED else last - first, total_rows=packed.rows,
            columns=packed.columns, mode=QUANTISED if isinstance(y, Int8Slot) else mode, activation=activation,
            free=False, scratch=self._products, y_format=y_format, y_scales=y_scales, y_corrections=y_corrections,
            cap=cap, scale=scale,
        )  # fmt: skip

    def _pair(self, size: int, part: int) -> int:
        """Two alternating buffers: a barrier separates two quantisations, so no thread still reads the older one."""
        if (size, part) not in self._pairs:
            self._pairs[size, part] = [self._bytes(size), self._bytes(size)]
        return self._pairs[size, part][self._turn % 2]

    def _int8_slot(self, width: int, kind: int, allocate: Callable[[int, int], int]) -> Int8Slot:
        """`allocate` returns the address of that many bytes of codes (0), scales (1) or corrections (2)."""
        groups = -(-width // GROUP)
        group_count = groups * self.rows
        codes, scales, corrections = (allocate(count * group_count, part) for part, count in enumerate((GROUP, 4, 4)))
        self._turn += 1
        return Int8Slot(codes, groups * GROUP, width, kind, scales, corrections)

    def _quantise(self, x: Slot, packed: PackedMatrix) -> Int8Slot:
        allocate = self._pair if self.wide else lambda size, _: self.private_bytes(size)
        y = self._int8_slot(packed.columns, packed.kind, allocate)
        self.emit(
            Opcode.QUANTISE, format=packed.kind, src=x.address, stride=x.stride, columns=packed.columns, q=y.address,
            scales=y.scales, corrections=y.corrections,
        )  # fmt: skip
        if self.wide:
            self.barrier()
        return y
