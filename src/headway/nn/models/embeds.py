"""From inputs to vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import family, register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.norm import NormConfig
from headway.nn.parts.positions import PositionsConfig
from headway.nn.parts.projection import Projection


class TokenInputs(NamedTuple):
    """Symbols with the type of each (BERT's first and second segment, a language tag); no types means all 0."""

    ids: Int[Tensor, "B T"]
    types: Int[Tensor, "B T"] | None = None


@family
@dataclass(frozen=True)
class EmbedConfig:
    """Turns a domain's inputs into vectors.

    Its module maps (inputs, layout) to (x, layout); `whole(inputs)` is the layout of inputs that come without one.
    """

    def width_out(self, width: int, symbols: int) -> int:
        """The width of the vectors in a model of `width`."""
        return width

    @property
    def length(self) -> int | None:
        """The tokens that an input of the usual size becomes; None where inputs have any length."""
        return None

    def with_dropout(self, rate: float) -> EmbedConfig:
        """The same with that dropout; as it is where it has none."""
        named = {field.name for field in fields(self)}
        return replace(self, dropout=rate) if "dropout" in named else self  # type: ignore[call-arg]

    def reads(self, symbols: int, context: int | None) -> str:
        """What a model with it reads, in words."""
        return f"{symbols:,} symbols, context {'no limit' if context is None else context}"

    def summary(self) -> str:
        """What it is, in words."""
        positions = getattr(self, "positions", None)
        return f"{self.kind}, positions {'none' if positions is None else positions.kind}"  # type: ignore[attr-defined]

    def build(self, width: int, symbols: int, context: int | None) -> nn.Module:
        raise NotImplementedError


@register("tokens")
@dataclass(frozen=True)
class TokenEmbedConfig(EmbedConfig):
    """`scaled` multiplies by sqrt(width) (2017); `types` is the number of token types that have a vector (BERT: 2);
    `width` is that of the table where a projection follows it (ALBERT).
    """

    positions: PositionsConfig | None = None  # vectors of positions, added to those of tokens
    norm: NormConfig | None = None  # after the sum
    scaled: bool = False
    types: int = 0
    dropout: float = 0.0  # of the sum
    width: int | None = None

    def build(self, width: int, symbols: int, context: int | None) -> nn.Module:
        return TokenEmbed(self, width, symbols, context)


class TokenEmbed(nn.Module):
    """Symbols to vectors: a table, positions, types, norm, dropout. The table is `table`, [C, D]."""

    def __init__(self, config: TokenEmbedConfig, width: int, symbols: int, context: int | None) -> None:
        super().__init__()
        if symbols < 1:
            raise ConfigError(f"a model of {symbols} symbols reads nothing; set model.symbols to the vocabulary's size")
        inner = config.width or width
        self.table = nn.Parameter(torch.empty(symbols, inner))
        self.project = Projection(inner, width, bias=False) if inner != width else nn.Identity()
        self.scale = math.sqrt(width) if config.scaled else 1.0
        self.positions = config.positions.build(width, context) if config.positions else None
        self.types = TypeEmbed(config.types, width) if config.types else None
        self.norm = config.norm.build(width) if config.norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def whole(self, inputs: Tensor | TokenInputs) -> Layout:
        """Each row is one document."""
        ids = inputs if isinstance(inputs, Tensor) else inputs.ids
        return Layout.full(*ids.shape, device=ids.device)

    def forward(
        self, inputs: Int[Tensor, "B T"] | TokenInputs, layout: Layout
    ) -> tuple[Float[Tensor, "B T D"], Layout]:
        ids, types = (inputs, None) if isinstance(inputs, Tensor) else inputs
        return self.place(self.look_up(ids), layout, types), layout

    def look_up(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The vectors of symbols, wherever they stand."""
        return self.project(F.embedding(ids, self.table)) * self.scale

    def place(
        self, x: Float[Tensor, "B T D"], layout: Layout, types: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Vectors of symbols, or of what stands among them, at their positions: what the first block reads."""
        if self.positions is not None:
            x = x + self.positions(layout, x)
        if self.types is not None:
            x = x + self.types(layout.positions, types)
        return self.dropout(self.norm(x))


@register("one_hot")
@dataclass(frozen=True)
class OneHotEmbedConfig(EmbedConfig):
    """Each symbol is a unit vector, as wide as there are symbols: what reads it has weights of its own for each."""

    def width_out(self, width: int, symbols: int) -> int:
        return symbols

    def build(self, width: int, symbols: int, context: int | None) -> nn.Module:
        return OneHotEmbed(symbols)


class OneHotEmbed(nn.Module):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.symbols = symbols
        self.table = None
        self.register_buffer("one", torch.ones(()), persistent=False)  # of the model's type and device

    def whole(self, inputs: Tensor) -> Layout:
        """Each row is one document."""
        return Layout.full(*inputs.shape, device=inputs.device)

    def forward(self, inputs: Int[Tensor, "B T"], layout: Layout) -> tuple[Float[Tensor, "B T C"], Layout]:
        return F.one_hot(inputs, self.symbols).to(cast(Tensor, self.one)), layout


class TypeEmbed(nn.Module):
    """A vector for each type of token (Devlin et al. 2019, figure 2)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def forward(self, ids: Int[Tensor, "B T"], types: Int[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
        return F.embedding(torch.zeros_like(ids) if types is None else types, self.table)
