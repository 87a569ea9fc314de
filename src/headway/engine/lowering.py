"""Lowering to instructions of recurrent mixers, linear attention and feed-forwards, and of blocks around any mixer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.engine import cells, operations
from headway.engine.builder import Builder, CannotLowerError, Slot, norm_parts
from headway.engine.cache import BlockTables
from headway.engine.instructions import Opcode
from headway.engine.operations import ADD, BLOCK, CHUNK, FAR, GATED, NEAR
from headway.engine.packed_weights import unpack
from headway.layout import Layout
from headway.nn.mixers.associative import Associative, LogDecay, Strength
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.conditional_gru import ConditionalGRU
from headway.nn.mixers.delta import Delta, GatedDelta
from headway.nn.mixers.dynamic_links import DynamicLinks
from headway.nn.mixers.fast_weights import FastWeightController
from headway.nn.mixers.gated import GRU, LSTM, Elman
from headway.nn.mixers.linear_attention import LinearAttention
from headway.nn.mixers.multiplicative import MLSTM, Multiplicative, SigmaPi
from headway.nn.mixers.pointwise import Pointwise
from headway.nn.mixers.qk_norms import EachQKNorm, WideQKNorm
from headway.nn.models.block import Block, Branch, LayerScale, ParallelBlock
from headway.nn.models.stack import Stack
from headway.nn.parts.experts import Experts
from headway.nn.parts.feedforward import ACTIVATIONS, MLP, Gated
from headway.nn.parts.positions import Rotary
from headway.nn.parts.projection import Projection


def segments_within(positions: int) -> int:
    """The maximum number of segments that this many consecutive positions may touch."""
    if positions <= NEAR:
        return (positions - 2) // CHUNK + 2
    return NEAR // CHUNK + (positions - NEAR + CHUNK - 2) // FAR + 1


_CODES = {
    "relu": operations.RELU,
    "gelu": operations.GELU,
    "gelu_tanh": operations.GELU_TANH,
    "quick_gelu": operations.QUICK_GELU,
    "relu_squared": operations.RELU_SQUARED,
    "silu": operations.SILU,
    "tanh": operations.TANH,
}


def activation_code(function: Any) -> int:
    """The engine's code for a function of ACTIVATIONS."""
    for name, known in ACTIVATIONS.items():
        if known.args == getattr(function, "args", None):  # copied models have copies of these
            return _CODES[name]
    raise CannotLowerError(f"the activation {function}")


def feed_forward(build: Builder, feed: nn.Module | None, x: Slot) -> tuple[Slot, nn.Module]:
    """The inner units of each row, and the projection still to apply; an identity after experts."""
    if isinstance(feed, Experts):
        return _experts(build, feed, x), nn.Identity()
    if isinstance(feed, MLP):
        hidden = build.inner(x, feed.up, activation_code(feed.activation), feed.down)
    elif isinstance(feed, Gated):
        activation = activation_code(feed.activation)
        if feed.limit is not None and activation != operations.QUICK_GELU:
            raise CannotLowerError("a clamped gate with another activation than quick_gelu")
        activation = activation if feed.limit is None else operations.CLAMPED
        hidden = build.project(x, feed.gate_up, mode=GATED, activation=activation, cap=feed.limit or 0.0)
    else:
        raise CannotLowerError(f"the feed-forward {type(feed).__name__}")
    build.barrier()
    return hidden, feed.down


def _experts(build: Builder, feed: Experts, x: Slot) -> Slot:
    config, count = feed.config, feed.config.count
    experts = list(feed.experts) if feed.shared is None else [*feed.experts, feed.shared]
    logits, total, output = (build.shared(width) for width in (count + 1, x.width, x.width))
    weights, shared = build.private(len(experts)), 0 if feed.shared is None else operations.ALWAYS
    build.project(x, feed.router, logits.columns(0, count))
    if feed.shared_gate is not None:
        shared = operations.GATED_SHARED
        build.project(x, feed.shared_gate, logits.columns(count, 1))
    build.barrier()
    build.emit(
        Opcode.ROUTE, logits=logits.address, stride=logits.stride, count=count, active=config.active,
        normalise=config.normalise, correction=build.constant(feed.correction), shared=shared,
        weights=weights.address, weights_stride=weights.stride, sum=total.address, sum_stride=total.stride,
        width=x.width, scale=config.scale,
    )  # fmt: skip
    inputs = build.shared(x.width) if build.wide else build.private(x.width)
    rows = build.private_bytes(8 * build.rows)
    for number, expert in enumerate(experts):
        with build.gathered(x, inputs, rows, weights, number):
            hidden, out = feed_forward(build, expert, inputs)
            assert isinstance(out, Projection)
            build.project(hidden, out, output)
            build.emit(
                Opcode.WEIGH, weights=weights.address, count=weights.width, expert=number, src=output.address,
                src_stride=output.stride, sum=total.address, sum_stride=total.stride, width=x.width, rows=rows,
            )  # fmt: skip
    build.barrier()
    return total


