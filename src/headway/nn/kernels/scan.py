"""Recurrences: a cell over one token after the other, for many runs of tokens at once, with hand-written gradients.

Autograd would record ten operations per step and accumulate the gradient of the recurrent matrix step by step. Here a
backward step is a few operations on factors computed for all steps at once, and the matrix gets its gradient from one
product at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from headway.nn.kernels.convolution import matrix_unit
from headway.nn.kernels.linear import are_products_bf16, is_deterministic, linear
from headway.nn.kernels.pointwise import pointwise

_MATMUL = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _previous(start: Tensor, after: Tensor, sizes: Sequence[int]) -> Tensor:
    """The state before each token, from the initial state and the states after every token."""
    if not sizes:
        return after
    return torch.cat([start[: sizes[0]], *(part[:size] for part, size in zip(after.split(sizes), sizes[1:]))])


def _steps(sizes: Sequence[int], *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each step: `sizes[t]` runs take part in step t, the longest runs first."""
    return zip(*(tensor.split(sizes) for tensor in tensors))


def _steps_back(sizes: Sequence[int], dh: Tensor, dhs: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each step, the last one first, after those of `dh`, to which the gradient `dhs` of the state after
    each token is added. The step has to leave the gradient of the state before it there.
    """
    for add, *rows in zip(*(reversed(tensor.split(sizes)) for tensor in (dhs, *tensors))):
        now = dh[: add.shape[0]]
        now += add
        yield now, *rows


class LSTMScan(Function):
    """i, f, g, o = gates + U h; see `headway.nn.kernels.scan.lstm`."""

    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        hidden: Tensor,
        h0: Tensor,
        c0: Tensor,
        peepholes: Tensor | None,
        sizes: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        ctx.sizes, ctx.bf16 = sizes, are_products_bf16()
        size, weight = hidden.shape[1], hidden.t().contiguous()  # contiguous: a step's product is a third faster
        peeps = None if peepholes is None else peepholes.chunk(3)
        acts = torch.empty_like(gates)
        hs, cs = gates.new_empty(gates.shape[0], size), gates.new_empty(gates.shape[0], size)
        h, c = h0, c0
        with matrix_unit(_MATMUL, ctx.bf16):
            for x, act, new_h, new_c in _steps(sizes, gates, acts, hs, cs):
                h, c = h[: x.shape[0]], c[: x.shape[0]]
                torch.addmm(x, h, weight, out=act)
                i, f, g, o = act.split(size, dim=1)
                if peeps is not None:
                    i.addcmul_(peeps[0], c)
                    f.addcmul_(peeps[1], c)
                act[:, : 2 * size].sigmoid_()
                torch.mul(i, g.tanh_(), out=new_c).addcmul_(f, c)
                if peeps is not None:
                    o.addcmul_(peeps[2], new_c)
                torch.tanh(new_c, out=new_h).mul_(o.sigmoid_())
                h, c = new_h, new_c
        ctx.save_for_backward(acts, hs, cs, hidden, h0, c0, peepholes)
        ctx.set_materialize_grads(False)
        return hs, cs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dhs: Tensor | None, dcs: Tensor | None) -> tuple[Tensor | None, ...]:
        acts, hs, cs, hidden, h0, c0, peepholes = ctx.saved_tensors
        sizes, size = ctx.sizes, hidden.shape[1]
        peeps = None if peepholes is None else peepholes.chunk(3)
        old = _previous(c0, cs, sizes)
        i, f, g, o = acts.chunk(4, dim=1)
        squashed = cs.tanh()
        # Factors from the gradient of c (for i, f, g) or of h (for o) to that of each gate.
        factors = torch.cat([g * i * (1 - i), old * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)], dim=1)
        slopes = o * (1 - squashed * squashed)
        dgates = torch.empty_like(acts)
        dh, dc = torch.zeros_like(h0), torch.zeros_like(c0)
        dhs = torch.zeros_like(hs) if dhs is None else dhs.to(hs.dtype)
        steps = _steps_back(sizes, dh, dhs, dgates, factors, slopes, f)
        all_more_c = [None] * len(sizes) if dcs is None else reversed(dcs.to(hs.dtype).split(sizes))
        with matrix_unit(_MATMUL, ctx.bf16):
            for (now_h, to, factor, slope, forget_gate), more_c in zip(steps, all_more_c):
                now_c = dc[: to.shape[0]]
                if more_c is not None:
                    now_c += more_c
                torch.mul(factor[:, 3 * size :], now_h, out=to[:, 3 * size :])
                now_c.addcmul_(now_h, slope)
                if peeps is not None:
                    now_c.addcmul_(to[:, 3 * size :], peeps[2])
                inner = factor.unflatten(1, (4, size))[:, :3]
                torch.mul(inner, now_c[:, None], out=to.unflatten(1, (4, size))[:, :3])
                now_c.mul_(forget_gate)
                if peeps is not None:
                    now_c.addcmul_(to[:, :size], peeps[0]).addcmul_(to[:, size : 2 * size], peeps[1])
                torch.mm(to, hidden, out=now_h)
            dhidden = dgates.t() @ _previous(h0, hs, sizes)
        dpeeps = None
        if peepholes is not None:
            di, df, _, do = dgates.chunk(4, dim=1)
            dpeeps = torch.cat([(di * old).sum(0), (df * old).sum(0), (do * cs).sum(0)])
        return dgates, dhidden, dh, dc, dpeeps, None


class GRUScan(Function):
    """With a bias n = tanh(gate + r (U h + b)): the reset gate acts after the product, as in nn.GRU. Without one n =
    tanh(gate + U (r h)): it acts before the product (Cho et al. 2014).
    """

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, hidden: Tensor, bias: Tensor | None, h0: Tensor, sizes: tuple[int, ...]
    ) -> Tensor:
        ctx.sizes, ctx.bf16, ctx.is_after = sizes, are_products_bf16(), bias is not None
        size, h = hidden.shape[1], h0
        weights = [part.t().contiguous() for part in ([hidden] if ctx.is_after else hidden.split((2 * size, size)))]
        acts, hs = torch.empty_like(gates), gates.new_empty(gates.shape[0], size)
        products = torch.empty_like(gates if ctx.is_after else hs)  # U h + b, or r h
        with matrix_unit(_MATMUL, ctx.bf16):
            for x, act, product, new in _steps(sizes, gates, acts, products, hs):
                h = h[: x.shape[0]]
                r, z, n = act.split(size, dim=1)
                if bias is None:
                    torch.addmm(x[:, : 2 * size], h, weights[0], out=act[:, : 2 * size]).sigmoid_()
                    torch.addmm(x[:, 2 * size :], torch.mul(r, h, out=product), weights[1], out=n).tanh_()
                else:
                    torch.addmm(bias, h, weights[0], out=product)
                    torch.add(x[:, : 2 * size], product[:, : 2 * size], out=act[:, : 2 * size]).sigmoid_()
                    torch.addcmul(x[:, 2 * size :], r, product[:, 2 * size :], out=n).tanh_()
                h = torch.lerp(n, h, z, out=new)
        ctx.save_for_backward(acts, products[:, -size:], hs, hidden, h0)
        return hs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dhs: Tensor) -> tuple[Tensor | None, ...]:
        acts, product, hs, hidden, h0 = ctx.saved_tensors
        sizes, size = ctx.sizes, hidden.shape[1]
        old = _previous(h0, hs, sizes)
        r, z, n = acts.chunk(3, dim=1)
        # From the gradient of h to those of the gates z and n.
        to_z, to_n = (old - n) * z * (1 - z), (1 - z) * (1 - n * n)
        dh, dhs = torch.zeros_like(h0), dhs.to(hs.dtype)
        with matrix_unit(_MATMUL, ctx.bf16):
            if ctx.is_after:
                # To those of U h + b (r, z, n) and to that of the gate of n, outside the reset gate.
                factors = torch.cat([to_n * product * r * (1 - r), to_z, to_n * r, to_n], dim=1)
                gradients = torch.empty_like(factors)
                for now, to, factor, update_gate in _steps_back(sizes, dh, dhs, gradients, factors, z):
                    torch.mul(factor.unflatten(1, (4, size)), now[:, None], out=to.unflatten(1, (4, size)))
                    now.mul_(update_gate).addmm_(to[:, : 3 * size], hidden)
                dproducts = gradients[:, : 3 * size]
                dgates = torch.cat([gradients[:, : 2 * size], gradients[:, 3 * size :]], dim=1)
                return dgates, dproducts.t() @ old, dproducts.sum(0), dh, None
            outer, inner = hidden.split((2 * size, size))
            dgates = torch.empty_like(acts)
            rows = _steps_back(sizes, dh, dhs, dgates, old * r * (1 - r), to_z, to_n, r, z)
            for now, to, for_r, for_z, for_n, reset, update_gate in rows:
                dr, dz, dn = to.split(size, dim=1)
                dreset = torch.mul(for_n, now, out=dn) @ inner  # the gradient of r h
                torch.mul(for_r, dreset, out=dr)
                torch.mul(for_z, now, out=dz)
                now.mul_(update_gate).addcmul_(dreset, reset).addmm_(to[:, : 2 * size], outer)
            dhidden = torch.cat([dgates[:, : 2 * size].t() @ old, dgates[:, 2 * size :].t() @ product])
        return dgates, dhidden, None, dh, None


class ElmanScan(Function):
    """h = s(gate + U h). If truncated, the h on the right is a constant, and backward steps are independent."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, hidden: Tensor, h0: Tensor, sizes: tuple[int, ...], logistic: bool, truncate: bool
    ) -> Tensor:
        ctx.sizes, ctx.bf16, ctx.logistic, ctx.truncate = sizes, are_products_bf16(), logistic, truncate
        weight, hs, h = hidden.t().contiguous(), gates.new_empty(gates.shape[0], hidden.shape[1]), h0
        with matrix_unit(_MATMUL, ctx.bf16):
            for x, new in _steps(sizes, gates, hs):
                h = torch.addmm(x, h[: x.shape[0]], weight, out=new)
                h = h.sigmoid_() if logistic else h.tanh_()
        ctx.save_for_backward(hs, hidden, h0)
        return hs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dhs: Tensor) -> tuple[Tensor | None, ...]:
        hs, hidden, h0 = ctx.saved_tensors
        slopes = hs * (1 - hs) if ctx.logistic else 1 - hs * hs
        dgates, dh = dhs * slopes, torch.zeros_like(h0)
        with matrix_unit(_MATMUL, ctx.bf16):
            if not ctx.truncate:
                for now, to, slope in _steps_back(ctx.sizes, dh, dhs, dgates, slopes):
                    torch.mm(torch.mul(now, slope, out=to), hidden, out=now)
            dhidden = dgates.t() @ _previous(h0, hs, ctx.sizes)
        return dgates, dhidden, dh, None, None, None


