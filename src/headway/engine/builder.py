"""Writes programs: names in, a table of instructions out, and the memory that they need."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headway.engine import operations as code
from headway.engine.operations import ADD, GATED, ROUNDED, STORE
from headway.engine.packed import PackedMatrix, PackedTensor, pack
from headway.engine.products import ROOM
from headway.engine.program import FIELDS, FLOATS, NAMES, Opcode
from headway.engine.tiles import FP32, GROUP
from headway.nn.parts.norm import LayerNorm, RMSNorm
from headway.nn.parts.projection import Projection


class CannotLowerError(Exception):
    """What the engine has no instruction for."""


def norm_parts(norm: nn.Module) -> tuple[int, Tensor | None, Tensor | None, float]:
    """Its kind, weight, bias and epsilon."""
    if isinstance(norm, LayerNorm):
        return code.LAYER, norm.weight, norm.bias, norm.eps
    if isinstance(norm, RMSNorm):
        weight = None if norm.weight is None else norm.weight + norm.offset
        return code.RMS, weight, None, norm.eps
    raise CannotLowerError(f"the norm {type(norm).__name__}")


def offset_of(projection: Projection) -> Tensor | None:
    """Its bias, with zeros where slices have none; None where no slice has one."""
    return None if projection.bias is None else projection.offset()


@dataclass(frozen=True)
class Slot:
    """Rows of floats: an address (negative: in scratch) and the bytes from one row to the next."""

    address: int
    stride: int
    width: int

    def rows(self, count: int) -> Tensor:
        """The first rows, where all threads see them and nothing lies between them."""
        assert self.address > 0
        assert self.stride == 4 * self.width
        memory = (ctypes.c_float * (count * self.width)).from_address(self.address)
        return torch.from_numpy(np.ctypeslib.as_array(memory)).view(count, self.width)

    def columns(self, start: int, width: int) -> Slot:
        at = self.address + 4 * start if self.address >= 0 else self.address - 4 * start
        return Slot(at, self.stride, width)


@dataclass(frozen=True)
class RoundedSlot(Slot):
    """Rows of numbers in int8, in whole groups, with the addresses of their scales and corrections, a group each."""

    format: int  # of the weights that they are for
    scales: int
    corrections: int


def _field(kind: Opcode, name: str) -> int:
    """Where an instruction has it."""
    return 1 + NAMES[kind].split().index(name)


# Where instructions whose results may lie in scratch say so, and products that threads share as they come.
_WRITTEN = {
    int(kind): _field(kind, name)
    for kind, name in ((Opcode.NORM, "dst"), (Opcode.QUANTISE, "q"), (Opcode.MERGE, "out"))
}
_FREE = _field(Opcode.MULTIPLY, "free")
STATES = 1 << 60  # where addresses of states begin, until it is known whose they are
FEW = 16  # rows of which each thread makes for itself what is small


class PackedWeights:
    """The matrices of a model as the engine reads them, each packed once."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Tensor, PackedMatrix]] = {}

    def matrix(self, weight: Tensor) -> PackedMatrix:
        if isinstance(weight, PackedTensor):
            return weight.packed
        key = weight.data_ptr()
        if key not in self._packed:
            self._packed[key] = (weight, pack(weight, "fp32"))
        return self._packed[key][1]


