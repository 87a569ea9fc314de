"""Recurrences: a cell over one token after the other, for many runs of tokens side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.kernels.linear import are_products_rough, is_deterministic, linear
from headway.kernels.pointwise import pointwise
from headway.kernels.unrolled import CellByCell, ElmanScan, GRUBeforeScan, GRUScan, LSTMScan

Vectors = tuple[Tensor, ...]  # [R, N] each: h, or h and c, of every run


class Steps(NamedTuple):
    """R runs of tokens side by side, the longest first.

    Tokens lie step by step: step t holds the next token of each of the first `sizes[t]` runs, those that still have
    one. `ends` says where the last token of each run lies.
    """

    sizes: tuple[int, ...]
    ends: Int[Tensor, "R"]

    @staticmethod
    def equal(runs: int, length: int, device: torch.device | str | None = None) -> Steps:
        """Runs of one length."""
        return Steps((runs,) * length, torch.arange((length - 1) * runs, length * runs, device=device))

    @property
    def even(self) -> bool:
        return self.sizes[0] == self.sizes[-1]


class LSTMWeights(NamedTuple):
    """The gates i, f, g, o from the input and from h, in torch's order; peepholes of i, f, o from the cell."""

    input: Float[Tensor, "4N D"]
    bias: Float[Tensor, "4N"]
    hidden: Float[Tensor, "4N N"]
    peepholes: Float[Tensor, "3N"] | None = None


class GRUWeights(NamedTuple):
    """The gates r, z, n from the input and from h; with `hidden_bias` [3N] the reset gate acts after the product."""

    input: Float[Tensor, "3N D"]
    bias: Float[Tensor, "3N"]
    hidden: Float[Tensor, "3N N"]
    hidden_bias: Float[Tensor, "3N"] | None = None


class ElmanWeights(NamedTuple):
    input: Float[Tensor, "N D"]
    bias: Float[Tensor, "N"]
    hidden: Float[Tensor, "N N"]


