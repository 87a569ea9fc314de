"""What all networks share whose state is a few vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.kernels import Steps
from headway.layout import Layout
from headway.mixers.base import Mixer, MixerConfig
from headway.mixers.runs import pack
from headway.parts.projection import Projection


@dataclass(frozen=True)
class RecurrenceConfig(MixerConfig):
    """`cells` are the units of the state, None for as many as the model is wide; without `out` what they say is the
    output as it is, with it a projection follows. `learned_start` trains the vectors that documents start from.
    """

    cells: int | None = None  # units of the state; none: as many as the model is wide
    out: bool = True  # whether a projection follows
    learned_start: bool = False

    @property
    def causal(self) -> bool:
        return True

    def width_out(self, width: int) -> int:
        return width if self.out or self.cells is None else self.cells


class Vectors(NamedTuple):
    """What a row has come to, and what it returns to where a document starts."""

    now: tuple[Float[Tensor, "B N"], ...]
    start: tuple[Float[Tensor, "B N"], ...]


class Recurrence(Mixer):
    """A cell over one token after the other; a subclass says in `scan` what the cell does.

    Tokens come to the cell step by step over all documents of a batch, the longest first, so that padding costs
    nothing and packed documents run side by side.
    """

    bridged = True
    vectors = 1  # how many make up a state; h is the first
    beginning = 0.0  # where learned starts start

    def __init__(self, config: RecurrenceConfig, width: int) -> None:
        super().__init__()
        self.cells = _cells(config, width)
        starts = [nn.Parameter(torch.full((self.cells,), self.beginning)) for _ in range(self.vectors)]
        self.start = nn.ParameterList(starts) if config.learned_start else None
        self.out = Projection(self.cells, width, writes=True) if config.out else nn.Identity()

    def scan(
        self, x: Float[Tensor, "n D"], start: tuple[Tensor, ...], steps: Steps
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
            return self._step(x, layout, state)
        packed = pack(layout)
        fresh = packed.fresh[:, None]
        begin = tuple(torch.where(fresh, *(v[packed.rows] for v in pair)) for pair in zip(state.start, state.now))
        y, ends = self._scan(packed.take(x), begin, packed.steps)
        now = tuple(v.index_copy(0, packed.ended, e[packed.last].to(v.dtype)) for v, e in zip(state.now, ends))
        return self.out(packed.put(y, layout)), Vectors(now, state.start)

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> Vectors:
        return self.begin(self._start(batch, like), capacity, like=like)

    def carry(self, state: Vectors) -> Vectors:
        cut = super().carry(state)
        return cut if self.start is None else cut._replace(start=self._start(cut.now[0].shape[0], cut.now[0]))

    def final(self, state: Vectors) -> tuple[Float[Tensor, "B N"], ...]:
        return state.now

    def begin(self, vectors: tuple[Float[Tensor, "B N"], ...], capacity: int, *, like: Tensor) -> Vectors:
        sizes = tuple(vector.shape[-1] for vector in vectors)
        if sizes != self.state_sizes:
            raise ConfigError(
                f"vectors of sizes {sizes} cannot start a {type(self).__name__}, whose state has {self.state_sizes}; "
                "project them to that"
            )
        # Rows of a state are moved in place, so no tensor of it may be another's memory.
        return Vectors(*(tuple(v.to(like.dtype, copy=True) for v in vectors) for _ in range(2)))

    def _step(self, x: Tensor, layout: Layout, state: Vectors) -> tuple[Tensor, Vectors]:
        """One token of each row, without any search for documents."""
        begin = tuple(torch.where(layout.starts, first, now) for first, now in zip(state.start, state.now))
        steps = layout.derived("one step", lambda: Steps.equal(layout.batch, 1, x.device))
        y, ends = self._scan(x[:, 0], begin, steps)
        now = tuple(torch.where(layout.keep, end.to(v.dtype), v) for end, v in zip(ends, state.now))
        return self.out(y[:, None]), Vectors(now, state.start)

    def _scan(self, x: Tensor, start: tuple[Tensor, ...], steps: Steps) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not steps.sizes:
            return x.new_zeros(0, self.cells), start
        return self.scan(x, start, steps)

    def _start(self, runs: int, like: Tensor) -> tuple[Tensor, ...]:
        if self.start is None:
            return tuple(like.new_zeros(runs, self.cells) for _ in range(self.vectors))
        return tuple(vector.to(like.dtype).expand(runs, -1) for vector in self.start)


def _cells(config: RecurrenceConfig, width: int) -> int:
    cells = width if config.cells is None else config.cells
    if cells < 1:
        raise ConfigError(f"cells {cells} is not a number of cells; give 1 or more, or none for the model's width")
    return cells