class Builder:
    """A program for at most `rows` rows, which have states of `numbers` floats.

    Of few rows each thread makes for itself what is small (norms, rounded numbers), which spares barriers; in a `wide`
    program, of many rows, the threads share this work, and the memory of one block serves the next.
    """

    def __init__(self, weights: PackedWeights, rows: int, numbers: int) -> None:
        self.weights, self.rows, self.numbers = weights, rows, numbers
        self.wide = rows > FEW
        self.kept: list[Any] = []  # what addresses in the table point to
        self._rooms: dict[int, list[int]] = {}  # by size, addresses that blocks use in turn
        self._used: dict[int, int] = {}
        self._together: set[int] = set()  # places that threads fill together before any reads them
        self._pairs: dict[tuple[int, int], list[int]] = {}
        self._turn = 0
        self.scratch = 64  # bytes for each thread
        self._products = self.private_bytes(ROOM)
        self._stated = 0  # floats of a state that are in use
        self._whole: list[list[int]] = []
        self._met = 0  # instructions up to the last barrier
        self._floats: list[list[float]] = []

    def __len__(self) -> int:
        return len(self._whole)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        self._free()  # at the end of a program all meet
        return np.array(self._whole, np.int64).reshape(-1, FIELDS), np.array(self._floats, np.float64).reshape(
            -1, FLOATS
        )

    def shared(self, width: int) -> Slot:
        """Rows that all threads see, until `again`."""
        return Slot(self._room(4 * width * self.rows), 4 * width, width)

    def lasting(self, width: int) -> Slot:
        """Rows that all threads see, from one block to the next."""
        return Slot(self._bytes(4 * width * self.rows), 4 * width, width)

    def private(self, width: int) -> Slot:
        """Rows that each thread has for itself."""
        return Slot(self.private_bytes(4 * width * self.rows), 4 * width, width)

    def small(self, width: int, lasting: bool = False) -> Slot:
        """Rows for a norm or a merge to write: private, or in a wide program shared, with a barrier after that."""
        if not self.wide:
            return self.private(width)
        place = self.lasting(width) if lasting else self.shared(width)
        self._together.add(place.address)
        return place

    def again(self) -> None:
        """What `shared` gave before is free, all threads having met since they read it."""
        self._used.clear()

    def _room(self, size: int) -> int:
        rooms, number = self._rooms.setdefault(size, []), self._used.get(size, 0)
        if number == len(rooms):
            rooms.append(self._bytes(size))
        self._used[size] = number + 1
        return rooms[number]

    def _bytes(self, size: int) -> int:
        room = np.zeros(size + 64, np.uint8)
        self.kept.append(room)
        return -(-room.ctypes.data // 64) * 64

    def _meet(self, place: Slot) -> None:
        if place.address in self._together:
            self.barrier()

    def private_bytes(self, size: int) -> int:
        """The address of `size` bytes that each thread has for itself."""
        start, self.scratch = self.scratch, self.scratch + -(-size // 64) * 64
        return -1 - start

    def state(self, width: int) -> Slot:
        """The next numbers of each row's state, by addresses in STATES."""
        start, self._stated = self._stated, self._stated + width
        assert self._stated <= self.numbers
        return Slot(STATES + 4 * start, 4 * self.numbers, width)

    def constant(self, values: Tensor | None) -> int:
        """The address of numbers; 0 for none."""
        if values is None:
            return 0
        held = values.detach().float().contiguous()
        self.kept.append(held)
        return held.data_ptr()

    def emit(self, kind: Opcode, **fields: Any) -> None:
        whole, _, floats = NAMES[kind].partition("; ")
        row = [int(kind), *(int(fields.pop(name)) for name in whole.replace(";", "").split())]
        numbers = [float(fields.pop(name)) for name in floats.split()]
        assert not fields, f"{kind.name} has no {list(fields)}"
        self._whole.append(row + [0] * (FIELDS - len(row)))
        self._floats.append(numbers + [0.0] * (FLOATS - len(numbers)))

    @contextmanager
    def unless_idle(self, weights: Slot, expert: int) -> Iterator[None]:
        """What is emitted within is left out where no row goes to the expert."""
        start = len(self._whole)
        self.emit(Opcode.SKIP, weights=weights.address, count=weights.width, expert=expert, instructions=0)
        yield
        self._whole[start][4] = len(self._whole) - start - 1

    def barrier(self) -> None:
        self._free()
        self.emit(Opcode.BARRIER)
        self._met = len(self._whole)

    def _free(self) -> None:
        """Whoever is done may take parts of a product if threads have nothing else in common since they met."""
        since = self._whole[self._met :]
        common = [row for row in since if row[0] not in _WRITTEN or row[_WRITTEN[row[0]]] >= 0]
        if len(common) == 1 and common[0][0] == Opcode.MULTIPLY:
            common[0][_FREE] = 1

    def sum(self, x: Slot, y: Slot, residual: bool = True, gain: Tensor | None = None) -> None:
        """y = y (if residual) + gain x; no barrier follows."""
        self.emit(
            Opcode.SUM, src=x.address, src_stride=x.stride, dst=y.address, dst_stride=y.stride, width=x.width,
            residual=residual, gain=self.constant(gain),
        )  # fmt: skip

    def merge(
        self, pieces: Slot, heads: int, room: int, out: Slot, lengths: int = 0, window: int = 0,
        sinks: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Join the pieces of attention into `out`, which is every thread's own. There is room for so many of each head;
        0: they are joined already. `lengths` is the address of those of what was read; 0: the row's own past.
        """
        self.emit(
            Opcode.MERGE, pieces=pieces.address, heads=heads, size=out.width // heads, room=room,
            sinks=self.constant(sinks), out=out.address, stride=out.stride, lengths=lengths, window=window,
        )  # fmt: skip
        self._meet(out)

    def project(
        self,
        x: Slot,
        projection: Projection,
        y: Slot | None = None,
        mode: int = STORE,
        rows: tuple[int, int] | None = None,
    ) -> Slot:
        """`multiply` by a projection, or by some rows of it; without y into new rows that all threads see."""
        matrix = projection.matrix()
        rows = rows or (0, matrix.shape[0])
        y = y or self.shared(rows[1] - rows[0])
        self.multiply(x, matrix, offset_of(projection), y, mode, rows=rows)
        return y

    def norm(self, norm: nn.Module, x: Slot, y: Slot) -> None:
        """y = norm(x); no barrier follows, unless y is `small` in a wide program."""
        kind, weight, bias, eps = norm_parts(norm)
        self.emit(
            Opcode.NORM,
            src=x.address,
            src_stride=x.stride,
            dst=y.address,
            dst_stride=y.stride,
            width=x.width,
            norm=kind,
            weight=self.constant(weight),
            bias=self.constant(bias),
            eps=eps,
        )
        self._meet(y)

    def inner(self, x: Slot, weight: Tensor, bias: Tensor | None, activation: int, reader: Tensor) -> Slot:
        """activation(W x + bias) in new rows that all threads see, for the matrix `reader` to be multiplied with: of
        many rows rounded at once, where that asks for it. No barrier follows.
        """
        packed, wanted = self.weights.matrix(weight), self.weights.matrix(reader)
        if self.wide and FP32 not in (packed.kind, wanted.kind):
            y: Slot = self._rounded(packed.rows, wanted.kind, self._pair)
        else:
            y = self.shared(packed.rows)
        self.multiply(x, weight, bias, y, activation=activation)
        return y

    def multiply(
        self,
        x: Slot,
        weight: Tensor,
        bias: Tensor | None,
        y: Slot,
        mode: int = STORE,
        activation: int = 0,
        cap: float = 0.0,
        scale: float = 1.0,
        rows: tuple[int, int] | None = None,
    ) -> None:
        """y = activation(scale W x + bias), y += W x + bias, or y = activation(gate) * up; no barrier follows.

        `rows` are the first row of W and the one after the last, None for all.
        """
        packed = self.weights.matrix(weight)
        first, last = rows or (0, packed.rows)
        if packed.kind != FP32 and not isinstance(x, RoundedSlot):
            x = self._quantise(x, packed)
        numbers = (x.scales, x.corrections) if isinstance(x, RoundedSlot) else (0, 0)
        made = (y.format, y.scales, y.corrections) if isinstance(y, RoundedSlot) else (0, 0, 0)
        self.emit(
            Opcode.MULTIPLY,
            format=packed.kind,
            w=packed.addresses[0],
            scales=packed.addresses[1],
            bias=self.constant(None if bias is None else bias[first:]),
            x=x.address,
            x_scales=numbers[0],
            corrections=numbers[1],
            stride=x.stride,
            y=y.address,
            y_stride=y.stride,
            start=first,
            rows=(last - first) // 2 if mode == GATED else last - first,
            whole=packed.rows,
            columns=packed.columns,
            mode=ROUNDED if isinstance(y, RoundedSlot) else mode,
            activation=activation,
            free=False,
            room=self._products,
            y_format=made[0],
            y_scales=made[1],
            y_corrections=made[2],
            cap=cap,
            scale=scale,
        )

    def add(self, x: Slot, weight: Tensor, bias: Tensor | None, y: Slot) -> None:
        self.multiply(x, weight, bias, y, ADD)

    def _pair(self, size: int, part: int) -> int:
        """Two rooms in turn: all threads have met between one rounding and the next, so none reads the one before."""
        if (size, part) not in self._pairs:
            self._pairs[size, part] = [self._bytes(size), self._bytes(size)]
        return self._pairs[size, part][self._turn % 2]

    def _rounded(self, width: int, form: int, room: Callable[[int, int], int]) -> RoundedSlot:
        """`room` says where so many bytes of codes (0), scales (1) or corrections (2) may lie."""
        groups = -(-width // GROUP)
        each = groups * self.rows
        codes, scales, corrections = (room(count * each, part) for part, count in enumerate((GROUP, 4, 4)))
        self._turn += 1
        return RoundedSlot(codes, groups * GROUP, width, form, scales, corrections)

    def _quantise(self, x: Slot, packed: PackedMatrix) -> RoundedSlot:
        room = self._pair if self.wide else lambda size, _: self.private_bytes(size)
        y = self._rounded(packed.columns, packed.kind, room)
        self.emit(
            Opcode.QUANTISE, format=packed.kind, src=x.address, stride=x.stride, columns=packed.columns, q=y.address,
            scales=y.scales, corrections=y.corrections,
        )  # fmt: skip
        if self.wide:
            self.barrier()
        return y
