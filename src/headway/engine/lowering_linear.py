"""Linear attention and its kin as instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from headway.engine import cells as code
from headway.engine import operations
from headway.engine.builder import Builder, Slot, norm_parts
from headway.engine.program import Opcode
from headway.nn.mixers.associative import Associative
from headway.nn.mixers.delta import Delta, GatedDelta
from headway.nn.mixers.dynamic_links import DynamicLinks
from headway.nn.mixers.fast_weights import FastWeightController
from headway.nn.mixers.linear_attention import LinearAttention
from headway.nn.parts.norm import LogDecay, Strength
from headway.nn.parts.projection import Projection

_FEATURES = {
    "elu": code.ELU,
    "dpfp": code.DPFP,
    "relu": operations.RELU,
    "silu": operations.SILU,
    "identity": operations.NONE,
}
_KEY_NORMS = {"none": code.PLAIN, "sum": code.BY_SUM, "l2": code.BY_LENGTH}


class _Rule(NamedTuple):
    """How a head writes its matrix: what becomes of queries and keys, and of values."""

    features: int
    nu: int = 1
    squash: int = operations.NONE
    key_norm: int = code.PLAIN
    delta: bool = False
    ones: bool = False  # a further value of 1, by whose reading the others are divided


def _linear_attention(mixer: LinearAttention) -> _Rule:
    config = mixer.config
    return _Rule(_FEATURES[config.features], config.nu, ones=config.normalise)


def _fast_weights(mixer: FastWeightController) -> _Rule:
    squash = operations.TANH if mixer.config.squash == "tanh" else operations.NONE
    return _Rule(squash, squash=squash)


def _delta(mixer: Delta) -> _Rule:
    config = mixer.config
    return _Rule(_FEATURES[config.features], config.nu, key_norm=_KEY_NORMS[config.key_norm], delta=True)


def _gated_delta(mixer: GatedDelta) -> _Rule:
    return _Rule(operations.SILU, squash=operations.SILU, key_norm=code.BY_LENGTH, delta=True)


_RULES: dict[type, Callable[[Any], _Rule]] = {
    LinearAttention: _linear_attention,
    FastWeightController: _fast_weights,
    Delta: _delta,
    GatedDelta: _gated_delta,
}


def _associative(build: Builder, mixer: Associative, x: Slot) -> Slot:
    rule, heads, size = _RULES[type(mixer)](mixer), mixer.heads, mixer.size
    qkv = build.project(x, mixer.qkv)
    strength, decay, gate = (getattr(mixer, name, None) for name in ("strength", "decay", "gate"))
    controls = build.shared(heads * (2 + size))
    places = controls.columns(0, heads), controls.columns(heads, heads), controls.columns(2 * heads, heads * size)
    if isinstance(strength, Strength):
        build.project(x, strength.project, places[0])
    if isinstance(decay, LogDecay):
        build.multiply(x, decay.project.matrix(), decay.step, places[1])
    if isinstance(gate, Projection):
        build.project(x, gate, places[2])
    build.barrier()
    norm = (-1, None, None, 0.0) if isinstance(mixer.norm, nn.Identity) else norm_parts(mixer.norm)
    out = build.shared(heads * size)
    keys, values = mixer.memory_shape
    memory = build.state(heads * keys * values)
    build.emit(
        Opcode.ASSOCIATE, qkv=qkv.address, stride=qkv.stride, heads=heads, size=size,
        strength=places[0].address if strength is not None else 0,
        decay=places[1].address if decay is not None else 0,
        gate=places[2].address if gate is not None else 0,
        controls_stride=controls.stride, features=rule.features, nu=rule.nu, squash=rule.squash,
        key_norm=rule.key_norm, delta=rule.delta, ones=rule.ones,
        norm=norm[0], weight=build.constant(norm[1]), bias=build.constant(norm[2]), keys=keys,
        rates=build.constant(decay.rate) if isinstance(decay, LogDecay) else 0,
        memory=memory.address, memory_stride=memory.stride, out=out.address,
        room=build.private_bytes(8 * (keys + values)), eps=norm[3],
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
    **dict.fromkeys(_RULES, _associative),
    DynamicLinks: _links,
}
