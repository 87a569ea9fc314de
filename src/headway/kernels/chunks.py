"""What the chunkwise scans share: rows cut into chunks, and the decays within and between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.errors import ConfigError, UserError
from headway.layout import Layout


class Marks(NamedTuple):
    """What a scan has to heed in a layout, None where there is nothing of the kind.

    segments: the number of a token's document within its row, 0 for the first; keep: where there is a token; fresh:
    rows whose first token starts a document, so that they do not read the state that was given.
    """

    segments: Int[Tensor, "B T"] | None = None
    keep: Bool[Tensor, "B T"] | None = None
    fresh: Bool[Tensor, "B"] | None = None


def marks(layout: Layout) -> Marks:
    return Marks() if layout.dense else layout.derived("marks", lambda: _marks(layout))


def _marks(layout: Layout) -> Marks:
    first, later = layout.starts[:, 0], layout.starts[:, 1:]
    return Marks(
        F.pad(later.long().cumsum(1), (1, 0)) if bool(later.any()) else None,
        None if bool(layout.keep.all()) else layout.keep,
        first if bool(first.any()) else None,
    )


def entering(state: Tensor | None, layout: Layout) -> Tensor | None:
    """The state that the first tokens read: zero, or None, where they start a document."""
    if state is None or layout.dense:
        return None
    fresh = marks(layout).fresh
    return state if fresh is None else state.masked_fill(fresh.view(-1, *[1] * (state.dim() - 1)), 0)


def chunk_size(chunk: int, length: int) -> int:
    """The size to cut `length` tokens into; raises where there is nothing to cut or no size to cut to."""
    check_chunk(chunk)
    if length < 1:
        raise UserError("a sequence of 0 tokens has nothing to scan; give 1 or more")
    return min(chunk, length)


def check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ConfigError(f"chunk {chunk!r} is not a number of tokens; give 1 or more, as a rule 64")


_CACHED = 2**18  # scores that are computed together: a megabyte, so that they never leave a core's second cache


def spans(length: int, size: int, rows: int, like: Tensor) -> list[slice]:
    """The tokens in runs of whole chunks of `rows` heads: as many as stay in the cache of a CPU, elsewhere all."""
    together = max(1, _CACHED // (rows * size * size)) if like.device.type == "cpu" else length
    return [slice(start, min(start + together * size, length)) for start in range(0, length, together * size)]


def cut(x: Float[Tensor, "B T H K"], size: int) -> Float[Tensor, "N B H C K"]:
    """Chunks of `size` tokens, the last one filled up with zeros, each in one piece of storage."""
    batch, length, heads, width = x.shape
    count = -(-length // size)
    if count * size != length:
        x = F.pad(x, (0, 0, 0, 0, 0, count * size - length))
    return x.view(batch, count, size, heads, width).permute(1, 0, 3, 2, 4).contiguous()


def join(chunks: Float[Tensor, "N B H C K"], length: int) -> Float[Tensor, "B T H K"]:
    """The reverse of `cut`."""
    count, batch, heads, size, width = chunks.shape
    return chunks.permute(1, 0, 3, 2, 4).reshape(batch, count * size, heads, width)[:, :length]


class Decays(NamedTuple):
    """What remains of a token's writing: at a later token of its chunk (0 at earlier ones and across documents), from
    the chunk's entry to a token, from a token to the chunk's end, and through the whole chunk.

    All are products of decays of at most 1, made from differences of logarithms, so that nothing overflows.
    """

    inner: Float[Tensor, "N B #H C C"]
    enter: Float[Tensor, "N B #H C 1"]
    leave: Float[Tensor, "N B #H C 1"]
    through: Float[Tensor, "N B #H 1 1"]


def decays(
    log_decay: Float[Tensor, "B T #H"] | None,
    segments: Int[Tensor, "B T"] | None,
    span: slice,
    size: int,
    like: Tensor,
) -> Decays | None:
    """The decays of the chunks of `size` within a span; None where nothing decays and no document ends."""
    if log_decay is None and segments is None:
        return None
    hidden = torch.ones(size, size, dtype=torch.bool, device=like.device).triu(1)
    within = None if segments is None else _within(segments, span, size)
    if within is not None:
        hidden = hidden | ~within.inner
    if log_decay is None:
        assert within is not None
        return Decays((~hidden).to(like.dtype), *(part.to(like.dtype) for part in within[1:]))
    total = cut(log_decay[:, span, :, None], size).squeeze(-1).cumsum(-1)
    last = total[..., -1:]
    found = Decays(
        (total[..., :, None] - total[..., None, :]).masked_fill_(hidden, -torch.inf).exp(),
        total.exp()[..., None],
        (last - total).exp()[..., None],
        last.exp()[..., None],
    )
    return found if within is None else Decays(found.inner, *(a * b for a, b in zip(found[1:], within[1:])))


class _Within(NamedTuple):
    """Decays as booleans: whether no document ends in between."""

    inner: Bool[Tensor, "N B 1 C C"]
    enter: Bool[Tensor, "N B 1 C 1"]
    leave: Bool[Tensor, "N B 1 C 1"]
    through: Bool[Tensor, "N B 1 1 1"]


def _within(segments: Int[Tensor, "B T"], span: slice, size: int) -> _Within:
    inside = segments[:, span]
    batch, length = inside.shape
    count = -(-length // size)
    filled = torch.cat([inside, inside[:, -1:].expand(batch, count * size - length)], dim=1)
    chunks = filled.view(batch, count, 1, size, 1).transpose(0, 1)
    last = chunks[..., -1:, :]
    first = segments[:, span.start - 1] if span.start else torch.zeros_like(segments[:, 0])
    before = torch.cat([first.view(1, batch, 1, 1, 1), last[:-1]])
    return _Within(chunks == chunks.mT, chunks == before, chunks == last, last == before)


def weigh_(scores: Float[Tensor, "N B H C C"], decays: Decays | None, diagonal: int = 0) -> Float[Tensor, "N B H C C"]:
    """Scores of token i (rows) for token j, decayed, and 0 for those after i (`diagonal` 0) or from i on (-1)."""
    if decays is not None:
        scores.mul_(decays.inner)
    return scores.tril_(diagonal) if decays is None or diagonal else scores


def faded(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def log_decay_gradient(gained: Float[Tensor, "B T H"], final: Tensor, dfinal: Tensor) -> Float[Tensor, "B T H"]:
    """The gradient of the log decays, given that of their running sum at each token (x . dx of all that reads less
    w . dw of all that writes there) and the state at the end, which the whole sum scales.
    """
    return gained.flip(1).cumsum(1).flip(1) + (final * dfinal).sum((-1, -2))[:, None]


@contextmanager
def exact(like: Tensor) -> Iterator[None]:
    """No autocast within: sums over a whole document need all the bits there are."""
    with torch.autocast(like.device.type, enabled=False):
        yield


def widened(*tensors: Tensor | None) -> list[Tensor | None]:
    """At least fp32, where states and sums of many terms are kept."""
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
