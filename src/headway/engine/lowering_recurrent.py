"""Recurrent networks as instructions.

Their states lie where all threads see them, so a barrier stands between the last product that reads a state and the
cell that writes it. Products of as many rows as one before them fall to the same threads, row by row, and need no
barrier between them. Steps are never at position 0, as torch reads the prompts, so that no state starts anew here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from headway.engine import cells as code
from headway.engine.builder import Builder, Slot
from headway.engine.cache import Memory
from headway.engine.operations import ADD, BLOCK
from headway.engine.packed import unpack
from headway.engine.program import Opcode
from headway.nn.mixers.conditional_gru import ConditionalGRU
from headway.nn.mixers.gated import GRU, LSTM, Elman
from headway.nn.mixers.multiplicative import MLSTM, Multiplicative, SigmaPi
from headway.nn.mixers.pointwise import Pointwise

Lowered = Callable[[Builder, Any, Slot], Slot]  # a mixer and its input to its output before the projection


def _elman(build: Builder, mixer: Elman, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    gates = build.project(x, mixer.input)
    build.project(h, mixer.hidden, gates, ADD)
    build.barrier()
    return _squash(build, gates, h, mixer.config.activation == "logistic")


def _sigma_pi(build: Builder, mixer: SigmaPi, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    products = _combine(build, code.OUTER, h, x, build.private(h.width * x.width))
    gates = build.project(products, mixer.weigh)
    build.barrier()
    return _squash(build, gates, h, mixer.activation is torch.sigmoid)


def _lstm(build: Builder, mixer: LSTM, x: Slot) -> Slot:
    h, c = build.state(mixer.cells), build.state(mixer.cells)
    gates = build.project(x, mixer.input)
    build.project(h, mixer.hidden, gates, ADD)
    build.barrier()
    peepholes, scale = build.constant(mixer.peepholes), 0.5 if mixer.stretched else 1.0
    return _cell(
        build, code.LSTM, gates, h, c=c.address, peepholes=peepholes, forgets=mixer.config.forget_gate, scale=scale
    )


def _multiplicative(build: Builder, mixer: Multiplicative, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    return _squash(build, _factored(build, mixer, x, h), h, mixer.activation is torch.sigmoid)


def _mlstm(build: Builder, mixer: MLSTM, x: Slot) -> Slot:
    h, c = build.state(mixer.cells), build.state(mixer.cells)
    return _cell(build, code.LSTM, _factored(build, mixer, x, h), h, c=c.address, forgets=True, scale=1.0)


def _factored(build: Builder, mixer: Multiplicative | MLSTM, x: Slot, h: Slot) -> Slot:
    """The gates of a cell whose transition goes through factors that the input weighs."""
    inputs = build.project(x, mixer.input)
    seen = build.project(h, mixer.factor)
    build.barrier()
    gates = inputs.columns(mixer.factors, inputs.width - mixer.factors)
    weighed = _combine(build, code.PRODUCT, seen, inputs, build.private(mixer.factors))
    build.project(weighed, mixer.hidden, gates, ADD)
    build.barrier()
    return gates


def _gru(build: Builder, mixer: GRU, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    gates = build.project(x, mixer.input)
    if mixer.config.reset_after:
        return _reset_after(build, gates, build.project(h, mixer.hidden), h)
    return _reset_before(build, mixer, gates, h)


def _reset_after(build: Builder, gates: Slot, also: Slot, h: Slot) -> Slot:
    build.barrier()
    return _cell(build, code.GRU_AFTER, gates, h, also)


def _reset_before(build: Builder, mixer: GRU | ConditionalGRU, gates: Slot, h: Slot) -> Slot:
    cells = mixer.cells
    also = build.project(h, mixer.hidden, rows=(0, 2 * cells))
    build.barrier()
    reset = _combine(build, code.RESET, gates, h, build.private(cells), also)
    build.project(reset, mixer.hidden, gates.columns(2 * cells, cells), ADD, rows=(2 * cells, 3 * cells))
    build.barrier()
    return _cell(build, code.GRU, gates, h, also)


def lower_conditional(build: Builder, mixer: ConditionalGRU, x: Slot, memory: Memory, layer: int) -> Slot:
    """`layer` is the byte of a block of the memory where this mixer's keys begin, or the first of its fixed numbers."""
    h, after = build.state(mixer.cells), mixer.config.reset_after
    width = mixer.context.weight.shape[1]
    gates = build.project(x, mixer.input)
    also = build.project(h, mixer.hidden) if after else None
    entered = gates if also is None else also
    shown = build.private(mixer.shown)  # the state, without a projection the input, and what was read
    context = shown.columns(mixer.shown - width, width)
    if mixer.config.context == "additive":
        _read(build, mixer, h, context, memory, layer)
        build.project(context, mixer.context, entered, ADD)
    else:
        fixed = Slot(memory.fixed.ctypes.data, memory.fixed.strides[0], memory.fixed.shape[1])
        _combine(build, code.COPY, fixed.columns(layer, width), None, context)
        build.sum(fixed.columns(layer + width, entered.width), entered)
    if mixer.config.shows == "before":
        _combine(build, code.COPY, h, None, shown.columns(0, h.width))
    new = _reset_before(build, mixer, gates, h) if also is None else _reset_after(build, gates, also, h)
    if mixer.config.shows == "after":
        _combine(build, code.COPY, new, None, shown.columns(0, h.width))
    if not mixer.config.out:
        _combine(build, code.COPY, x, None, shown.columns(h.width, x.width))
    return shown


