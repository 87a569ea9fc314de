"""Writes programs: names in, a table of instructions out, and the memory that they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from headway.engine.dots import FP32, GROUP
from headway.engine.operations import ADD, GATED, STORE
from headway.engine.packed import PackedTensor
from headway.engine.packing import Format, Packed, pack
from headway.engine.program import FIELDS, FLOATS, NAMES, Kind


@dataclass(frozen=True)
class Place:
    """Rows of floats: an address (negative: in scratch) and the bytes from one row to the next."""

    address: int
    stride: int
    width: int

    def columns(self, start: int, width: int) -> Place:
        at = self.address + 4 * start if self.address >= 0 else self.address - 4 * start
        return Place(at, self.stride, width)


class Weights:
    """The matrices of a model as the engine reads them, each packed once."""

    def __init__(self, form: Format) -> None:
        self.form: Format = form
        self._packed: dict[int, tuple[Tensor, Packed]] = {}

    def matrix(self, weight: Tensor) -> Packed:
        if isinstance(weight, PackedTensor):
            return weight.packed
        key = weight.data_ptr()
        if key not in self._packed:
            self._packed[key] = (weight, pack(weight, self.form))
        return self._packed[key][1]

    @property
    def bytes(self) -> int:
        return sum(packed.bytes for _, packed in self._packed.values())


class Builder:
    """A program for at most `rows` rows."""

    def __init__(self, weights: Weights, rows: int) -> None:
        self.weights, self.rows = weights, rows
        self.kept: list[Any] = []  # what addresses in the table point to
        self.scratch = 64  # bytes for each thread
        self._whole: list[list[int]] = []
        self._floats: list[list[float]] = []

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self._whole, np.int64).reshape(-1, FIELDS), np.array(self._floats, np.float64).reshape(
            -1, FLOATS
        )

    def shared(self, width: int) -> Place:
        """Rows that all threads see."""
        room = np.zeros((self.rows, width), np.float32)
        self.kept.append(room)
        return Place(room.ctypes.data, 4 * width, width)

    def private(self, width: int) -> Place:
        """Rows that each thread has for itself."""
        return Place(self._reserve(4 * width * self.rows), 4 * width, width)

    def private_bytes(self, size: int) -> int:
        """The address of `size` bytes that each thread has for itself."""
        return self._reserve(size)

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

    def barrier(self) -> None:
        self.emit(Kind.BARRIER)

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
    ) -> None:
        """y = activation(scale W x + bias), y += W x + bias, or y = activation(gate) * up; no barrier follows."""
        packed = self.weights.matrix(weight)
        quantised = (0, 0, 0)
        stride = x.stride
        if packed.kind != FP32:
            x, quantised = self._quantise(x, packed)
            stride = x.stride
        scales = 0 if packed.scales is None else packed.scales.data_ptr()
        self.emit(
            Kind.MULTIPLY,
            format=packed.kind,
            w=packed.weights.data_ptr(),
            scales=scales,
            bias=self.constant(bias),
            x=x.address,
            x_scales=quantised[1],
            corrections=quantised[2],
            stride=stride,
            y=y.address,
            y_stride=y.stride,
            rows=packed.rows // 2 if mode == GATED else packed.rows,
            columns=packed.columns,
            mode=mode,
            activation=activation,
            cap=cap,
            scale=scale,
        )

    def add(self, x: Place, weight: Tensor, bias: Tensor | None, y: Place) -> None:
        self.multiply(x, weight, bias, y, ADD)

    def _quantise(self, x: Place, packed: Packed) -> tuple[Place, tuple[int, int, int]]:
        groups = -(-packed.columns // GROUP)
        places = (
            self._reserve(groups * GROUP * self.rows),
            self._reserve(4 * groups * self.rows),
            self._reserve(4 * groups * self.rows),
        )
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
        return Place(places[0], groups * GROUP, packed.columns), places

    def _reserve(self, size: int) -> int:
        start, self.scratch = self.scratch, self.scratch + -(-size // 64) * 64
        return -1 - start
