"""Token positions: one integer tensor describes offset, padding, packing and resets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar, TypeVarTuple, Unpack

import torch
from jaxtyping import Bool, Int
from torch import Tensor

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True)
class Layout:
    """Positions of a batch of rows.

    `positions` is [B, T]: 0 starts a document and -1 is padding. `dense` is a static promise that every row is one
    unpadded document from position 0, which enables the kernels' fast paths. `group` is [B, T] or None: tokens with an
    equal group above 0 attend to each other in both directions (an image or a prefix before text).
    """

    positions: Int[Tensor, "B T"]
    dense: bool = False
    group: Int[Tensor, "B T"] | None = None

    @staticmethod
    def full(batch: int, length: int, offset: int = 0, device: torch.device | str | None = None) -> Layout:
        """Rows of one document each, starting at position `offset`, without padding."""
        positions = torch.arange(offset, offset + length, device=device).expand(batch, length)
        return Layout(positions, dense=offset == 0)

    @staticmethod
    def padded(lengths: Sequence[int] | Int[Tensor, "B"], length: int | None = None) -> Layout:
        """Rows of one document each with the given lengths, padded at the end to `length`."""
        sizes = torch.as_tensor(lengths, dtype=torch.long)
        max_length = int(sizes.max()) if length is None else length
        steps = torch.arange(max_length, device=sizes.device)
        positions = torch.where(steps < sizes[:, None], steps, -1)
        return Layout(positions, dense=bool((sizes == max_length).all()))

    @staticmethod
    def packed(lengths: Sequence[Sequence[int]], length: int | None = None) -> Layout:
        """Rows of several concatenated documents each, padded at the end to `length`."""
        max_length = max(sum(row) for row in lengths) if length is None else length
        positions = torch.full((len(lengths), max_length), -1)
        for row, sizes in zip(positions, lengths):
            start = 0
            for size in sizes:
                row[start : start + size] = torch.arange(size)
                start += size
        return Layout(positions, dense=all(list(row) == [max_length] for row in lengths))

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    @cached_property
    def mask(self) -> Bool[Tensor, "B T"]:
        """True at tokens, False at padding."""
        return self.positions >= 0

    @cached_property
    def starts(self) -> Bool[Tensor, "B T"]:
        """True at the first token of a document."""
        return self.positions == 0

    @cached_property
    def segments(self) -> Int[Tensor, "B T"]:
        """The number of each token's document, counted within its row."""
        return self.starts.long().cumsum(1)

    @cached_property
    def single(self) -> bool:
        """Whether no row contains more than one document."""
        return self.dense or not bool((self.segments > 1).any())

    @cached_property
    def lengths(self) -> Int[Tensor, "B"]:
        """Tokens per row."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> Layout:
        group = None if self.group is None else self.group.to(device)
        return Layout(self.positions.to(device), self.dense, group)

    def select(self, rows: Int[Tensor, "R"]) -> Layout:
        """The layout of the chosen rows."""
        group = None if self.group is None else self.group[rows]
        return Layout(self.positions[rows], self.dense, group)

    @cached_property
    def _derived(self) -> dict[Any, Any]:
        """Not a field, because FSDP follows the fields of a block's inputs, and a value may refer to its layout."""
        return {}

    def derived(self, key: Any, compute: Callable[[], Any]) -> Any:
        """A value that depends only on this layout (a mask, rotary angles), computed once and shared by all layers."""
        if key not in self._derived:
            self._derived[key] = compute()
        return self._derived[key]


def cached_per_layout(compute: Callable[[Layout, Unpack[Ts]], R]) -> Callable[[Layout, Unpack[Ts]], R]:
    """Cache a function of a layout and plain values per layout, so that all layers share the result."""

    @wraps(compute)
    def shared(layout: Layout, *args: *Ts) -> R:
        return layout.derived((compute, *args), lambda: compute(layout, *args))

    return shared
