"""Token positions: one integer tensor describes offset, padding, packing and resets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar, TypeVarTuple, Unpack

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_HOST = "host"  # the key of a layout's copy on the CPU among the values derived from it
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
            row[: sum(sizes)] = torch.cat([torch.arange(size) for size in (0, *sizes)])
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

    @property
    def host(self) -> Layout:
        """This layout on the CPU, if it was copied from there. A program reads values there, without waiting."""
        return self._derived.get(_HOST, self)

    @property
    def is_readable(self) -> bool:
        """Whether a program may read positions without waiting for a GPU, and is not being exported."""
        return self.host.positions.device.type == "cpu" and not torch.compiler.is_exporting()

    @cached_property
    def single(self) -> bool:
        """Whether no row contains more than one document."""
        return self.dense or not bool((self.host.segments > 1).any())

    @cached_property
    def lengths(self) -> Int[Tensor, "B"]:
        """Tokens per row."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> Layout:
        copied = Layout(to_device(self.positions, device), self.dense, to_device(self.group, device))
        if self.positions.device.type == "cpu" and copied.positions.device.type != "cpu":
            copied._derived[_HOST] = self
        return copied

    def select(self, rows: Int[Tensor, "R"]) -> Layout:
        """The layout of the chosen rows."""
        group = None if self.group is None else self.group[rows]
        layout = Layout(self.positions[rows], self.dense, group)
        vars(layout).update({"single": True} if vars(self).get("single") else {})  # known without reading a GPU
        return layout

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


def cached_on_host(compute: Callable[[Layout, Unpack[Ts]], R]) -> Callable[[Layout, Unpack[Ts]], R]:
    """`cached_per_layout` for shapes that depend on positions: computed on the CPU, copied to the layout's device."""

    @wraps(compute)
    def shared(layout: Layout, *args: *Ts) -> R:
        return layout.derived((compute, *args), lambda: to_device(compute(layout.host, *args), layout.positions.device))

    return shared


def to_device(tree: Any, device: torch.device | str) -> Any:
    """Copy the tensors and layouts of nested tuples to a device; other values stay.

    A GPU reads them from pinned memory, so neither the program nor the work that the GPU has already been given waits.
    """
    if isinstance(tree, tuple):
        parts = [to_device(part, device) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, Layout):
        return tree.to(device)
    if not isinstance(tree, Tensor):
        return tree
    if tree.device.type != "cpu" or torch.device(device).type in ("cpu", "mps") or torch.compiler.is_compiling():
        return tree.to(device)
    return tree.pin_memory().to(device, non_blocking=True)
