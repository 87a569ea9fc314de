"""Attention patterns over positions, and the masks that they produce from layouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout


@family
@dataclass(frozen=True)
class Pattern:
    """An attention pattern over positions within one document."""

    def allows(self, query: Int[Tensor, "..."], key: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True where a query at position `query` may attend to a key at position `key`."""
        raise NotImplementedError

    @property
    def causal(self) -> bool:
        """Whether no position attends to a later one."""
        return False


@register("full")
@dataclass(frozen=True)
class Full(Pattern):
    """Every position attends to every position."""

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.ones_like(query - key, dtype=torch.bool)


@register("causal")
@dataclass(frozen=True)
class Causal(Pattern):
    """A position attends to itself and earlier ones, optionally only to the last `window` positions."""

    window: int | None = None  # number of visible positions, including its own; none: all earlier ones

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window is {self.window}; set an integer above 0, or none")

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        visible = key <= query
        return visible if self.window is None else visible & (key > query - self.window)

    @property
    def causal(self) -> bool:
        return True


@register("local")
@dataclass(frozen=True)
class Local(Pattern):
    """Attention in both directions, up to `reach` positions on either side (ModernBERT's local layers)."""

    reach: int = 64  # positions on either side

    def __post_init__(self) -> None:
        if self.reach < 0:
            raise ConfigError(f"reach is {self.reach}; set 0 or more")

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return (query - key).abs() <= self.reach


@register("prefix")
@dataclass(frozen=True)
class Prefix(Pattern):
    """Causal, but bidirectional among the first `length` positions of each document (a prefix language model)."""

    length: int = 1  # positions of the bidirectional prefix of each document

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) | ((key < self.length) & (query < self.length))


def mask(pattern: Pattern, query: Layout, key: Layout) -> Bool[Tensor, "B T S"]:
    """The attention mask between two layouts: the pattern within documents, all tokens within groups, no padding."""
    same_document = (query.segments[:, :, None] == key.segments[:, None, :]) & key.mask[:, None, :]
    return same_document & allowed_mask(pattern, query, key)


def allowed_mask(pattern: Pattern, query: Layout, key: Layout) -> Bool[Tensor, "B T S"]:
    """The mask if each row is a single document: by the pattern, or within the same group."""
    visible = pattern.allows(query.positions[:, :, None], key.positions[:, None, :])
    if query.group is None or key.group is None:
        return visible
    return visible | ((query.group[:, :, None] == key.group[:, None, :]) & (query.group[:, :, None] > 0))