Vectors = tuple[Tensor, ...]  # [R, N] each: h, or h and c, per run


class RunSteps(NamedTuple):
    """R parallel runs of tokens, the longest first.

    Tokens are stored step by step: step t has the next token of each of the first `sizes[t]` runs, those that are not
    finished. `last` is the index of each run's last token.
    """

    sizes: tuple[int, ...]
    last: Int[Tensor, "R"]

    @staticmethod
    def equal(runs: int, length: int, device: torch.device | str | None = None) -> RunSteps:
        """Runs of equal length."""
        return RunSteps((runs,) * length, torch.arange((length - 1) * runs, length * runs, device=device))

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
    cell: Callable[..., Vectors], inputs: Float[Tensor, "n E"], start: Vectors, steps: RunSteps
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """Apply `cell(inputs of a step, *vectors) -> vectors` step by step; return the first vector (h) after every token,
    and all vectors after each run's last token.
    """
    vectors, outputs = start, []
    for step_inputs in inputs.split(steps.sizes):
        vectors = cell(step_inputs, *(vector[: step_inputs.shape[0]] for vector in vectors))
        outputs.append(vectors)
    sequences = [torch.cat(parts) for parts in zip(*outputs)]
    return sequences[0], tuple(vector[steps.last] for vector in sequences)


