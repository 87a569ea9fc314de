"""Matrices written by the delta rule: step by step, as one triangular system, and chunkwise."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.layout import Layout
from headway.nn.kernels.linear import is_deterministic
from headway.nn.kernels.linear_scan import (
    CHUNK,
    add_product_,
    chunk_size,
    cut,
    decay_state_,
    decays,
    entry_state,
    join,
    log_decay_gradient,
    mask_padding,
    new_states,
    rescale,
    scan_masks,
    span_states,
    spans,
    to_fp32,
    weigh_,
    write_span,
)
from headway.nn.kernels.pointwise import pointwise


def delta(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    beta: Float[Tensor, "B T H"],
    layout: Layout,
    *,
    log_decay: Float[Tensor, "B T H"] | None = None,
    state: Float[Tensor, "B H K V"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T and y_t = S_t^T q_t: the value stored for k_t moves
    towards v_t by the fraction beta_t (Schlag et al. 2021, section 4.2; with decay Yang et al. 2024, "Gated delta
    networks").

    It is stable for beta |k|^2 between 0 and 2. Layout, state, decay, chunk and errors are as in `linear_scan`. Within
    a chunk the errors E = V - (values retrieved by the keys) solve a unit triangular system, (I + X) E = V - K S with
    X_ij = decay beta_j k_i . k_j below the diagonal; S then enters through two products per chunk (the WY form of Yang
    et al. 2024, "Parallelizing linear transformers with the delta rule", section 3).
    """
    size = chunk_size(chunk, q.shape[1])
    if is_deterministic():
        return delta_reference(q, k, v, beta, layout, log_decay=log_decay, state=state)
    if size == 1 and q.shape[1] == 1 and state is not None and not torch.is_grad_enabled():
        k, log_decay = mask_padding(k, log_decay, layout)
        decay_state_(state, log_decay, layout)
        key = k[:, 0, :, None, :].to(state.dtype)
        error = (v[:, 0, :, None, :] - key @ state) * beta[:, 0, :, None, None]
        state.addcmul_(key.mT, error)
        return (q[:, 0, :, None, :].to(state.dtype) @ state).transpose(1, 2).to(v.dtype), state
    dtype = v.dtype
    k, log_decay = mask_padding(k, log_decay, layout)
    write_keys = k * beta[..., None]
    q, k, write_keys, v, log_decay, state = to_fp32(q, k, write_keys, v, log_decay, entry_state(state, layout))  # type: ignore[assignment]
    out, final = _Delta.apply(q, k, write_keys, v, log_decay, state, scan_masks(layout).segments, size)
    return out.to(dtype), final


def delta_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    layout: Layout,
    *,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference for `delta`: one token after the other, with sums whose order does not depend on other rows."""
    chunk_size(1, q.shape[1])
    batch, length, heads, size = k.shape
    memory = k.new_zeros(batch, heads, size, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(length):
        start, mask = (flags[:, t, None, None, None] for flags in (layout.starts, layout.mask))
        memory = memory.masked_fill(start, 0)
        before = memory if log_decay is None else memory * pointwise(torch.exp, log_decay[:, t])[:, :, None, None]
        key = k[:, t, :, :, None]
        error = v[:, t] - (key * before).sum(-2)
        after = before + key * (beta[:, t, :, None] * error)[:, :, None, :]
        memory = torch.where(mask, after, memory)
        outputs.append((q[:, t, :, :, None] * memory).sum(-2))
    return torch.stack(outputs, 1), memory


def delta_quadratic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    layout: Layout,
    *,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`delta` as one triangular system over all pairs of tokens."""
    length = q.shape[1]
    size = chunk_size(length or 1, length)
    k, log_decay = mask_padding(k, log_decay, layout)
    state = entry_state(state, layout)
    decay = decays(log_decay, scan_masks(layout).segments, slice(0, length), size, q)
    q, k, v, write = (cut(x, size) for x in (q, k, v, k * beta[..., None]))
    pairs, scores = k @ write.mT, q @ write.mT
    pairs, scores = (pairs, scores.tril()) if decay is None else (pairs * decay.inner, scores * decay.inner)
    target = v if state is None else v - rescale(k, decay and decay.enter) @ state
    errors = torch.linalg.solve_triangular(pairs.tril(-1), target, upper=False, unitriangular=True)
    out, final = scores @ errors, rescale(write, decay and decay.leave).mT @ errors
    if state is not None:
        out = out + rescale(q, decay and decay.enter) @ state
        final = final + rescale(state, decay and decay.through)
    return join(out, length), final[0]


