"""Embeddings: from inputs to vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import family, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.kernels.linear import is_stored_in_bf16
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import PositionsConfig
from headway.nn.parts.projection import Projection


class TokenInputs(NamedTuple):
    """Token ids with the type of each (BERT's segments, a language tag); None means type 0 for all."""

    ids: Int[Tensor, "B T"]
    types: Int[Tensor, "B T"] | None = None


@family
@dataclass(frozen=True)
class EmbedConfig:
    """Turns a domain's inputs into vectors, by its module, an `Embed`."""

    def width_out(self, width: int, vocab_size: int) -> int:
        """Width of the vectors in a model of `width`."""
        return width

    @property
    def types(self) -> int:
        """Number of token types with a learned vector."""
        return 0

    @property
    def dropout(self) -> float:
        """Dropout rate of the vectors."""
        return 0.0

    @property
    def length(self) -> int | None:
        """Tokens of an input of the configured size; None if inputs can be of any length."""
        return None

    def with_dropout(self, rate: float) -> EmbedConfig:
        """A copy with dropout `rate`; unchanged if this kind has no dropout."""
        named = {field.name for field in fields(self)}
        return replace(self, dropout=rate) if "dropout" in named else self  # type: ignore[call-arg]

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        """A description of the model's inputs."""
        return f"vocabulary {vocab_size:,}, context {'no limit' if context is None else context}"

    def summary(self) -> str:
        """A description of this embedding."""
        positions = getattr(self, "positions", None)
        return f"{self.kind}, positions {'none' if positions is None else positions.kind}"  # type: ignore[attr-defined]

    def build(self, width: int, vocab_size: int, context: int | None) -> Embed:
        raise NotImplementedError


class Embed(nn.Module):
    """Base of embeddings, which map (inputs, layout) to (x, layout)."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = None  # the table of a vocabulary, which other modules may share

    def default_layout(self, inputs: Any) -> Layout:
        """The layout of inputs without one: one document per row."""
        return Layout.full(*inputs.shape[:2], device=inputs.device)


@register("tokens")
@dataclass(frozen=True)
class TokenEmbedConfig(EmbedConfig):
    """`scaled` multiplies by sqrt(width) (2017); `types` is the number of token types with a learned vector (BERT: 2);
    `width` is the table's width, which is projected to the model's width (none: the model's width).
    """

    positions: PositionsConfig | None = None  # position vectors, added to token vectors
    norm: NormConfig | None = None  # norm after the sum
    scaled: bool = False
    types: int = 0
    dropout: float = 0.0  # dropout rate of the sum
    width: int | None = None
    scale: float = 1.0  # factor on token vectors (Granite)
    projects: Literal["tokens", "sum"] = "tokens"  # what to project: tokens, or the sum after its norm (ELECTRA)

    def build(self, width: int, vocab_size: int, context: int | None) -> TokenEmbed:
        return TokenEmbed(self, width, vocab_size, context)


class TokenEmbed(Embed):
    """Token ids to vectors: a table `table` [C, D], positions, types, norm, dropout."""

    def __init__(self, config: TokenEmbedConfig, width: int, vocab_size: int, context: int | None) -> None:
        super().__init__()
        if vocab_size < 1:
            raise ConfigError(f"the vocabulary has {vocab_size} tokens; set model.vocab_size to at least 1")
        inner = config.width or width
        self.table = nn.Parameter(torch.empty(vocab_size, inner))
        self.project = Projection(inner, width, bias=config.projects == "sum") if inner != width else nn.Identity()
        self.projects = config.projects
        width = inner if config.projects == "sum" else width
        self.scale = config.scale * (math.sqrt(width) if config.scaled else 1.0)
        self.positions = config.positions.build(width, context) if config.positions else None
        self.types = TypeEmbed(config.types, width) if config.types else None
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def default_layout(self, inputs: Tensor | TokenInputs) -> Layout:
        return super().default_layout(inputs if isinstance(inputs, Tensor) else inputs.ids)

    def forward(
        self, inputs: Int[Tensor, "B T"] | TokenInputs, layout: Layout
    ) -> tuple[Float[Tensor, "B T D"], Layout]:
        ids, types = (inputs, None) if isinstance(inputs, Tensor) else inputs
        return self.add_positions(self.look_up(ids), layout, types), layout

    def look_up(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """Token vectors without positions."""
        x = F.embedding(ids, self.table)
        x = x.float() if is_stored_in_bf16(self.table) else x
        return (self.project(x) if self.projects == "tokens" else x) * self.scale

    def add_positions(
        self, x: Float[Tensor, "B T E"], layout: Layout, types: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Add positions and types to token vectors, or to image vectors between them: the input of the first block."""
        if self.positions is not None:
            x = x + self.positions(layout, x)
        if self.types is not None:
            x = x + self.types(layout.positions, types)
        x = self.dropout(self.norm(x))
        return self.project(x) if self.projects == "sum" else x


class TypeEmbed(nn.Module):
    """A learned vector per token type (Devlin et al. 2019, figure 2)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def forward(self, ids: Int[Tensor, "B T"], types: Int[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
        return F.embedding(torch.zeros_like(ids) if types is None else types, self.table)
