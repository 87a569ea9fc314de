"""Gated recurrent units that read an encoder's output inside the cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.kernels import RunSteps, is_deterministic, linear, pointwise, recorder
from headway.nn.mixers.recurrence import PackedRuns, Recurrence, RecurrenceConfig, Vectors, one_step, pack
from headway.nn.parts.projection import Projection


@register("conditional_gru")
@dataclass(frozen=True)
class ConditionalGRUConfig(RecurrenceConfig):
    """A GRU whose cell also gets a context from the encoder's output (the memory).

    context: "additive" attention to the memory for each token, or the memory's last vector for all tokens ("fixed").
    memory: width of the memory; none: the encoder's width.
    alignment: units of the additive attention; none: as many as cells.
    reset_after: whether the reset gate acts on U s + C c (Cho et al. 2014) instead of s (Bahdanau et al. 2015).
    shows: the state in the output, "after" its token or "before" it. Without `out` the output is state, input and
    context concatenated, for a deep output; otherwise a projection of state and context.
    """

    context: Literal["additive", "fixed"] = "additive"
    memory: int | None = None
    alignment: int | None = None
    reset_after: bool = False
    shows: Literal["after", "before"] = "after"

    @property
    def reads_memory(self) -> bool:
        return True

    def width_out(self, width: int) -> int:
        return width if self.out else (self.cells or width) + width + (self.memory or width)

    def build(self, width: int, biases: nn.ModuleDict) -> ConditionalGRU:
        return ConditionalGRU(self, width)


class Annotations(NamedTuple):
    """An encoded sequence, projected once: the encoder's output per token, and U_a h_j + b of the alignment."""

    values: Float[Tensor, "M S E"]
    keys: Float[Tensor, "M S A"]
    layout: Layout


class Summary(NamedTuple):
    """The fixed vector c of each source, and C c."""

    value: Float[Tensor, "M E"]
    gates: Float[Tensor, "M 3N"]


class ContextOutput(NamedTuple):
    """The context of a step: c, C c, and the attention weights, if any."""

    context: Float[Tensor, "R E"]
    gates: Float[Tensor, "R 3N"]
    weights: Float[Tensor, "R S"] | None


