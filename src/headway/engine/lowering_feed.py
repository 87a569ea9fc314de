"""Feed-forwards as instructions, plain, gated, and of experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from headway.engine import operations as code
from headway.engine.builder import Builder
from headway.engine.operations import GATED
from headway.engine.parts import CannotLowerError, offset_of
from headway.engine.places import Place
from headway.engine.program import Kind
from headway.parts.experts import Experts
from headway.parts.feedforward import ACTIVATIONS, MLP, Gated
from headway.parts.projection import Projection

_CODES = {
    "relu": code.RELU,
    "gelu": code.GELU,
    "gelu_tanh": code.GELU_TANH,
    "quick_gelu": code.QUICK_GELU,
    "relu_squared": code.RELU_SQUARED,
    "silu": code.SILU,
    "tanh": code.TANH,
}


def activation_code(function: Any) -> int:
    """The engine's number of a function of ACTIVATIONS."""
    for name, known in ACTIVATIONS.items():
        if known.args == getattr(function, "args", None):  # a copy of a model has copies of these
            return _CODES[name]
    raise CannotLowerError(f"the activation {function}")


def feed_forward(build: Builder, feed: nn.Module | None, x: Place) -> tuple[Place, nn.Module]:
    """The inner units of each row, and the projection that is still to follow; after experts none."""
    if isinstance(feed, Experts):
        return _experts(build, feed, x), nn.Identity()
    if isinstance(feed, MLP):
        hidden = build.shared(feed.up.weight.shape[0])
        build.multiply(x, feed.up.matrix(), offset_of(feed.up), hidden, activation=activation_code(feed.activation))
    elif isinstance(feed, Gated):
        hidden = build.shared(feed.gate_up.weight.shape[0] // 2)
        matrix, offset = feed.gate_up.matrix(), offset_of(feed.gate_up)
        build.multiply(x, matrix, offset, hidden, GATED, activation_code(feed.activation))
    else:
        raise CannotLowerError(f"the feed-forward {type(feed).__name__}")
    build.barrier()
    return hidden, feed.down


def _experts(build: Builder, feed: Experts, x: Place) -> Place:
    count = feed.config.count
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
            hidden, out = feed_forward(build, expert, x)
            assert isinstance(out, Projection)
            build.project(hidden, out, said)
            build.emit(
                Kind.WEIGH, weights=weights.address, count=count, expert=number, src=said.address,
                src_stride=said.stride, sum=total.address, sum_stride=total.stride, width=x.width,
            )  # fmt: skip
    build.barrier()
    return total