def unroll(
    cell: Callable[..., Vectors], inputs: Float[Tensor, "n E"], start: Vectors, steps: Steps
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """`cell(inputs of a step, *vectors) -> vectors`, step after step: the first vector (h) after every token, and all
    vectors after each run's last.
    """
    vectors, kept = start, []
    for piece in inputs.split(steps.sizes):
        vectors = cell(piece, *(vector[: piece.shape[0]] for vector in vectors))
        kept.append(vectors)
    every = [torch.cat(parts) for parts in zip(*kept)]
    return every[0], tuple(vector[steps.ends] for vector in every)


def lstm_reference(
    x: Float[Tensor, "n D"], start: Vectors, steps: Steps, weights: LSTMWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """The plain form of `lstm`."""
    peeps = None if weights.peepholes is None else weights.peepholes.chunk(3)

    def cell(inputs: Tensor, h: Tensor, c: Tensor) -> Vectors:
        i, f, g, o = (inputs + linear(h, weights.hidden)).chunk(4, dim=-1)
        if peeps is not None:
            i, f = i + peeps[0] * c, f + peeps[1] * c
        c = pointwise(torch.sigmoid, f) * c + pointwise(torch.sigmoid, i) * pointwise(torch.tanh, g)
        if peeps is not None:
            o = o + peeps[2] * c
        return pointwise(torch.sigmoid, o) * pointwise(torch.tanh, c), c

    return unroll(cell, linear(x, weights.input, weights.bias), start, steps)


def gru_reference(
    x: Float[Tensor, "n D"], start: Vectors, steps: Steps, weights: GRUWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """The plain form of `gru`."""
    size = weights.hidden.shape[1]
    outer, inner = weights.hidden.split((2 * size, size))

    def before(inputs: Tensor, h: Tensor) -> Vectors:
        r, z = pointwise(torch.sigmoid, inputs[:, : 2 * size] + linear(h, outer)).chunk(2, dim=-1)
        n = pointwise(torch.tanh, inputs[:, 2 * size :] + linear(r * h, inner))
        return ((1 - z) * n + z * h,)

    def after(inputs: Tensor, h: Tensor) -> Vectors:
        hidden = linear(h, weights.hidden, weights.hidden_bias)
        r, z = pointwise(torch.sigmoid, inputs[:, : 2 * size] + hidden[:, : 2 * size]).chunk(2, dim=-1)
        n = pointwise(torch.tanh, inputs[:, 2 * size :] + r * hidden[:, 2 * size :])
        return ((1 - z) * n + z * h,)

    cell = before if weights.hidden_bias is None else after
    return unroll(cell, linear(x, weights.input, weights.bias), start, steps)


def elman_reference(
    x: Float[Tensor, "n D"],
    start: Vectors,
    steps: Steps,
    weights: ElmanWeights,
    logistic: bool = False,
    truncate: bool = False,
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """The plain form of `elman`."""
    activation = torch.sigmoid if logistic else torch.tanh

    def cell(inputs: Tensor, h: Tensor) -> Vectors:
        return (pointwise(activation, inputs + linear(h.detach() if truncate else h, weights.hidden)),)

    return unroll(cell, linear(x, weights.input, weights.bias), start, steps)


def lstm(
    x: Float[Tensor, "n D"], start: Vectors, steps: Steps, weights: LSTMWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """c = f c + i tanh(g), h = o tanh(c), with the logistic gates i, f, o (torch's nn.LSTM) and peepholes, where i and
    f see the old cell and o the new one: h after every token, and (h, c) after each run's last.
    """
    if is_deterministic():
        return lstm_reference(x, start, steps, weights)
    if weights.peepholes is None and _suits_torch(x, steps):
        bias = torch.zeros_like(weights.bias)
        y, ends = _by_torch(torch.lstm, x, tuple(v[None] for v in start), steps, [*_matrices(weights), bias])
        return y, ends
    gates = linear(x, weights.input, weights.bias).to(weights.hidden.dtype)
    h, c = LSTMScan.apply(gates, weights.hidden, *start, weights.peepholes, _how(steps))
    return h, (h[steps.ends], c[steps.ends])


def gru(
    x: Float[Tensor, "n D"], start: Vectors, steps: Steps, weights: GRUWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """h = (1 - z) n + z h with n = tanh(W x + U (r h)) (Cho et al. 2014), or n = tanh(W x + r (U h + b)) (nn.GRU)."""
    if is_deterministic():
        return gru_reference(x, start, steps, weights)
    if weights.hidden_bias is not None and x.is_cuda:
        y, ends = _by_torch(torch.gru, x, start[0][None], steps, [*_matrices(weights), weights.hidden_bias])
        return y, ends
    gates = linear(x, weights.input, weights.bias).to(weights.hidden.dtype)
    if weights.hidden_bias is None:
        h = GRUBeforeScan.apply(gates, weights.hidden, start[0], _how(steps))
    else:
        h = GRUScan.apply(gates, weights.hidden, weights.hidden_bias, start[0], _how(steps))
    return h, (h[steps.ends],)


def elman(
    x: Float[Tensor, "n D"],
    start: Vectors,
    steps: Steps,
    weights: ElmanWeights,
    logistic: bool = False,
    truncate: bool = False,
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """h = s(W x + U h) with s the hyperbolic tangent or the logistic function; `truncate` takes no gradient through
    the h on the right.
    """
    if is_deterministic():
        return elman_reference(x, start, steps, weights, logistic, truncate)
    if not logistic and not truncate and _suits_torch(x, steps):
        bias = torch.zeros_like(weights.bias)
        y, ends = _by_torch(torch.rnn_tanh, x, start[0][None], steps, [*_matrices(weights), bias])
        return y, ends
    gates = linear(x, weights.input, weights.bias).to(weights.hidden.dtype)
    h = ElmanScan.apply(gates, weights.hidden, start[0], _how(steps), logistic, truncate)
    return h, (h[steps.ends],)


def _how(steps: Steps) -> CellByCell:
    return CellByCell(steps.sizes, are_products_rough())


def _matrices(weights: LSTMWeights | GRUWeights | ElmanWeights) -> tuple[Tensor, Tensor, Tensor]:
    """In the order that torch has: its second bias follows."""
    return weights.input, weights.hidden, weights.bias


def _suits_torch(x: Tensor, steps: Steps) -> bool:
    """Where torch's own kernel is the faster one: always on a GPU; on a CPU in fp32 over runs of one length, but for
    GRUs.
    """
    whole = steps.even and len(steps.sizes) > 1 and x.dtype == torch.float32
    return x.is_cuda or (whole and not are_products_rough() and not torch.is_autocast_enabled(x.device.type))


def _by_torch(
    kernel: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    start: Tensor | Vectors,
    steps: Steps,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Vectors]:
    """One of torch's recurrent kernels: one layer and direction, with biases, without dropout."""
    options = (True, 1, 0.0, torch.is_grad_enabled(), False)
    if steps.even:
        y, *ends = kernel(x.view(len(steps.sizes), steps.sizes[0], -1), start, parameters, *options, False)
    else:
        y, *ends = kernel(x, torch.tensor(steps.sizes), start, parameters, *options)
    return y.flatten(0, -2), tuple(end[0] for end in ends)
