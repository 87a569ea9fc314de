"""The interface of mixers along time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import family
from headway.errors import ConfigError
from headway.layout import Layout

State = Any  # a NamedTuple of tensors (or a tuple of such), with the batch as first dimension
Memory = Any  # the output of `remember` for an encoder's output: a NamedTuple of tensors and its layout


@family
@dataclass(frozen=True)
class MixerConfig:
    """A layer that mixes along time."""

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input. Only causal mixers can generate."""
        return True

    @property
    def reads_memory(self) -> bool:
        """Whether it reads an encoder's output."""
        return False

    def width_out(self, width: int) -> int:
        """Output width for inputs of `width`."""
        return width

    def build(self, width: int, biases: nn.ModuleDict) -> Mixer:
        """Build the module for a model of `width`; `biases` are the Stack's score biases by name."""
        raise NotImplementedError


class Mixer(nn.Module):
    """Mixes along time: in parallel over whole documents, or step by step with a state of one document per row."""

    causal: bool = True
    rewindable: bool = False  # whether a state can be truncated to an earlier position
    bridged: bool = False  # whether a state is vectors of a fixed size, which a bridge can pass to a decoder
    reads_memory: bool = False  # whether `forward` needs the output of `remember`

    @property
    def scan_flop(self) -> int:
        """Additions and multiplications per token, apart from products with projections."""
        return 0

    def parallel(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T E"]:
        """Process all tokens at once; rows may contain several documents and padding."""
        raise NotImplementedError

    def recurrent(
        self, x: Float[Tensor, "B T D"], layout: Layout, state: State
    ) -> tuple[Float[Tensor, "B T E"], State]:
        """Process the next T >= 1 tokens of each row from `state`; padding leaves a row's state unchanged.

        Without gradients the state's buffers may be written in place: `select` a copy to keep an earlier state.
        """
        raise NotImplementedError

    def initial_state(self, batch: int, capacity: int, *, like: Tensor) -> State:
        """The state before any token, for up to `capacity` tokens, with the dtype and device of `like`."""
        raise NotImplementedError

    def carry(self, state: State) -> State:
        """The final state of one batch as the initial state of the next: detached, and with the current weights if
        documents start from learned vectors.
        """
        return tree_map(Tensor.detach, state)

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Sizes N of a state's vectors."""
        raise ConfigError(self._no_vectors_message())

    def final(self, state: State) -> tuple[Float[Tensor, "B N"], ...]:
        """The vectors of a state: h and c of an LSTM, h of a GRU."""
        raise ConfigError(self._no_vectors_message())

    def state_from(self, vectors: tuple[Float[Tensor, "B N"], ...], capacity: int, *, like: Tensor) -> State:
        """A state that starts from `vectors`, also at every later position 0."""
        raise ConfigError(self._no_vectors_message())

    def encode(
        self, x: Float[Tensor, "B T D"], layout: Layout
    ) -> tuple[Float[Tensor, "B T E"], tuple[tuple[Float[Tensor, "B N"], ...], ...]]:
        """The output of `parallel`, and the final vectors of each direction. One document per row."""
        y, state = self.recurrent(x, layout, self.initial_state(x.shape[0], x.shape[1], like=x))
        return y, (self.final(state),)

    def remember(self, encoded: Float[Tensor, "M S E"], layout: Layout) -> Memory:
        """Project an encoder's output once, for a mixer that reads a memory."""
        raise NotImplementedError

    def _no_vectors_message(self) -> str:
        name = type(self).__name__
        return f"the state of {name} is not a set of vectors; choose lstm, gru or elman, or let it read a memory"

    def forward(
        self, x: Tensor, layout: Layout, state: State | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, State | None]:
        """`parallel` without a state, `recurrent` with one. `memory` is for mixers that read one."""
        if state is None:
            return self.parallel(x, layout), None
        if not self.causal:
            raise ConfigError(
                f"{type(self).__name__} sees later tokens and cannot generate; use a causal pattern or mixer"
            )
        return self.recurrent(x, layout, state)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function` to the tensors and layouts of nested tuples; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, child) for child in tree))
    if isinstance(tree, tuple):
        return tuple(tree_map(function, child) for child in tree)
    return function(tree)


def select(states: State, rows: Int[Tensor, "R"]) -> State:
    """States of the chosen rows in that order, for beam search, continuous batching and prefix reuse."""
    return tree_map(lambda part: part.select(rows) if isinstance(part, Layout) else part.index_select(0, rows), states)


def zeros(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.zeros(shape, dtype=dtype or like.dtype, device=like.device)
