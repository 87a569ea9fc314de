"""The scan of linear attention, a decaying sum of outer products: step by step and chunkwise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.errors import ConfigError, UserError
from headway.layout import Layout, cached_on_host
from headway.nn.kernels.linear import is_deterministic
from headway.nn.kernels.pointwise import pointwise


class ScanMasks(NamedTuple):
    """The parts of a layout that a scan must respect; None for parts that do not occur.

    segments: the number of a token's document within its row, 0 for the first; mask: true at tokens; fresh: rows whose
    first token starts a document, so that they ignore the initial state.
    """

    segments: Int[Tensor, "B T"] | None = None
    mask: Bool[Tensor, "B T"] | None = None
    fresh: Bool[Tensor, "B"] | None = None


@cached_on_host
def scan_masks(layout: Layout) -> ScanMasks:
    if layout.dense:
        return ScanMasks()
    if layout.length == 1 and not layout.is_readable:  # a decoding step on a GPU
        return ScanMasks(None, layout.mask, layout.starts[:, 0])
    first, later = layout.starts[:, 0], layout.starts[:, 1:]
    return ScanMasks(
        F.pad(later.long().cumsum(1), (1, 0)) if bool(later.any()) else None,
        None if bool(layout.mask.all()) else layout.mask,
        first if bool(first.any()) else None,
    )


def entry_state(state: Tensor | None, layout: Layout) -> Tensor | None:
    """The initial state: zero, or None, where the first tokens start a document."""
    if state is None or layout.dense:
        return None
    fresh = scan_masks(layout).fresh
    return state if fresh is None else state.masked_fill(fresh.view(-1, *[1] * (state.dim() - 1)), 0)


def chunk_size(chunk: int, length: int) -> int:
    """The chunk size for `length` tokens. Raises UserError for 0 tokens and ConfigError for an invalid chunk."""
    check_chunk(chunk)
    if length < 1:
        raise UserError("the sequence has 0 tokens; pass 1 or more")
    return min(chunk, length)


def check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ConfigError(f"chunk is {chunk!r}; set at least 1 token, usually 64")


_CACHED = 2**18  # scores computed together: 1 MiB, so that they stay in a core's L2 cache


def spans(length: int, size: int, rows: int, like: Tensor) -> list[slice]:
    """Split the tokens into spans of whole chunks for `rows` heads: as many as fit a CPU's cache, elsewhere all."""
    together = max(1, _CACHED // (rows * size * size)) if like.device.type == "cpu" else length
    return [slice(start, min(start + together * size, length)) for start in range(0, length, together * size)]


def cut(x: Float[Tensor, "B T H K"], size: int) -> Float[Tensor, "N B H C K"]:
    """Contiguous chunks of `size` tokens, the last one padded with zeros."""
    batch, length, heads, width = x.shape
    count = -(-length // size)
    if count * size != length:
        x = F.pad(x, (0, 0, 0, 0, 0, count * size - length))
    return x.view(batch, count, size, heads, width).permute(1, 0, 3, 2, 4).contiguous()


def join(chunks: Float[Tensor, "N B H C K"], length: int) -> Float[Tensor, "B T H K"]:
    """The inverse of `cut`."""
    count, batch, heads, size, width = chunks.shape
    return chunks.permute(1, 0, 3, 2, 4).reshape(batch, count * size, heads, width)[:, :length]


class Decays(NamedTuple):
    """Decay factors of written values: from a token to later tokens of its chunk (0 for earlier ones and across
    documents), from the chunk's start to a token, from a token to the chunk's end, and through the whole chunk.

    All are products of decays of at most 1, computed from differences of logarithms, so that nothing overflows.
    """

    inner: Float[Tensor, "N B #H C C"]
    enter: Float[Tensor, "N B #H C 1"]
    leave: Float[Tensor, "N B #H C 1"]
    through: Float[Tensor, "N B #H 1 1"]


def decays(
    log_decay: Float[Tensor, "B T #H"] | None, segments: Int[Tensor, "B T"] | None, span: slice, size: int, like: Tensor
) -> Decays | None:
    """The decays of the chunks of `size` within a span; None if nothing decays and no document ends."""
    if log_decay is None and segments is None:
        return None
    hidden = torch.ones(size, size, dtype=torch.bool, device=like.device).triu(1)
    within: Decays | None = None  # as booleans: true if no document ends in between
    if segments is not None:
        inside = segments[:, span]
        batch, length = inside.shape
        count = -(-length // size)
        filled = torch.cat([inside, inside[:, -1:].expand(batch, count * size - length)], dim=1)
        chunks = filled.view(batch, count, 1, size, 1).transpose(0, 1)
        last_segment = chunks[..., -1:, :]
        first = segments[:, span.start - 1] if span.start else torch.zeros_like(segments[:, 0])
        before = torch.cat([first.view(1, batch, 1, 1, 1), last_segment[:-1]])
        within = Decays(chunks == chunks.mT, chunks == before, chunks == last_segment, last_segment == before)
        hidden = hidden | ~within.inner
    if log_decay is None:
        assert within is not None
        return Decays((~hidden).to(like.dtype), *(part.to(like.dtype) for part in within[1:]))
    total = cut(log_decay[:, span, :, None], size).squeeze(-1).cumsum(-1)
    last = total[..., -1:]
    factors = Decays(
        (total[..., :, None] - total[..., None, :]).masked_fill_(hidden, -torch.inf).exp(),
        total.exp()[..., None],
        (last - total).exp()[..., None],
        last.exp()[..., None],
    )
    return factors if within is None else Decays(factors.inner, *(a * b for a, b in zip(factors[1:], within[1:])))


def weigh_(scores: Float[Tensor, "N B H C C"], decays: Decays | None, diagonal: int = 0) -> Float[Tensor, "N B H C C"]:
    """Scores of token i (rows) for token j, decayed, and 0 for j after i (`diagonal` 0) or from i on (-1)."""
    if decays is not None:
        scores.mul_(decays.inner)
    return scores.tril_(diagonal) if decays is None or diagonal else scores


def rescale(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def log_decay_gradient(gained: Float[Tensor, "B T H"], final: Tensor, dfinal: Tensor) -> Float[Tensor, "B T H"]:
    """The gradient of the log decays, from that of their running sum at each token (x . dx of all reads minus w . dw of
    all writes) and from the final state, which the whole sum scales.
    """
    return gained.flip(1).cumsum(1).flip(1) + (final * dfinal).sum((-1, -2))[:, None]


def to_fp32(*tensors: Tensor | None) -> list[Tensor | None]:
    """Convert to at least fp32, for states and sums of many terms."""
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


CHUNK = 64


def linear_scan(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    layout: Layout,
    *,
    log_decay: Float[Tensor, "B T H"] | None = None,
    state: Float[Tensor, "B H K V"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """S_t = a_t S_{t-1} + k_t v_t^T and y_t = S_t^T q_t, with a_t = exp(log_decay); log_decay is finite and at most 0.

    S is reset to zero where a document starts and does not change at padding; `state` is S before the first token.
    Chunks of `chunk` tokens are computed by matrix products, and only S passes from one to the next (Yang et al. 2023,
    section 4). A column of ones in v gives the sum of weights for normalisation (Katharopoulos et al. 2020, equation
    9). Without gradients a single token is written into `state` in place. Raises UserError for 0 tokens and ConfigError
    for an invalid chunk.
    """
    size = chunk_size(chunk, q.shape[1])
    if is_deterministic():
        return linear_scan_reference(q, k, v, layout, log_decay=log_decay, state=state)
    if size == 1 and q.shape[1] == 1 and state is not None and not torch.is_grad_enabled():
        k, log_decay = mask_padding(k, log_decay, layout)
        decay_state_(state, log_decay, layout)
        state.addcmul_(k[:, 0, :, :, None], v[:, 0, :, None, :])
        return (q[:, 0, :, None, :].to(state.dtype) @ state).transpose(1, 2).to(v.dtype), state
    dtype = v.dtype
    k, log_decay = mask_padding(k, log_decay, layout)
    q, k, v, log_decay, state = to_fp32(q, k, v, log_decay, entry_state(state, layout))  # type: ignore[assignment]
    out, final = _LinearScan.apply(q, k, v, log_decay, state, scan_masks(layout).segments, size)
    return out.to(dtype), final


def linear_scan_reference(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Reference for `linear_scan`: one token after the other, with sums whose order does not depend on other rows."""
    chunk_size(1, q.shape[1])
    batch, length, heads, size = k.shape
    memory = k.new_zeros(batch, heads, size, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(length):
        start, mask = (flags[:, t, None, None, None] for flags in (layout.starts, layout.mask))
        memory = memory.masked_fill(start, 0)
        after = memory if log_decay is None else memory * pointwise(torch.exp, log_decay[:, t])[:, :, None, None]
        after = after + k[:, t, :, :, None] * v[:, t, :, None, :]
        memory = torch.where(mask, after, memory)
        outputs.append((q[:, t, :, :, None] * memory).sum(-2))
    return torch.stack(outputs, 1), memory


def linear_scan_quadratic(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_scan` as attention without a softmax: the scores q_i . k_j of all pairs, decayed and masked."""
    length = q.shape[1]
    size = chunk_size(length or 1, length)
    k, log_decay = mask_padding(k, log_decay, layout)
    state = entry_state(state, layout)
    decay = decays(log_decay, scan_masks(layout).segments, slice(0, length), size, q)
    q, k, v = (cut(x, size) for x in (q, k, v))
    scores = q @ k.mT
    weights = scores.tril() if decay is None else scores * decay.inner
    out, final = weights @ v, rescale(k, decay and decay.leave).mT @ v
    if state is not None:
        out = out + rescale(q, decay and decay.enter) @ state
        final = final + rescale(state, decay and decay.through)
    return join(out, length), final[0]


def mask_padding(k: Tensor, log_decay: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """At padding, set keys to 0 and decays to 1, so that nothing is written."""
    mask = scan_masks(layout).mask
    if mask is None:
        return k, log_decay
    return k * mask[..., None, None], None if log_decay is None else log_decay.masked_fill(~mask[..., None], 0)


def decay_state_(state: Tensor, log_decay: Tensor | None, layout: Layout) -> None:
    """Before a single token per row: reset states where documents start, and let the others decay, in place."""
    fresh = scan_masks(layout).fresh
    if fresh is not None or layout.dense:
        state.zero_() if fresh is None else state.masked_fill_(fresh[:, None, None, None], 0)
    if log_decay is not None:
        state.mul_(log_decay[:, 0, :, None, None].exp())


class _LinearScan(torch.autograd.Function):
    """The chunkwise form with a hand-written gradient; in addition to its inputs it saves only the state before each
    chunk.
    """

    @staticmethod
    def forward(ctx: Any, q, k, v, log_decay, state, segments, size) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out, states = v.new_empty(v.shape), new_states(k, v, state, size)
        with torch.autocast(q.device.type, enabled=False):  # sums over a document need full precision
            for span in spans(q.shape[1], size, q.shape[0] * q.shape[2], q):
                decay = decays(log_decay, segments, span, size, q)
                qs, ks, vs = (cut(x[:, span], size) for x in (q, k, v))
                scores, inside = weigh_(qs @ ks.mT, decay), span_states(states, span, size)
                # Each chunk's contribution to the state after it.
                for n, part in enumerate(rescale(ks, decay and decay.leave).mT @ vs):
                    if decay is None:
                        torch.add(inside[n], part, out=inside[n + 1])
                    else:
                        torch.addcmul(part, inside[n], decay.through[n], out=inside[n + 1])
                write_span(out, span, add_product_(scores @ vs, rescale(qs, decay and decay.enter), inside[:-1]))
        ctx.save_for_backward(q, k, v, log_decay, segments, states)
        ctx.size = size
        return out, states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, log_decay, segments, states = ctx.saved_tensors
        size, dstate = ctx.size, dfinal
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        gained = q.new_empty(*q.shape[:3], 1)
        with torch.autocast(q.device.type, enabled=False):  # sums over a document need full precision
            for span in reversed(spans(q.shape[1], size, q.shape[0] * q.shape[2], q)):
                decay = decays(log_decay, segments, span, size, q)
                enter, leave = (decay.enter, decay.leave) if decay else (None, None)
                qs, ks, vs, dy = (cut(x[:, span], size) for x in (q, k, v, dout))
                scores, dscores = weigh_(qs @ ks.mT, decay), weigh_(dy @ vs.mT, decay)
                # The gradient of the state before each chunk and after the last, from the contribution of each chunk's
                # reads.
                parts = rescale(qs, enter).mT @ dy
                dstates = parts.new_empty(parts.shape[0] + 1, *parts.shape[1:])
                dstates[-1].copy_(dstate)
                for n in reversed(range(len(parts))):
                    if decay is None:
                        torch.add(dstates[n + 1], parts[n], out=dstates[n])
                    else:
                        torch.addcmul(parts[n], dstates[n + 1], decay.through[n], out=dstates[n])
                dstate, dlater = dstates[0], dstates[1:]
                dqs = add_product_(dscores @ ks, rescale(dy, enter), span_states(states, span, size)[:-1].mT)
                dks = add_product_(dscores.mT @ qs, rescale(vs, leave), dlater.mT)
                write_span(dq, span, dqs)
                write_span(dk, span, dks)
                write_span(dv, span, add_product_(scores.mT @ dy, rescale(ks, leave), dlater))
                if log_decay is not None:
                    write_span(gained, span, (qs * dqs - ks * dks).sum(-1, keepdim=True))
        dlog = None if log_decay is None else log_decay_gradient(gained[..., 0], states[-1], dfinal)
        return dq, dk, dv, dlog, dstate if ctx.needs_input_grad[4] else None, None, None


def new_states(k: Tensor, v: Tensor, first: Tensor | None, size: int) -> Float[Tensor, "M B H K V"]:
    """A buffer for the state before each chunk and after the last, with the first one filled in."""
    batch, length, heads, keys = k.shape
    states = k.new_empty(-(-length // size) + 1, batch, heads, keys, v.shape[-1])
    states[0].zero_() if first is None else states[0].copy_(first)
    return states


def span_states(states: Float[Tensor, "M B H K V"], span: slice, size: int) -> Float[Tensor, "N B H K V"]:
    """The states before each chunk of a span and after its last."""
    return states[span.start // size : -(-span.stop // size) + 1]


def write_span(out: Float[Tensor, "B T H V"], span: slice, chunks: Float[Tensor, "N B H C V"]) -> None:
    """Write the chunks of a span to their positions."""
    out[:, span] = join(chunks, span.stop - span.start)


def add_product_(sum_: Float[Tensor, "N B H C V"], a: Tensor, b: Tensor) -> Float[Tensor, "N B H C V"]:
    """sum + a b, in place."""
    sum_.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2))
    return sum_
