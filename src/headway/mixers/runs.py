"""Documents of a layout as runs of tokens, for what goes through them token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.kernels import Steps
from headway.layout import Layout


class Runs(NamedTuple):
    """The n tokens that are kept, row by row, and to which run each belongs; a run is a document, or what is here of
    one.
    """

    tokens: Int[Tensor, "n"]  # where a token lies in [B T] flattened
    number: Int[Tensor, "n"]  # the run of a token
    step: Int[Tensor, "n"]  # its place in the run
    first: Int[Tensor, "R"]  # the token with which a run begins
    lengths: Int[Tensor, "R"]


def find_runs(layout: Layout) -> Runs:
    return layout.derived("runs", lambda: _find_runs(layout))


def _find_runs(layout: Layout) -> Runs:
    (tokens,) = layout.keep.flatten().nonzero(as_tuple=True)
    rows = tokens // max(layout.length, 1)
    begins = layout.starts.flatten()[tokens]
    begins[:1] = True
    begins[1:] |= rows[1:] != rows[:-1]
    number = begins.long().cumsum(0) - 1
    (first,) = begins.nonzero(as_tuple=True)
    steps = torch.arange(tokens.shape[0], device=tokens.device) - first[number]
    return Runs(tokens, number, steps, first, torch.bincount(number, minlength=first.shape[0]))


def mirror(layout: Layout) -> Int[Tensor, "BT"]:
    """For each place in [B T] flattened that from which it is read when every document is turned round in itself."""
    return layout.derived("mirror", lambda: _mirror(layout))


def _mirror(layout: Layout) -> Tensor:
    runs = find_runs(layout)
    places = torch.arange(layout.positions.numel(), device=layout.positions.device)
    other = runs.first[runs.number] + runs.lengths[runs.number] - 1 - runs.step
    return places.index_copy(0, runs.tokens, runs.tokens[other])


def reverse(x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
    """Every document back to front, in the same layout; padding stays where it is."""
    if layout.dense:
        return x.flip(1)
    return x.flatten(0, 1).index_select(0, mirror(layout)).view(x.shape)


class Packed(NamedTuple):
    """The tokens of a layout as `Steps` have them, without padding.

    `places` are theirs in [B T] flattened, None where that is no more than the transpose. `rows` are the rows of the R
    runs, `fresh` says which begin at position 0. `last` are the runs in which a row ends, `ended` those rows.
    """

    steps: Steps
    places: Int[Tensor, "n"] | None
    rows: Int[Tensor, "R"]
    fresh: Bool[Tensor, "R"]
    last: Int[Tensor, "E"]
    ended: Int[Tensor, "E"]

    def take(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "n D"]:
        if self.places is None:
            return x.transpose(0, 1).flatten(0, 1)
        return x.flatten(0, 1).index_select(0, self.places)

    def put(self, y: Float[Tensor, "n N"], layout: Layout) -> Float[Tensor, "B T N"]:
        """The reverse of `take`; zeros at padding."""
        if self.places is None:
            return y.unflatten(0, (layout.length, layout.batch)).transpose(0, 1)
        whole = y.new_zeros(layout.batch * layout.length, y.shape[1]).index_copy(0, self.places, y)
        return whole.unflatten(0, (layout.batch, layout.length))


def pack(layout: Layout) -> Packed:
    return layout.derived("packed runs", lambda: _pack_dense(layout) if layout.dense else _pack(layout))


def _pack_dense(layout: Layout) -> Packed:
    rows = torch.arange(layout.batch, device=layout.positions.device)
    steps = Steps.equal(layout.batch, layout.length, layout.positions.device)
    return Packed(steps, None, rows, torch.ones_like(rows, dtype=torch.bool), rows, rows)


def _pack(layout: Layout) -> Packed:
    runs = find_runs(layout)
    count = runs.first.shape[0]
    order = runs.lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).index_copy(0, order, torch.arange(count, device=order.device))
    sizes = torch.bincount(runs.step)
    before = sizes.cumsum(0) - sizes
    turned = torch.empty_like(runs.tokens)
    turned[before[runs.step] + rank[runs.number]] = runs.tokens
    ends = before[runs.lengths[order] - 1] + torch.arange(count, device=order.device)
    heads = runs.tokens[runs.first]
    rows = heads // max(layout.length, 1)
    closes = torch.ones_like(rows, dtype=torch.bool)
    closes[:-1] = rows[1:] != rows[:-1]
    fresh = layout.starts.flatten()[heads]
    steps = Steps(tuple(sizes.tolist()), ends)
    return Packed(steps, turned, rows[order], fresh[order], rank[closes], rows[closes])