class ConditionalGRU(Recurrence):
    """s = z s' + (1 - z) n with s' the previous s, r, z = logistic(W x + U s' + C c), n = tanh(W x + U (r s') + C c).

    additive: c = sum_j a_j h_j, a = softmax_j(v . tanh(W_a s' + U_a h_j)) (Bahdanau, Cho and Bengio 2015, equations 5
    and 6, appendix A.2.2). fixed: one c for all tokens; with `reset_after` n = tanh(W x + r (U s' + C c)) (Cho et al.
    2014, RNN Encoder-Decoder, appendix A).
    """

    reads_memory = True

    def __init__(self, config: ConditionalGRUConfig, width: int) -> None:
        super().__init__(config, width)
        self.config = config
        memory, units = (width if config.memory is None else config.memory), config.alignment or self.cells
        if min(memory, units) < 1:
            raise ConfigError(f"memory={memory} and alignment={units}: each must be at least 1, or none")
        gates = (self.cells,) * 3
        self.input = Projection(width, gates)
        self.hidden = Projection(self.cells, gates, bias=False, recurrent=True)
        self.context = Projection(memory, gates, bias=False)
        if config.context == "additive":
            self.query = Projection(self.cells, units, bias=False)
            self.keys = Projection(memory, units)
            self.score = Projection(units, 1, bias=False)
        self.output_width = self.cells + memory + (0 if config.out else width)
        self.out = Projection(self.output_width, width, residual=True) if config.out else nn.Identity()

    @property
    def scan_flop(self) -> int:
        """N (5) for z s' + (1 - z) n and for the reset gate."""
        return 5 * self.cells

    def remember(self, encoded: Float[Tensor, "M S E"], layout: Layout) -> Annotations | Summary:
        if not layout.single:
            raise UserError("packed memory rows contain several sources; pass one source per row to a conditional_gru")
        if self.config.context == "additive":
            return Annotations(encoded, self.keys(encoded), layout)
        last = encoded[torch.arange(layout.batch, device=encoded.device), layout.lengths - 1]
        return Summary(last, self.context(last))

    def forward(
        self, x: Tensor, layout: Layout, state: Vectors | None = None, memory: Annotations | Summary | None = None
    ) -> tuple[Tensor, Vectors | None]:
        if state is None:
            return self.parallel(x, layout, memory), None
        return self.recurrent(x, layout, state, memory)

    def parallel(
        self, x: Float[Tensor, "B T D"], layout: Layout, memory: Annotations | Summary | None = None
    ) -> Float[Tensor, "B T E"]:
        """The scan of `recurrent` from the initial state; one document per row."""
        if not layout.single:
            raise UserError("packed rows contain several targets; pass one target per row to a conditional_gru")
        return self.recurrent(x, layout, self.initial_state(x.shape[0], x.shape[1], like=x), memory)[0]

    def recurrent(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: Vectors, memory: Annotations | Summary | None = None
    ) -> tuple[Float[Tensor, "B T E"], Vectors]:
        """B may be W times the number of memories M; row r then reads memory r // W, as with W beams per sentence."""
        packed = pack(layout) if x.shape[1] > 1 or layout.is_readable else one_step(layout)
        if not packed.steps.sizes:
            return self.out(x.new_zeros(*x.shape[:2], self.output_width)), state
        start = torch.where(packed.fresh[:, None], state.start[0][packed.rows], state.now[0][packed.rows])
        tokens = packed.take(x)
        read = self._reader(memory, layout, packed)
        before, after, context = self._unroll(self.input(tokens), start, packed.steps, read)
        if context.weights is not None and (record := recorder()) is not None:
            record(packed.put(context.weights.detach(), layout)[:, None])
        states = before if self.config.shows == "before" else after
        parts = (states, context.context) if self.config.out else (states, tokens, context.context)
        final, old = after[packed.steps.last][packed.last].to(state.now[0].dtype), state.now[0][packed.ended]
        is_token = layout.mask[packed.ended].any(1, keepdim=True)
        now = state.now[0].index_copy(0, packed.ended, torch.where(is_token, final, old))
        return self.out(packed.put(torch.cat(parts, dim=-1), layout)), Vectors((now,), state.start)

    def _unroll(
        self,
        gates: Float[Tensor, "n F"],
        start: Float[Tensor, "R N"],
        steps: RunSteps,
        read: Callable[[Tensor], ContextOutput],
    ) -> tuple[Float[Tensor, "n N"], Float[Tensor, "n N"], ContextOutput]:
        """The states before and after each token, and its context."""
        size = 2 * self.cells
        outer, inner = self.hidden.matrix().split((size, self.cells))
        states, outputs = [start], []
        for inputs in gates.split(steps.sizes):
            s = states[-1][: inputs.shape[0]]
            outputs.append(read(s))
            context = outputs[-1].gates
            if self.config.reset_after:
                both = inputs[:, :size] + linear(s, outer) + context[:, :size]
                r, z = pointwise(torch.sigmoid, both).chunk(2, dim=-1)
                new = inputs[:, size:] + r * (linear(s, inner) + context[:, size:])
            else:
                both = inputs + context
                r, z = pointwise(torch.sigmoid, both[:, :size] + linear(s, outer)).chunk(2, dim=-1)
                new = both[:, size:] + linear(r * s, inner)
            states.append(torch.lerp(pointwise(torch.tanh, new), s, z))
        befores = torch.cat([state[:rows] for state, rows in zip(states, steps.sizes)])
        weights = None if outputs[0].weights is None else torch.cat([output.weights for output in outputs])  # type: ignore[misc]
        contexts, through = (torch.cat(parts) for parts in list(zip(*outputs))[:2])
        return befores, torch.cat(states[1:]), ContextOutput(contexts, through, weights)

    def _reader(
        self, memory: Annotations | Summary | None, layout: Layout, packed: PackedRuns
    ) -> Callable[[Tensor], ContextOutput]:
        """A function from the states before a step (of the first runs) to their contexts."""
        if memory is None:
            raise ConfigError("a conditional_gru needs the output of an encoder; use it in a decoder")
        if isinstance(memory, Summary):
            vector, gates = (part[packed.rows // (layout.batch // part.shape[0])] for part in memory)
            return lambda s: ContextOutput(vector[: s.shape[0]], gates[: s.shape[0]], None)
        rows = packed.rows // (layout.batch // memory.keys.shape[0])
        values, keys = memory.values[rows], memory.keys[rows]
        mask = None if memory.layout.dense else memory.layout.mask[rows]
        score = self.score.matrix()

        def read(s: Tensor) -> ContextOutput:
            n = s.shape[0]
            step_mask = mask if mask is None else mask[:n]
            context, weights = additive(self.query(s), _first(keys, n), _first(values, n), step_mask, score)
            return ContextOutput(context, self.context(context), weights)

        return read


def additive(
    query: Float[Tensor, "R A"],
    keys: Float[Tensor, "R S A"],
    values: Float[Tensor, "R S E"],
    mask: Bool[Tensor, "R S"] | None,
    score: Float[Tensor, "1 A"],
) -> tuple[Float[Tensor, "R E"], Float[Tensor, "R S"]]:
    """sum_j a_j v_j and a = softmax_j(score . tanh(query + k_j)) over the j in `mask`, or all if it is None (Bahdanau,
    Cho and Bengio 2015, equations 5 and 6).
    """
    if is_deterministic():  # each row over exactly its own keys, so that other rows cannot change the result
        contexts, weights = [], query.new_zeros(keys.shape[:2])
        for row in range(query.shape[0]):
            row_mask = slice(None) if mask is None else mask[row]
            row_weights = (torch.tanh(query[row] + keys[row][row_mask]) * score).sum(-1).softmax(-1)
            contexts.append((row_weights[:, None] * values[row][row_mask]).sum(0))
            weights[row, row_mask] = row_weights
        return torch.stack(contexts) if contexts else values.new_zeros(0, values.shape[-1]), weights
    scores = linear(torch.tanh(query[:, None] + keys), score)[..., 0]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return torch.bmm(weights[:, None], values)[:, 0], weights


def _first(part: Tensor, count: int) -> Tensor:
    """The first rows; the tensor itself if all, because the gradient of a slice is a full copy."""
    return part if count == part.shape[0] else part[:count]
