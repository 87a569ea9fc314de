"""Writes programs: names in, a table of instructions out, and the memory that they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from headway.engine.operations import ADD, GATED, MOST_SPLITS, STORE
from headway.engine.packed import PackedTensor
from headway.engine.packing import Packed, pack
from headway.engine.parts import norm_parts, offset_of
from headway.engine.places import Place
from headway.engine.products import ROOM
from headway.engine.program import FIELDS, FLOATS, NAMES, Kind
from headway.engine.tiles import FP32, GROUP
from headway.parts.projection import Projection

STATES = 1 << 60  # where addresses of states begin, until it is known whose they are
FEW = 16  # rows of which each thread makes for itself what is small


class Weights:
    """The matrices of a model as the engine reads them, each packed once."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[Tensor, Packed]] = {}

    def matrix(self, weight: Tensor) -> Packed:
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

    def __init__(self, weights: Weights, rows: int, numbers: int) -> None:
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
        self._floats: list[list[float]] = []

    def __len__(self) -> int:
        return len(self._whole)

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self._whole, np.int64).reshape(-1, FIELDS), np.array(self._floats, np.float64).reshape(
            -1, FLOATS
        )

    def shared(self, width: int) -> Place:
        """Rows that all threads see, until `again`."""
        return Place(self._room(4 * width * self.rows), 4 * width, width)

    def lasting(self, width: int) -> Place:
        """Rows that all threads see, from one block to the next."""
        return Place(self._bytes(4 * width * self.rows), 4 * width, width)

    def private(self, width: int) -> Place:
        """Rows that each thread has for itself."""
        return Place(self.private_bytes(4 * width * self.rows), 4 * width, width)

    def small(self, width: int, lasting: bool = False) -> Place:
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

    def _meet(self, place: Place) -> None:
        if place.address in self._together:
            self.barrier()

    def private_bytes(self, size: int) -> int:
        """The address of `size` bytes that each thread has for itself."""
        start, self.scratch = self.scratch, self.scratch + -(-size // 64) * 64
        return -1 - start

    def state(self, width: int) -> Place:
        """The next numbers of each row's state, by addresses in STATES."""
        start, self._stated = self._stated, self._stated + width
        assert self._stated <= self.numbers
        return Place(STATES + 4 * start, 4 * self.numbers, width)

    def pieces(self, heads: int, size: int) -> Place:
        """Where attention leaves its pieces."""
        return self.shared(heads * MOST_SPLITS * (size + 2))

    def constant(self, values: Tensor | None) -> int:
        """The address of numbers; 0 for none."""
        if values is None:
            return 0
        held = values.detach().float().contiguous()
        self.kept.append(held)
        return held.data_ptr()

    def emit(self, kind: Kind, **fields: Any) -> None:
        whole, _, floats = NAMES[kind].partition("; ")
        row = [int(kind), *(int(fields.pop(name)) for name in whole.replace(";", "").split())]
        numbers = [float(fields.pop(name)) for name in floats.split()]
        assert not fields, f"{kind.name} has no {list(fields)}"
        self._whole.append(row + [0] * (FIELDS - len(row)))
        self._floats.append(numbers + [0.0] * (FLOATS - len(numbers)))

    @contextmanager
    def unless_idle(self, weights: Place, expert: int) -> Iterator[None]:
        """What is emitted within is left out where no row goes to the expert."""
        start = len(self._whole)
        self.emit(Kind.SKIP, weights=weights.address, count=weights.width, expert=expert, instructions=0)
        yield
        self._whole[start][4] = len(self._whole) - start - 1

    def barrier(self) -> None:
        self.emit(Kind.BARRIER)

    def sum(self, x: Place, y: Place, residual: bool = True, gain: Tensor | None = None) -> None:
        """y = y (if residual) + gain x; no barrier follows."""
        self.emit(
            Kind.SUM, src=x.address, src_stride=x.stride, dst=y.address, dst_stride=y.stride, width=x.width,
            residual=residual, gain=self.constant(gain),
        )  # fmt: skip

    def merge(self, pieces: Place, heads: int, groups: int, out: Place, sinks: Tensor | None = None) -> None:
        """Join the pieces of attention into `out`, which is every thread's own."""
        self.emit(
            Kind.MERGE, pieces=pieces.address, heads=heads, size=out.width // heads, groups=groups,
            sinks=self.constant(sinks), out=out.address, stride=out.stride,
        )  # fmt: skip
        self._meet(out)

    def project(
        self,
        x: Place,
        projection: Projection,
        y: Place | None = None,
        mode: int = STORE,
        rows: tuple[int, int] | None = None,
    ) -> Place:
        """`multiply` by a projection, or by some rows of it; without y into new rows that all threads see."""
        matrix = projection.matrix()
        rows = rows or (0, matrix.shape[0])
        y = y or self.shared(rows[1] - rows[0])
        self.multiply(x, matrix, offset_of(projection), y, mode, rows=rows)
        return y

    def norm(self, norm: nn.Module, x: Place, y: Place) -> None:
        """y = norm(x); no barrier follows, unless y is `small` in a wide program."""
        kind, weight, bias, eps = norm_parts(norm)
        self.emit(
            Kind.NORM,
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

    def multiply(
        self,
        x: Place,
        weight: Tensor,
        bias: Tensor | None,
        y: Place,
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
        quantised = (0, 0, 0)
        if packed.kind != FP32:
            x, quantised = self._quantise(x, packed)
        self.emit(
            Kind.MULTIPLY,
            format=packed.kind,
            w=packed.addresses[0],
            scales=packed.addresses[1],
            bias=self.constant(None if bias is None else bias[first:]),
            x=x.address,
            x_scales=quantised[1],
            corrections=quantised[2],
            stride=x.stride,
            y=y.address,
            y_stride=y.stride,
            start=first,
            rows=(last - first) // 2 if mode == GATED else last - first,
            whole=packed.rows,
            columns=packed.columns,
            mode=mode,
            activation=activation,
            room=self._products,
            cap=cap,
            scale=scale,
        )

    def add(self, x: Place, weight: Tensor, bias: Tensor | None, y: Place) -> None:
        self.multiply(x, weight, bias, y, ADD)

    def _pair(self, size: int, part: int) -> int:
        """Two rooms in turn: all threads have met between one rounding and the next, so none reads the one before."""
        if (size, part) not in self._pairs:
            self._pairs[size, part] = [self._bytes(size), self._bytes(size)]
        return self._pairs[size, part][self._turn % 2]

    def _quantise(self, x: Place, packed: Packed) -> tuple[Place, tuple[int, int, int]]:
        groups = -(-packed.columns // GROUP)
        sizes = (groups * GROUP * self.rows, 4 * groups * self.rows, 4 * groups * self.rows)
        if self.wide:
            places = (self._pair(sizes[0], 0), self._pair(sizes[1], 1), self._pair(sizes[2], 2))
        else:
            places = (self.private_bytes(sizes[0]), self.private_bytes(sizes[1]), self.private_bytes(sizes[2]))
        self._turn += 1
        self.emit(
            Kind.QUANTISE,
            format=packed.kind,
            src=x.address,
            stride=x.stride,
            columns=packed.columns,
            q=places[0],
            scales=places[1],
            corrections=places[2],
        )
        if self.wide:
            self.barrier()
        return Place(places[0], groups * GROUP, packed.columns), places