def _read(build: Builder, mixer: ConditionalGRU, h: Slot, context: Slot, memory: Memory, layer: int) -> None:
    query = build.project(h, mixer.query)
    build.barrier()
    pieces = build.pieces(1, context.width)
    build.emit(
        Opcode.ADD_ATTEND, query=query.address, stride=query.stride, units=query.width, width=context.width,
        score=build.constant(unpack(build.weights.matrix(mixer.score.matrix()))), tables=memory.tables.ctypes.data,
        table_step=memory.tables.shape[1], lengths=memory.lengths.ctypes.data, layer=layer, pieces=pieces.address,
        scores=build.private_bytes(4 * BLOCK + 4),
    )  # fmt: skip
    build.barrier()
    build.merge(pieces, 1, 1, context)


def _combine(build: Builder, what: int, a: Slot, b: Slot | None, out: Slot, also: Slot | None = None) -> Slot:
    b, also = b or a, also or a
    build.emit(
        Opcode.COMBINE, what=what, a=a.address, a_stride=a.stride, also=also.address, also_stride=also.stride,
        b=b.address, b_stride=b.stride, out=out.address, out_stride=out.stride,
        width=a.width if what == code.OUTER else min(a.width, b.width), other=b.width,
    )  # fmt: skip
    return out


def _squash(build: Builder, gates: Slot, h: Slot, logistic: bool) -> Slot:
    return _cell(build, code.ELMAN_LOGISTIC if logistic else code.ELMAN_TANH, gates, h)


def _cell(
    build: Builder,
    kind: int,
    gates: Slot,
    h: Slot,
    also: Slot | None = None,
    *,
    c: int = 0,
    peepholes: int = 0,
    forgets: bool = False,
    scale: float = 0.0,
) -> Slot:
    also = also or gates
    build.emit(
        Opcode.CELL, cell=kind, gates=gates.address, gates_stride=gates.stride, also=also.address,
        also_stride=also.stride, h=h.address, stride=h.stride, width=h.width, c=c, peepholes=peepholes,
        forgets=forgets, scale=scale,
    )  # fmt: skip
    build.barrier()
    return h


def _pointwise(build: Builder, mixer: Pointwise, x: Slot) -> Slot:
    y = build.project(x, mixer.each)
    build.barrier()
    return y


RECURRENT: dict[type, Lowered] = {
    Pointwise: _pointwise,
    Elman: _elman,
    LSTM: _lstm,
    GRU: _gru,
    SigmaPi: _sigma_pi,
    Multiplicative: _multiplicative,
    MLSTM: _mlstm,
}
