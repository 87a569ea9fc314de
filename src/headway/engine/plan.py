"""From a model's modules to a program. What has no instruction is refused by name, and torch runs the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.engine import operations as code
from headway.engine.builder import STATES, Builder, Memory, Place, Weights
from headway.engine.lowering_linear import LINEAR
from headway.engine.lowering_recurrent import RECURRENT, lower_conditional
from headway.engine.operations import BLOCK, GATED
from headway.engine.parts import CannotLowerError, norm_parts
from headway.engine.program import Kind, run
from headway.engine.states import fixed_numbers, state_numbers
from headway.engine.whole import run_whole
from headway.layout import Layout
from headway.mixers.attention import Attention, QKNorm, WideQKNorm
from headway.mixers.conditional_gru import ConditionalGRU
from headway.mixers.cross import CrossAttention
from headway.models import Transformer
from headway.models.block import Block, Branch, LayerScale, ParallelBlock
from headway.models.embeds import TokenEmbed, TypeEmbed
from headway.models.heads import Maxout, Transform, VocabularyHead
from headway.models.stack import Stack
from headway.parts.bias import Alibi, Relative
from headway.parts.dropout import Dropout
from headway.parts.experts import Experts
from headway.parts.fading import LogDecay, Strength
from headway.parts.feedforward import ACTIVATIONS, MLP, Gated
from headway.parts.norm import LayerNorm, RMSNorm
from headway.parts.positions import Learned, Sinusoidal
from headway.parts.projection import Projection
from headway.visibility import Causal

_CODES = {
    "relu": code.RELU,
    "gelu": code.GELU,
    "gelu_tanh": code.GELU_TANH,
    "quick_gelu": code.QUICK_GELU,
    "relu_squared": code.RELU_SQUARED,
    "silu": code.SILU,
    "tanh": code.TANH,
}


@dataclass(frozen=True)
class Program:
    """Instructions for one new token of at most `rows` rows whose positions stay below `capacity`."""

    run: Any  # the compiled loop
    table: np.ndarray
    floats: np.ndarray
    scratch: int  # bytes of a thread
    logits: np.ndarray  # [rows, C], where they come to lie
    own: Memory
    read: Memory
    rows: int
    capacity: int
    kept: list[Any]
    stated: tuple[np.ndarray, np.ndarray]  # rows and fields of the table that are addresses in states
    places: np.ndarray  # and those addresses, from the first byte of the states

    def find_states(self, states: np.ndarray) -> None:
        """Run on these states, [B, numbers]."""
        self.table[self.stated] = self.places + states.ctypes.data


def lower(model: Transformer, weights: Weights, rows: int, capacity: int, reach: int) -> Program:
    """The program of a decoder that reads memories of at most `reach` positions. Raises CannotLowerError."""
    return _Lowering(model, weights, rows, capacity, reach).program()


def check(model: Transformer) -> None:
    """CannotLowerError for what the engine has no instruction for, before any weight is packed or even drawn."""
    for name, module in model.named_modules():
        if not isinstance(module, _KNOWN):
            raise CannotLowerError(f"{type(module).__name__} ({name})")
        if isinstance(module, Attention) and not isinstance(module.config.pattern, Causal):
            raise CannotLowerError(f"attention with the pattern {type(module.config.pattern).__name__} ({name})")


class _Lowering:
    def __init__(self, model: Transformer, weights: Weights, rows: int, capacity: int, reach: int) -> None:
        blocks = [block for block in model.stack.blocks if isinstance(block, Block)]
        numbers = sum(state_numbers(block.mixer) for block in blocks)
        self.model, self.build, self.capacity = model, Builder(weights, rows, numbers), capacity
        self.own = _memory(blocks, rows, capacity, _grows)
        self.read = _memory(blocks, rows, reach, _reads)
        self.x = self.build.shared(model.config.width)
        self.normed: dict[int, Place] = {}  # by width
        self.rotary: dict[Any, tuple[int, int, int]] = {}
        self.biases: dict[int, int] = {}

    def program(self) -> Program:
        build, model = self.build, self.model
        self._embed(model.embed)
        build.barrier()
        layers = {"own": 0, "read": 0, "fixed": 0}
        for block in model.stack.blocks:
            assert isinstance(block, Block)
            self._block(block, layers)
        logits = self._head(model.heads["vocabulary"], self._norm(model.stack.norm, self.x))
        table, floats = build.table()
        stated = np.nonzero(table >= STATES)
        loop = run_whole if (table[:, 0] >= Kind.COMBINE).any() else run
        return Program(
            loop, table, floats, build.scratch, logits, self.own, self.read, build.rows, self.capacity, build.kept,
            (stated[0], stated[1]), table[stated] - STATES,
        )  # fmt: skip

    def _embed(self, embed: nn.Module) -> None:
        if not isinstance(embed, TokenEmbed) or not isinstance(embed.project, nn.Identity):
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
            Kind.EMBED,
            format=packed.kind,
            table=packed.weights.data_ptr(),
            scales=0 if packed.scales is None else packed.scales.data_ptr(),
            width=packed.columns,
            out=self.x.address,
            stride=self.x.stride,
            positions=self.build.constant(positions),
            limit=0 if positions is None else positions.shape[0],
            offset=0,
            scale=embed.scale,
        )
        if not isinstance(embed.norm, nn.Identity):
            self.build.barrier()
            self._norm(embed.norm, self.x, self.x)

    def _block(self, block: Block, layers: dict[str, int]) -> None:
        if isinstance(block, ParallelBlock):
            self._parallel(block, layers)
            return
        self._branch(block.mix, lambda x: self._mixer(block.mixer, x, layers))
        if block.cross is not None and block.read is not None:
            cross = block.cross
            self._branch(block.read, lambda x: self._cross(cross, x, layers))
        if block.feed_forward is not None and block.feed is not None:
            self._branch(block.feed, lambda x: self._feed_forward(block.feed_forward, x))

    def _parallel(self, block: ParallelBlock, layers: dict[str, int]) -> None:
        first = self._norm(block.mix.before, self.x)
        second, fed = first, None
        if block.feed is not None and block.feed.before is not block.mix.before:
            second = self._norm(block.feed.before, self.x, self.build.private(self.x.width))
        mixed = self._mixer(block.mixer, first, layers)
        if block.feed is not None:
            fed = self._feed_forward(block.feed_forward, second)
        self._join(block.mix, *mixed)
        if block.feed is not None and fed is not None:
            self._join(block.feed, *fed)

    def _branch(self, branch: Branch, function: Any) -> None:
        self._join(branch, *function(self._norm(branch.before, self.x)))

    def _join(self, branch: Branch, inner: Place, out: nn.Module) -> None:
        """x = last(x + gain x after(out(inner))). Without a residual x may get another width."""
        gain = branch.gain.gain if isinstance(branch.gain, LayerScale) else None
        plain = isinstance(branch.after, nn.Identity) and gain is None and branch.residual
        if plain and isinstance(out, Projection):
            self.build.add(inner, out.matrix(), _offset(out), self.x)
        else:
            if isinstance(out, Projection):
                inner = self.build.project(inner, out)
                self.build.barrier()
            y = self._norm(branch.after, inner, self.build.private(inner.width))
            if y.width != self.x.width:
                self.x = self.build.shared(y.width)
            self.build.sum(y, self.x, branch.residual, gain)
        self.build.barrier()
        if not isinstance(branch.last, nn.Identity):
            self._norm(branch.last, self.x, self.x)
            self.build.barrier()

    def _norm(self, norm: nn.Module, x: Place, into: Place | None = None) -> Place:
        """Normed rows, in scratch unless `into` says where; a norm that is none leaves them where they are."""
        if isinstance(norm, nn.Identity):
            return x
        kind, weight, bias, eps = norm_parts(norm)
        if x.width not in self.normed:
            self.normed[x.width] = self.build.private(x.width)
        y = into or self.normed[x.width]
        self.build.emit(
            Kind.NORM,
            src=x.address,
            src_stride=x.stride,
            dst=y.address,
            dst_stride=y.stride,
            width=x.width,
            norm=kind,
            weight=self.build.constant(weight),
            bias=self.build.constant(bias),
            eps=eps,
        )
        return y

    def _mixer(self, mixer: nn.Module, x: Place, layers: dict[str, int]) -> tuple[Place, nn.Module]:
        if isinstance(mixer, ConditionalGRU):
            layer = layers["fixed"] if fixed_numbers(mixer) else self._next(layers, "read", _annotations(mixer))
            layers["fixed"] += fixed_numbers(mixer)
            return lower_conditional(self.build, mixer, x, self.read, layer), mixer.out
        lowered = _RECURRENT.get(type(mixer))
        if lowered is not None:
            return lowered(self.build, mixer, x), cast(nn.Module, mixer.out)
        if not isinstance(mixer, Attention) or not isinstance(mixer.config.pattern, Causal):
            raise CannotLowerError(type(mixer).__name__)
        heads, groups, size = mixer.heads, mixer.groups, mixer.size
        qkv = self.build.shared((heads + 2 * groups) * size)
        self.build.multiply(x, mixer.qkv.matrix(), _offset(mixer.qkv), qkv)
        self.build.barrier()
        if isinstance(mixer.qk_norm, WideQKNorm):
            q, k = qkv.columns(0, heads * size), qkv.columns(heads * size, groups * size)
            self._norm(mixer.qk_norm.q, q, q)
            self._norm(mixer.qk_norm.k, k, k)
            self.build.barrier()
        norms = (mixer.qk_norm.q, mixer.qk_norm.k) if isinstance(mixer.qk_norm, QKNorm) else None
        angles = (0, 0, 0) if mixer.rotary is None else self._angles(mixer)
        bias = self._bias(mixer)
        offset = self._next(layers, "own", 2 * groups * size)
        inner = self._attend(
            qkv, heads, groups, size, self.own, offset,
            writes=True, norms=norms, angles=angles, window=mixer.config.pattern.window or 0, bias=bias,
            cap=mixer.config.soft_cap or 0.0, scale=mixer.config.scale, sinks=mixer.sinks,
        )  # fmt: skip
        return inner, mixer.out

    def _cross(self, cross: CrossAttention, x: Place, layers: dict[str, int]) -> tuple[Place, Projection]:
        heads, groups, size = cross.heads, cross.groups, cross.size
        q = self.build.shared(heads * size)
        self.build.multiply(x, cross.q.matrix(), _offset(cross.q), q)
        self.build.barrier()
        norms = None if isinstance(cross.q_norm, nn.Identity) else (cross.q_norm, cross.k_norm)
        offset = self._next(layers, "read", 2 * groups * size)
        inner = self._attend(q, heads, groups, size, self.read, offset, norms=norms, scale=cross.config.scale)
        return inner, cross.out

    def _attend(
        self,
        qkv: Place,
        heads: int,
        groups: int,
        size: int,
        memory: Memory,
        offset: int,
        *,
        writes: bool = False,
        norms: tuple[nn.Module, nn.Module] | None = None,
        angles: tuple[int, int, int] = (0, 0, 0),
        window: int = 0,
        bias: int = 0,
        cap: float = 0.0,
        scale: float | None = None,
        sinks: Tensor | None = None,
    ) -> Place:
        kind, eps, parts = -1, 0.0, [None, None, None, None]
        if norms is not None:
            (kind, q_weight, q_bias, eps), (_, k_weight, k_bias, _) = map(norm_parts, norms)
            parts = [q_weight, q_bias, k_weight, k_bias]
        q_weight, q_bias, k_weight, k_bias = map(self.build.constant, parts)
        pieces = self.build.pieces(heads, size)
        self.build.emit(
            Kind.ATTEND,
            qkv=qkv.address, stride=qkv.stride, heads=heads, groups=groups, size=size, writes=writes,
            norm=kind, q_weight=q_weight, q_bias=q_bias, k_weight=k_weight, k_bias=k_bias,
            cos=angles[0], sin=angles[1], half=angles[2], window=window, bias=bias, span=self.capacity,
            tables=memory.tables.ctypes.data, table_step=memory.tables.shape[1], lengths=memory.lengths.ctypes.data,
            layer=offset, pieces=pieces.address, q=self.build.private_bytes(4 * heads // groups * size),
            scores=self.build.private_bytes(4 * max(BLOCK, size)),
            eps=eps, cap=cap, scale=scale or 1 / math.sqrt(size),
        )  # fmt: skip
        self.build.barrier()
        out = self.build.private(heads * size)
        self.build.merge(pieces, heads, groups, out, sinks)
        return out

    def _next(self, layers: dict[str, int], which: str, numbers: int) -> int:
        """The byte of a block at which a layer's keys begin, which has so many numbers a position."""
        start = layers[which]
        layers[which] += 4 * numbers * BLOCK
        return start

    def _angles(self, mixer: Attention) -> tuple[int, int, int]:
        rotary = mixer.rotary
        assert rotary is not None
        key = (rotary.config, rotary.size)
        if key not in self.rotary:
            cos, sin = rotary.angles(Layout.full(1, self.capacity), torch.zeros(1))
            half = cos.shape[-1]
            self.rotary[key] = (self.build.constant(cos), self.build.constant(sin), half)
        return self.rotary[key]

    def _bias(self, mixer: Attention) -> int:
        """Biases by distance, [H, capacity]: what the last query sees, from itself backwards."""
        positions = torch.arange(self.capacity)[None]
        found = mixer._bias(torch.zeros(1), Layout(positions[:, -1:]), Layout(positions))
        if found is None:
            return 0
        return self.build.constant(found[0, :, 0].flip(-1))

    def _feed_forward(self, feed: nn.Module | None, x: Place) -> tuple[Place, nn.Module]:
        if isinstance(feed, Experts):
            return self._experts(feed, x), nn.Identity()
        if isinstance(feed, MLP):
            hidden = self.build.shared(feed.up.weight.shape[0])
            self.build.multiply(x, feed.up.matrix(), _offset(feed.up), hidden, activation=_activation(feed.activation))
        elif isinstance(feed, Gated):
            hidden = self.build.shared(feed.gate_up.weight.shape[0] // 2)
            matrix, offset = feed.gate_up.matrix(), _offset(feed.gate_up)
            self.build.multiply(x, matrix, offset, hidden, GATED, _activation(feed.activation))
        else:
            raise CannotLowerError(f"the feed-forward {type(feed).__name__}")
        self.build.barrier()
        return hidden, feed.down

    def _experts(self, feed: Experts, x: Place) -> Place:
        build, count = self.build, feed.config.count
        logits, total, said = build.project(x, feed.router), build.shared(x.width), build.shared(x.width)
        weights = build.private(count)
        build.barrier()
        build.emit(
            Kind.ROUTE, logits=logits.address, stride=logits.stride, count=count, active=feed.config.active,
            normalise=feed.config.normalise, weights=weights.address, sum=total.address, sum_stride=total.stride,
            width=x.width,
        )  # fmt: skip
        for number, expert in enumerate(feed.experts):
            with build.unless_idle(weights, number):
                hidden, out = self._feed_forward(expert, x)
                assert isinstance(out, Projection)
                build.project(hidden, out, said)
                build.emit(
                    Kind.WEIGH, weights=weights.address, count=count, expert=number, src=said.address,
                    src_stride=said.stride, sum=total.address, sum_stride=total.stride, width=x.width,
                )  # fmt: skip
        build.barrier()
        return total

    def _head(self, head: nn.Module, x: Place) -> np.ndarray:
        if not isinstance(head, VocabularyHead):
            raise CannotLowerError(f"the head {type(head).__name__}")
        if isinstance(head.transform, Transform):
            y = self.build.shared(x.width)
            dense = head.transform.dense
            activation = _activation(head.transform.activation)
            self.build.multiply(x, dense.matrix(), _offset(dense), y, activation=activation)
            self.build.barrier()
            x = self._norm(head.transform.norm, y)
        elif isinstance(head.transform, Maxout):
            dense = head.transform.dense
            y = self.build.shared(dense.weight.shape[0] // 2)
            self.build.multiply(x, dense.matrix(), _offset(dense), y, GATED, code.MAXOUT)
            self.build.barrier()
            x = y
        elif not isinstance(head.transform, nn.Identity):
            raise CannotLowerError(f"the head's {type(head.transform).__name__}")
        logits = np.zeros((self.build.rows, head.weight.shape[0]), np.float32)
        self.build.kept.append(logits)
        cap = head.config.soft_cap
        self.build.multiply(
            x,
            head.weight,
            head.bias,
            Place(logits.ctypes.data, 4 * logits.shape[1], logits.shape[1]),
            activation=code.NONE if cap is None else code.SOFT_CAP,
            cap=cap or 0.0,
            scale=head.config.scale,
        )
        return logits


_RECURRENT = RECURRENT | LINEAR
_KNOWN = (
    Transformer,
    TokenEmbed,
    TypeEmbed,
    Learned,
    Sinusoidal,
    Stack,
    Block,
    Branch,
    LayerScale,
    Attention,
    QKNorm,
    WideQKNorm,
    CrossAttention,
    ConditionalGRU,
    *_RECURRENT,
    Strength,
    LogDecay,
    Projection,
    MLP,
    Gated,
    Experts,
    LayerNorm,
    RMSNorm,
    VocabularyHead,
    Transform,
    Maxout,
    Alibi,
    Relative,
    Dropout,
    nn.Identity,
    nn.ModuleList,
    nn.ModuleDict,
    nn.ParameterList,
)


def _memory(blocks: list[Block], rows: int, capacity: int, numbers: Callable[[Block], int]) -> Memory:
    tables = np.zeros((rows, -(-capacity // BLOCK) + 1), np.int64)
    fixed = np.zeros((rows, sum(fixed_numbers(block.mixer) for block in blocks)), np.float32)
    return Memory(tables, np.zeros(rows, np.int64), BLOCK * sum(map(numbers, blocks)), fixed)


def _grows(block: Block) -> int:
    """The floats by which a block's state grows with each position."""
    mixer = block.mixer
    return 2 * mixer.groups * mixer.size if isinstance(mixer, Attention) else 0


def _reads(block: Block) -> int:
    """The floats that a block keeps of each position of a memory."""
    if isinstance(block.mixer, ConditionalGRU):
        return _annotations(block.mixer)
    return 0 if block.cross is None else 2 * block.cross.groups * block.cross.size


def _annotations(mixer: ConditionalGRU) -> int:
    return mixer.keys.weight.shape[0] + mixer.context.weight.shape[1] if mixer.config.context == "additive" else 0


def _offset(projection: Projection) -> Tensor | None:
    return None if projection.bias is None else projection.offset()


def _activation(function: Any) -> int:
    for name, known in ACTIVATIONS.items():
        if known is function:
            return _CODES[name]
    raise CannotLowerError(f"the activation {function}")