class _Delta(torch.autograd.Function):
    """The chunkwise form with a hand-written gradient, with separate keys to read and to write (beta k).

    In addition to its inputs it saves the solution of each chunk's system and the state before each chunk.
    """

    @staticmethod
    def forward(ctx: Any, q, k, w, v, log_decay, state, segments, size) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out, states, saved = v.new_empty(v.shape), new_states(k, v, state, size), []
        with torch.autocast(q.device.type, enabled=False):
            for span in spans(q.shape[1], size, q.shape[0] * q.shape[2], q):
                decay = decays(log_decay, segments, span, size, q)
                qs, ks, ws, vs = (cut(x[:, span], size) for x in (q, k, w, v))
                both = torch.cat([vs, rescale(ks, decay and decay.enter)], -1)
                pairs, inside = weigh_(ks @ ws.mT, decay, -1), span_states(states, span, size)
                solved = torch.linalg.solve_triangular(pairs, both, upper=False, unitriangular=True)
                errors, key_solution = solved.split((v.shape[-1], k.shape[-1]), -1)
                errors, key_solution = errors.contiguous(), key_solution.contiguous()
                # Chunk by chunk, subtract the state's predictions from the errors and write them into the next state.
                keys = rescale(ws, decay and decay.leave).mT.flatten(1, 2)
                flat, rows, solutions = (x.flatten(1, 2) for x in (inside, errors, key_solution))
                for n in range(len(rows)):
                    rows[n].baddbmm_(solutions[n], flat[n], alpha=-1)
                    decayed = inside[n] if decay is None else inside[n] * decay.through[n]
                    torch.baddbmm(decayed.flatten(0, 1), keys[n], rows[n], out=flat[n + 1])
                scores = weigh_(qs @ ws.mT, decay)
                write_span(out, span, add_product_(scores @ errors, rescale(qs, decay and decay.enter), inside[:-1]))
                saved += [errors, key_solution]
        ctx.save_for_backward(q, k, w, log_decay, segments, states, *saved)
        ctx.size = size
        return out, states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, w, log_decay, segments, states, *saved = ctx.saved_tensors
        size, dstate = ctx.size, dfinal
        dq, dk, dw, dv = (x.new_empty(x.shape) for x in (q, k, w, dout))
        gained = q.new_empty(*q.shape[:3], 1)
        with torch.autocast(q.device.type, enabled=False):
            for span in reversed(spans(q.shape[1], size, q.shape[0] * q.shape[2], q)):
                decay = decays(log_decay, segments, span, size, q)
                enter, leave = (decay.enter, decay.leave) if decay else (None, None)
                key_solution, errors, before = saved.pop(), saved.pop(), span_states(states, span, size)[:-1].mT
                qs, ks, ws, dy = (cut(x[:, span], size) for x in (q, k, w, dout))
                scores, pairs = weigh_(qs @ ws.mT, decay), weigh_(ks @ ws.mT, decay, -1)
                derrors = scores.mT @ dy
                # The gradient of the state before each chunk and after the last; it also completes that of the errors.
                parts = rescale(qs, enter).mT @ dy
                dstates = parts.new_empty(len(parts) + 1, *parts.shape[1:])
                dstates[-1].copy_(dstate)
                keys, solutions = rescale(ws, leave).flatten(1, 2), key_solution.mT.flatten(1, 2)
                flat, rows = dstates.flatten(1, 2), derrors.flatten(1, 2)
                for n in reversed(range(len(rows))):
                    rows[n].baddbmm_(keys[n], flat[n + 1])
                    decayed = dstates[n + 1] if decay is None else dstates[n + 1] * decay.through[n]
                    torch.baddbmm((parts[n] + decayed).flatten(0, 1), solutions[n], rows[n], alpha=-1, out=flat[n])
                dstate, dlater = dstates[0], dstates[1:]
                dvs = torch.linalg.solve_triangular(pairs.mT, derrors, upper=True, unitriangular=True).contiguous()
                dscores, dpairs = weigh_(dy @ errors.mT, decay), weigh_(dvs @ errors.mT, decay, -1).neg_()
                dqs = add_product_(dscores @ ws, rescale(dy, enter), before)
                dks = add_product_(dpairs @ ws, -rescale(dvs, enter), before)
                dws = add_product_(add_product_(dscores.mT @ qs, dpairs.mT, ks), rescale(errors, leave), dlater.mT)
                for gradient, part in ((dq, dqs), (dk, dks), (dw, dws), (dv, dvs)):
                    write_span(gradient, span, part)
                if log_decay is not None:
                    write_span(gained, span, (qs * dqs + ks * dks - ws * dws).sum(-1, keepdim=True))
        dlog = None if log_decay is None else log_decay_gradient(gained[..., 0], states[-1], dfinal)
        return dq, dk, dw, dv, dlog, dstate if ctx.needs_input_grad[5] else None, None, None