def lstm_reference(
    x: Float[Tensor, "n D"], start: Vectors, steps: RunSteps, weights: LSTMWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """Reference for `lstm`."""
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
    x: Float[Tensor, "n D"], start: Vectors, steps: RunSteps, weights: GRUWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """Reference for `gru`."""
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
    steps: RunSteps,
    weights: ElmanWeights,
    logistic: bool = False,
    truncate: bool = False,
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """Reference for `elman`."""
    activation = torch.sigmoid if logistic else torch.tanh

    def cell(inputs: Tensor, h: Tensor) -> Vectors:
        return (pointwise(activation, inputs + linear(h.detach() if truncate else h, weights.hidden)),)

    return unroll(cell, linear(x, weights.input, weights.bias), start, steps)


def lstm(
    x: Float[Tensor, "n D"], start: Vectors, steps: RunSteps, weights: LSTMWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """c = f c + i tanh(g), h = o tanh(c), with logistic gates i, f, o (torch's nn.LSTM) and peepholes, by which i and f
    see the old cell and o the new one. Returns h after every token, and (h, c) after each run's last token.
    """
    if is_deterministic():
        return lstm_reference(x, start, steps, weights)
    if weights.peepholes is None and _suits_torch(x, steps):
        return _by_torch(torch.lstm, x, start, steps, weights)
    gates = linear(x, weights.input, weights.bias).to(weights.hidden.dtype)
    h, c = LSTMScan.apply(gates, weights.hidden, *start, weights.peepholes, steps.sizes)
    return h, (h[steps.last], c[steps.last])


def gru(
    x: Float[Tensor, "n D"], start: Vectors, steps: RunSteps, weights: GRUWeights
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """h = (1 - z) n + z h with n = tanh(W x + U (r h)) (Cho et al. 2014), or n = tanh(W x + r (U h + b)) (nn.GRU)."""
    if is_deterministic():
        return gru_reference(x, start, steps, weights)
    if weights.hidden_bias is not None and x.is_cuda:
        return _by_torch(torch.gru, x, start, steps, weights, weights.hidden_bias)
    gates = linear(x, weights.input, weights.bias).to(weights.hidden.dtype)
    h = GRUScan.apply(gates, weights.hidden, weights.hidden_bias, start[0], steps.sizes)
    return h, (h[steps.last],)


def elman(
    x: Float[Tensor, "n D"],
    start: Vectors,
    steps: RunSteps,
    weights: ElmanWeights,
    logistic: bool = False,
    truncate: bool = False,
) -> tuple[Float[Tensor, "n N"], Vectors]:
    """h = s(W x + U h) with s the hyperbolic tangent or the logistic function; `truncate` stops gradients through the h
    on the right.
    """
    if is_deterministic():
        return elman_reference(x, start, steps, weights, logistic, truncate)
    if not logistic and not truncate and _suits_torch(x, steps):
        return _by_torch(torch.rnn_tanh, x, start, steps, weights)
    gates = linear(x, weights.input, weights.bias).to(weights.hidden.dtype)
    h = ElmanScan.apply(gates, weights.hidden, start[0], steps.sizes, logistic, truncate)
    return h, (h[steps.last],)


def _suits_torch(x: Tensor, steps: RunSteps) -> bool:
    """Whether torch's own kernel is faster: always on a GPU; on a CPU in fp32 over runs of equal length, except for
    GRUs.
    """
    even_fp32 = steps.even and len(steps.sizes) > 1 and x.dtype == torch.float32
    return x.is_cuda or (even_fp32 and not are_products_bf16() and not torch.is_autocast_enabled(x.device.type))


def _by_torch(
    kernel: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    start: Vectors,
    steps: RunSteps,
    weights: LSTMWeights | GRUWeights | ElmanWeights,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Vectors]:
    """Run one of torch's recurrent kernels: one layer and direction, with biases, without dropout."""
    second_bias = torch.zeros_like(weights.bias) if hidden_bias is None else hidden_bias
    parameters = [weights.input, weights.hidden, weights.bias, second_bias]
    states = tuple(vector[None] for vector in start)
    inputs: tuple[Any, ...] = (states if len(start) > 1 else states[0], parameters)
    options = (True, 1, 0.0, torch.is_grad_enabled(), False)
    if steps.even:
        y, *final = kernel(x.view(len(steps.sizes), steps.sizes[0], -1), *inputs, *options, False)
    else:
        y, *final = kernel(x, torch.tensor(steps.sizes), *inputs, *options)
    return y.flatten(0, -2), tuple(vector[0] for vector in final)
