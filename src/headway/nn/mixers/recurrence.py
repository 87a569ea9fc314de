"""Base of recurrent networks whose state is a few vectors, over documents as runs of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.layout import Layout, cached_on_host
from headway.nn.kernels import RunSteps
from headway.nn.mixers.base import Mixer, MixerConfig
from headway.nn.parts.projection import Projection


class Runs(NamedTuple):
    """The n tokens without padding, row by row, and the run of each; a run is a document or a part of one."""

    tokens: Int[Tensor, "n"]  # index of a token in [B T] flattened
    number: Int[Tensor, "n"]  # run of a token
    step: Int[Tensor, "n"]  # index of a token within its run
    first: Int[Tensor, "R"]  # first token of a run
    lengths: Int[Tensor, "R"]


@cached_on_host
def find_runs(layout: Layout) -> Runs:
    (tokens,) = layout.mask.flatten().nonzero(as_tuple=True)
    rows = tokens // max(layout.length, 1)
    is_start = layout.starts.flatten()[tokens]
    is_start[:1] = True
    is_start[1:] |= rows[1:] != rows[:-1]
    number = is_start.long().cumsum(0) - 1
    (first,) = is_start.nonzero(as_tuple=True)
    steps = torch.arange(tokens.shape[0], device=tokens.device) - first[number]
    return Runs(tokens, number, steps, first, torch.bincount(number, minlength=first.shape[0]))


@cached_on_host
def mirror(layout: Layout) -> Int[Tensor, "BT"]:
    """Source index of each index in [B T] flattened to reverse every document in place."""
    runs = find_runs(layout)
    indices = torch.arange(layout.positions.numel(), device=layout.positions.device)
    mirrored = runs.first[runs.number] + runs.lengths[runs.number] - 1 - runs.step
    return indices.index_copy(0, runs.tokens, runs.tokens[mirrored])


def reverse(x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
    """Reverse every document in the same layout; padding stays in place."""
    if layout.dense:
        return x.flip(1)
    return x.flatten(0, 1).index_select(0, mirror(layout)).view(x.shape)


class PackedRuns(NamedTuple):
    """The tokens of a layout in the order of `RunSteps`, without padding.

    `indices` are those in [B T] flattened, None if the order is the transpose. `rows` are the rows of the R runs,
    `fresh` marks runs that start at position 0. `last` are the last runs of rows, `ended` those rows.
    """

    steps: RunSteps
    indices: Int[Tensor, "n"] | None
    rows: Int[Tensor, "R"]
    fresh: Bool[Tensor, "R"]
    last: Int[Tensor, "E"]
    ended: Int[Tensor, "E"]

    def take(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "n D"]:
        if self.indices is None:
            return x.transpose(0, 1).flatten(0, 1)
        return x.flatten(0, 1).index_select(0, self.indices)

    def put(self, y: Float[Tensor, "n N"], layout: Layout) -> Float[Tensor, "B T N"]:
        """The reverse of `take`; zeros at padding."""
        if self.indices is None:
            return y.unflatten(0, (layout.length, layout.batch)).transpose(0, 1)
        padded = y.new_zeros(layout.batch * layout.length, y.shape[1]).index_copy(0, self.indices, y)
        return padded.unflatten(0, (layout.batch, layout.length))


@cached_on_host
def pack(layout: Layout) -> PackedRuns:
    if layout.dense:
        rows = torch.arange(layout.batch, device=layout.positions.device)
        steps = RunSteps.equal(layout.batch, layout.length, layout.positions.device)
        return PackedRuns(steps, None, rows, torch.ones_like(rows, dtype=torch.bool), rows, rows)
    runs = find_runs(layout)
    count = runs.first.shape[0]
    order = runs.lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).index_copy(0, order, torch.arange(count, device=order.device))
    sizes = torch.bincount(runs.step)
    before = sizes.cumsum(0) - sizes
    packed_tokens = torch.empty_like(runs.tokens)
    packed_tokens[before[runs.step] + rank[runs.number]] = runs.tokens
    last_tokens = before[runs.lengths[order] - 1] + torch.arange(count, device=order.device)
    heads = runs.tokens[runs.first]
    rows = heads // max(layout.length, 1)
    is_last = torch.ones_like(rows, dtype=torch.bool)
    is_last[:-1] = rows[1:] != rows[:-1]
    fresh = layout.starts.flatten()[heads]
    steps = RunSteps(tuple(sizes.tolist()), last_tokens)
    return PackedRuns(steps, packed_tokens, rows[order], fresh[order], rank[is_last], rows[is_last])


def one_step(layout: Layout) -> PackedRuns:
    """One token per row, padding included, without a look at positions."""

    def compute() -> PackedRuns:
        rows = torch.arange(layout.batch, device=layout.positions.device)
        return PackedRuns(RunSteps((layout.batch,), rows), None, rows, layout.starts[:, 0], rows, rows)

    return layout.derived("one step", compute)


@dataclass(frozen=True)
class RecurrenceConfig(MixerConfig):
    """A recurrent network over the tokens of each document."""

    cells: int | None = None  # units of the state; none: the model's width
    out: bool = True  # whether an output projection follows
    learned_start: bool = False  # whether the vectors from which documents start are learned

    def width_out(self, width: int) -> int:
        return width if self.out or self.cells is None else self.cells


class Vectors(NamedTuple):
    """The current vectors of each row, and the vectors from which documents start."""

    now: tuple[Float[Tensor, "B N"], ...]
    start: tuple[Float[Tensor, "B N"], ...]


class Recurrence(Mixer):
    """A cell applied to one token after the other; subclasses define it in `scan`.

    Each step processes one token of every document in a batch, the longest documents first, so that padding costs
    nothing and packed documents run in parallel.
    """

    bridged = True
    vectors = 1  # number of vectors in a state; h is the first
    start_value = 0.0  # initial value of learned starts

    def __init__(self, config: RecurrenceConfig, width: int) -> None:
        super().__init__()
        self.cells = width if config.cells is None else config.cells
        if self.cells < 1:
            raise ConfigError(f"cells is {self.cells}; set 1 or more, or none for the model's width")
        starts = [nn.Parameter(torch.full((self.cells,), self.start_value)) for _ in range(self.vectors)]
        self.start = nn.ParameterList(starts) if config.learned_start else None
        self.out = Projection(self.cells, width, residual=True) if config.out else nn.Identity()

    def scan(
        self, x: Float[Tensor, "n D"], start: tuple[Tensor, ...], steps: RunSteps
    ) -> tuple[Float[Tensor, "n N"], tuple[Tensor, ...]]:
        """h after every token, and all vectors after each run's last."""
        raise NotImplementedError

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return (self.cells,) * self.vectors

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T E"]:
        packed = pack(layout)
        y, _ = self._scan(packed.take(x), self._start(packed.rows.shape[0], x), packed.steps)
        return self.out(packed.put(y, layout))

    def recurrent(self, x: Float[Tensor, "B T D"], layout: Layout, state: Vectors) -> tuple[Tensor, Vectors]:
        if x.shape[1] == 1:
            start = tuple(torch.where(layout.starts, first, now) for first, now in zip(state.start, state.now))
            y, final = self._scan(x[:, 0], start, one_step(layout).steps)
            now = tuple(torch.where(layout.mask, end.to(v.dtype), v) for end, v in zip(final, state.now))
            return self.out(y[:, None]), Vectors(now, state.start)
        packed = pack(layout)
        fresh = packed.fresh[:, None]
        start = tuple(torch.where(fresh, *(v[packed.rows] for v in pair)) for pair in zip(state.start, state.now))
        y, final = self._scan(packed.take(x), start, packed.steps)
        now = tuple(v.index_copy(0, packed.ended, e[packed.last].to(v.dtype)) for v, e in zip(state.now, final))
        return self.out(packed.put(y, layout)), Vectors(now, state.start)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> Vectors:
        return self.state_from(self._start(batch, like), capacity, like=like)

    def carry(self, state: Vectors) -> Vectors:
        cut = super().carry(state)
        return cut if self.start is None else cut._replace(start=self._start(cut.now[0].shape[0], cut.now[0]))

    def final(self, state: Vectors) -> tuple[Float[Tensor, "B N"], ...]:
        return state.now

    def state_from(self, vectors: tuple[Float[Tensor, "B N"], ...], capacity: int, *, like: Tensor) -> Vectors:
        sizes = tuple(vector.shape[-1] for vector in vectors)
        if sizes != self.state_sizes:
            raise ConfigError(
                f"vectors of sizes {sizes} cannot initialise {type(self).__name__}, whose state has sizes "
                f"{self.state_sizes}; project them to these sizes"
            )
        # Rows of a state are moved in place, so its tensors must not share memory.
        return Vectors(*(tuple(v.to(like.dtype, copy=True) for v in vectors) for _ in range(2)))

    def _scan(self, x: Tensor, start: tuple[Tensor, ...], steps: RunSteps) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not steps.sizes:
            return x.new_zeros(0, self.cells), start
        return self.scan(x, start, steps)

    def _start(self, runs: int, like: Tensor) -> tuple[Tensor, ...]:
        if self.start is None:
            return tuple(like.new_zeros(runs, self.cells) for _ in range(self.vectors))
        return tuple(vector.to(like.dtype).expand(runs, -1) for vector in self.start)