# Recurrent networks. Their states are shared by all threads, so a barrier separates the last product that reads a
# state from the cell that writes it. Products with equally many rows go to the same threads, row by row, and need no
# barrier between them. Steps are never at position 0, because torch processes the prompts, so no state is reset here.
_ELMAN = (cells.ELMAN_TANH, cells.ELMAN_LOGISTIC)
MixerLowering = Callable[[Builder, Any, Slot], Slot]  # maps a mixer and its input to its output before the projection


def _elman(build: Builder, mixer: Elman, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    gates = build.project(x, mixer.input)
    build.project(h, mixer.hidden, gates, ADD)
    build.barrier()
    return _cell(build, _ELMAN[mixer.config.activation == "logistic"], gates, h)


def _sigma_pi(build: Builder, mixer: SigmaPi, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    products = _combine(build, cells.OUTER, h, x, build.private(h.width * x.width))
    gates = build.project(products, mixer.weigh)
    build.barrier()
    return _cell(build, _ELMAN[mixer.activation is torch.sigmoid], gates, h)


def _lstm(build: Builder, mixer: LSTM, x: Slot) -> Slot:
    h, c = build.state(mixer.cells), build.state(mixer.cells)
    gates = build.project(x, mixer.input)
    build.project(h, mixer.hidden, gates, ADD)
    build.barrier()
    peepholes, scale = build.constant(mixer.peepholes), 0.5 if mixer.stretched else 1.0
    return _cell(
        build, cells.LSTM, gates, h, c=c.address, peepholes=peepholes, forgets=mixer.config.forget_gate, scale=scale
    )


def _multiplicative(build: Builder, mixer: Multiplicative | MLSTM, x: Slot) -> Slot:
    """A cell whose transition goes through factors weighted by the input."""
    h = build.state(mixer.cells)
    c = build.state(mixer.cells) if isinstance(mixer, MLSTM) else None
    inputs = build.project(x, mixer.input)
    recurrent = build.project(h, mixer.factor)
    build.barrier()
    gates = inputs.columns(mixer.factors, inputs.width - mixer.factors)
    weighted = _combine(build, cells.PRODUCT, recurrent, inputs, build.private(mixer.factors))
    build.project(weighted, mixer.hidden, gates, ADD)
    build.barrier()
    if isinstance(mixer, MLSTM):
        assert c is not None
        return _cell(build, cells.LSTM, gates, h, c=c.address, forgets=True, scale=1.0)
    return _cell(build, _ELMAN[mixer.activation is torch.sigmoid], gates, h)


def _gru(build: Builder, mixer: GRU, x: Slot) -> Slot:
    h = build.state(mixer.cells)
    gates = build.project(x, mixer.input)
    also = build.project(h, mixer.hidden) if mixer.config.reset_after else None
    return _reset(build, mixer, gates, also, h)


def _reset(build: Builder, mixer: GRU | ConditionalGRU, gates: Slot, also: Slot | None, h: Slot) -> Slot:
    """The new state. The reset gate acts after the state's product, which is `also`, or before it (None)."""
    if also is not None:
        build.barrier()
        return _cell(build, cells.GRU_AFTER, gates, h, also)
    count = mixer.cells
    also = build.project(h, mixer.hidden, rows=(0, 2 * count))
    build.barrier()
    reset = _combine(build, cells.RESET, gates, h, build.private(count), also)
    build.project(reset, mixer.hidden, gates.columns(2 * count, count), ADD, rows=(2 * count, 3 * count))
    build.barrier()
    return _cell(build, cells.GRU, gates, h, also)


def lower_conditional(build: Builder, mixer: ConditionalGRU, x: Slot, memory: BlockTables, layer: int) -> Slot:
    """`layer` is the byte of a block of the encoder's output where this mixer's keys start, or the index of its first
    fixed float.
    """
    h, after = build.state(mixer.cells), mixer.config.reset_after
    width = mixer.context.weight.shape[1]
    gates = build.project(x, mixer.input)
    also = build.project(h, mixer.hidden) if after else None
    target = gates if also is None else also
    output = build.private(mixer.output_width)  # the state, the input (without a projection), and the context
    context = output.columns(mixer.output_width - width, width)
    if mixer.config.context == "additive":
        query = build.project(h, mixer.query)
        build.barrier()
        capacity = segments_within(memory.tables.shape[1] * BLOCK)
        partials = build.shared(capacity * (width + 2))
        build.emit(
            Opcode.ADD_ATTEND, query=query.address, stride=query.stride, units=query.width, width=width,
            score=build.constant(unpack(build.weights.matrix(mixer.score.matrix()))),
            tables=memory.tables.ctypes.data, table_step=memory.tables.shape[1], lengths=memory.lengths.ctypes.data,
            layer=layer, partials=partials.address, scores=build.private_bytes(4 * CHUNK + 4), capacity=capacity,
        )  # fmt: skip
        build.barrier()
        build.merge(partials, 1, capacity, context, memory.lengths.ctypes.data)
        build.project(context, mixer.context, target, ADD)
    else:
        fixed = Slot(memory.fixed.ctypes.data, memory.fixed.strides[0], memory.fixed.shape[1])
        _combine(build, cells.COPY, fixed.columns(layer, width), None, context)
        build.sum(fixed.columns(layer + width, target.width), target)
    if mixer.config.shows == "before":
        _combine(build, cells.COPY, h, None, output.columns(0, h.width))
    new = _reset(build, mixer, gates, also, h)
    if mixer.config.shows == "after":
        _combine(build, cells.COPY, new, None, output.columns(0, h.width))
    if not mixer.config.out:
        _combine(build, cells.COPY, x, None, output.columns(h.width, x.width))
    return output


def _combine(build: Builder, operation: int, a: Slot, b: Slot | None, out: Slot, also: Slot | None = None) -> Slot:
    b, also = b or a, also or a
    build.emit(
        Opcode.COMBINE, operation=operation, a=a.address, a_stride=a.stride, also=also.address, also_stride=also.stride,
        b=b.address, b_stride=b.stride, out=out.address, out_stride=out.stride,
        width=a.width if operation == cells.OUTER else min(a.width, b.width), b_width=b.width,
    )  # fmt: skip
    return out


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
    """One step of a cell; `peepholes` is the address of its constants, such as an LSTM's peepholes."""
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


RECURRENT: dict[type, MixerLowering] = {
    Pointwise: _pointwise,
    Elman: _elman,
    LSTM: _lstm,
    GRU: _gru,
    SigmaPi: _sigma_pi,
    Multiplicative: _multiplicative,
    MLSTM: _multiplicative,
}

# Linear attention and related mixers.
_FEATURES = {
    "elu": cells.ELU,
    "dpfp": cells.DPFP,
    "relu": operations.RELU,
    "silu": operations.SILU,
    "identity": operations.NONE,
}
_KEY_NORMS = {"none": cells.PLAIN, "sum": cells.BY_SUM, "l2": cells.BY_LENGTH}


class _Rule(NamedTuple):
    """How a head writes its matrix: feature maps of queries and keys, and of values."""

    features: int
    nu: int = 1
    squash: int = operations.NONE
    key_norm: int = cells.PLAIN
    delta: bool = False
    ones: bool = False  # an extra value of 1, whose retrieved value divides the others


def _rule_of(mixer: Associative) -> _Rule:
    if isinstance(mixer, LinearAttention):
        return _Rule(_FEATURES[mixer.config.features], mixer.config.nu, ones=mixer.config.normalise)
    if isinstance(mixer, FastWeightController):
        squash = operations.TANH if mixer.config.squash == "tanh" else operations.NONE
        return _Rule(squash, squash=squash)
    if isinstance(mixer, Delta):
        key_norm = _KEY_NORMS[mixer.config.key_norm]
        return _Rule(_FEATURES[mixer.config.features], mixer.config.nu, key_norm=key_norm, delta=True)
    return _Rule(operations.SILU, squash=operations.SILU, key_norm=cells.BY_LENGTH, delta=True)  # GatedDelta


def _associative(build: Builder, mixer: Associative, x: Slot) -> Slot:
    rule, heads, size = _rule_of(mixer), mixer.heads, mixer.size
    qkv = build.project(x, mixer.qkv)
    strength, decay, gate = (getattr(mixer, name, None) for name in ("strength", "decay", "gate"))
    controls = build.shared(heads * (2 + size))
    control_slots = (
        controls.columns(0, heads),
        controls.columns(heads, heads),
        controls.columns(2 * heads, heads * size),
    )
    if isinstance(strength, Strength):
        build.project(x, strength.project, control_slots[0])
    if isinstance(decay, LogDecay):
        build.multiply(x, decay.project.matrix(), decay.step, control_slots[1])
    if isinstance(gate, Projection):
        build.project(x, gate, control_slots[2])
    build.barrier()
    norm = (-1, None, None, 0.0) if isinstance(mixer.norm, nn.Identity) else norm_parts(mixer.norm)
    out = build.shared(heads * size)
    keys, values = mixer.memory_shape
    memory = build.state(heads * keys * values)
    build.emit(
        Opcode.ASSOCIATE, qkv=qkv.address, stride=qkv.stride, heads=heads, size=size,
        strength=control_slots[0].address if strength is not None else 0,
        decay=control_slots[1].address if decay is not None else 0,
        gate=control_slots[2].address if gate is not None else 0,
        controls_stride=controls.stride, features=rule.features, nu=rule.nu, squash=rule.squash,
        key_norm=rule.key_norm, delta=rule.delta, ones=rule.ones,
        norm=norm[0], weight=build.constant(norm[1]), bias=build.constant(norm[2]), keys=keys,
        rates=build.constant(decay.rate) if isinstance(decay, LogDecay) else 0,
        memory=memory.address, memory_stride=memory.stride, out=out.address,
        scratch=build.private_bytes(8 * (keys + values)), eps=norm[3],
    )  # fmt: skip
    build.barrier()
    return out


def _links(build: Builder, mixer: DynamicLinks, x: Slot) -> Slot:
    drive, out = build.project(x, mixer.slow), build.shared(mixer.cells)
    links = build.state(mixer.cells * x.width)
    build.emit(
        Opcode.LINK, drive=drive.address, drive_stride=drive.stride, x=x.address, x_stride=x.stride,
        links=links.address, links_stride=links.stride, width=x.width, cells=mixer.cells, out=out.address,
        out_stride=out.stride, decay=mixer.config.decay, rate=mixer.config.rate / x.width,
    )  # fmt: skip
    build.barrier()
    return out


LINEAR: dict[type, Callable[[Builder, Any, Slot], Slot]] = {
    **dict.fromkeys((LinearAttention, FastWeightController, Delta, GatedDelta), _associative),
    DynamicLinks: _links,
}

Inner = tuple[Slot, nn.Module]  # a branch's output, and the projection that is still to be applied


def unread_by_blocks(stack: Stack) -> Iterator[nn.Parameter]:
    """Parameters that no block of a stack reads: biases without attention that uses them, and positions, for which
    attention has no instruction.
    """
    used = {block.mixer.config.bias for block in stack.blocks if isinstance(block.mixer, SelfAttention)}
    for name, bias in stack.biases.items():
        if name not in used:
            yield from bias.parameters()
    if stack.positions is not None:
        yield from stack.positions.parameters()


class BlockLowering:
    """Lowers blocks over the residual stream `x`; subclasses lower mixers and cross-attention."""

    def __init__(self, build: Builder, width: int) -> None:
        self.build, self.x = build, build.lasting(width)
        self.normed: dict[int, Slot] = {}  # by width
        self._angles: dict[Any, dict[str, int]] = {}

    def mix(self, block: Block, x: Slot) -> Inner:
        raise NotImplementedError

    def read(self, block: Block, x: Slot) -> Inner:
        raise NotImplementedError

    def block(self, block: Block) -> None:
        if isinstance(block, ParallelBlock):
            self._parallel(block)
            return
        self._branch(block.mix, lambda x: self.mix(block, x))
        if block.cross is not None and block.read is not None:
            self._branch(block.read, lambda x: self.read(block, x))
        if block.feed_forward is not None and block.feed is not None:
            self._branch(block.feed, lambda x: feed_forward(self.build, block.feed_forward, x))

    def _parallel(self, block: ParallelBlock) -> None:
        first = self.norm(block.mix.before, self.x)
        second, feed_output = first, None
        if block.feed is not None and block.feed.before is not block.mix.before:
            second = self.norm(block.feed.before, self.x, self.build.small(self.x.width))
        mix_output = self.mix(block, first)
        if block.feed is not None:
            feed_output = feed_forward(self.build, block.feed_forward, second)
        self._join(block.mix, *mix_output)
        if block.feed is not None and feed_output is not None:
            self._join(block.feed, *feed_output)

    def _branch(self, branch: Branch, function: Callable[[Slot], Inner]) -> None:
        self._join(branch, *function(self.norm(branch.before, self.x)))

    def _join(self, branch: Branch, inner: Slot, out: nn.Module) -> None:
        """x = last(x + gain x after(out(inner))). Without a residual x may change its width."""
        gain = branch.gain.gain if isinstance(branch.gain, LayerScale) else None
        if branch.scale != 1.0:
            gain = (torch.ones(self.x.width) if gain is None else gain) * branch.scale
        plain = isinstance(branch.after, nn.Identity) and gain is None and branch.residual
        if plain and isinstance(out, Projection):
            self.build.project(inner, out, self.x, ADD)
        else:
            if isinstance(out, Projection):
                inner = self.build.project(inner, out)
                self.build.barrier()
            y = self.norm(branch.after, inner, self.build.small(inner.width))
            if y.width != self.x.width:
                self.x = self.build.lasting(y.width)
            self.build.sum(y, self.x, branch.residual, gain)
        self.build.barrier()
        if not isinstance(branch.last, nn.Identity):
            self.norm(branch.last, self.x, self.x)
            self.build.barrier()

    def norm(self, norm: nn.Module, x: Slot, into: Slot | None = None) -> Slot:
        """Normalised rows, in scratch unless `into` is given; an identity returns its input."""
        if isinstance(norm, nn.Identity):
            return x
        if x.width not in self.normed:
            self.normed[x.width] = self.build.small(x.width, lasting=True)
        y = into or self.normed[x.width]
        self.build.norm(norm, x, y)
        return y

    def qkv(self, mixer: SelfAttention, x: Slot) -> Slot:
        """Queries, keys and values, normalised if one norm covers all heads, or each has its own weights."""
        qkv = self.build.project(x, mixer.qkv)
        self.build.barrier()
        if isinstance(mixer.qk_norm, WideQKNorm):
            width = mixer.heads * mixer.size
            q, k = qkv.columns(0, width), qkv.columns(width, mixer.groups * mixer.size)
            self.build.norm(mixer.qk_norm.q, q, q)
            self.build.norm(mixer.qk_norm.k, k, k)
            self.build.barrier()
        elif isinstance(mixer.qk_norm, EachQKNorm):
            for index, weight in enumerate(torch.cat([mixer.qk_norm.q, mixer.qk_norm.k])):
                head = qkv.columns(index * mixer.size, mixer.size)
                self.build.norm(mixer.qk_norm.norm, head, head, weight)
            self.build.barrier()
        return qkv

    def head_norms(self, norms: tuple[nn.Module, nn.Module] | None) -> dict[str, Any]:
        """Operands of attention for the norms of each head's queries and keys."""
        if norms is None:
            return {"norm": -1, "q_weight": 0, "q_bias": 0, "k_weight": 0, "k_bias": 0, "eps": 0.0}
        (kind, q_weight, q_bias, eps), (_, k_weight, k_bias, _) = map(norm_parts, norms)
        parts = {"q_weight": q_weight, "q_bias": q_bias, "k_weight": k_weight, "k_bias": k_bias}
        return {"norm": kind, "eps": eps, **{name: self.build.constant(part) for name, part in parts.items()}}

    def angles(self, rotary: Rotary | None, length: int) -> dict[str, int]:
        """Operands of attention for rotary positions below `length`."""
        if rotary is None:
            return {"cos": 0, "sin": 0, "half": 0}
        kind = (rotary.config, rotary.size)
        if kind not in self._angles:
            cos, sin = rotary.angles(Layout.full(1, length), torch.zeros(1))
            self._angles[kind] = {
                "cos": self.build.constant(cos),
                "sin": self.build.constant(sin),
                "half": cos.shape[-1],
            }
        return self._angles[kind]
