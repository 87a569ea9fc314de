"""Chess in a model: 64 squares as tokens, moves from square to square, and an outcome read from all squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from headway.codecs.boards import CLOCK, MOVERS, PARTS, STATE_PLANES, planes_for
from headway.config import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.models.embeds import EmbedConfig
from headway.nn.models.heads import HeadConfig
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName
from headway.nn.parts.projection import Projection

SQUARES = 64


@register("board")
@dataclass(frozen=True)
class BoardEmbedConfig(EmbedConfig):
    """Planes of a position (`headway.codecs.boards`), a token for each square, with `history` earlier positions."""

    history: int = 1  # earlier positions that are read

    def __post_init__(self) -> None:
        if not 0 <= self.history <= 7:
            raise ConfigError(f"history {self.history} is not a number of earlier positions; give 0 to 7")

    @property
    def length(self) -> int:
        return SQUARES

    def reads(self, symbols: int, context: int | None) -> str:
        return f"positions of chess ({self.length} tokens), {self.history} earlier ones"

    def build(self, width: int, symbols: int, context: int | None) -> BoardEmbed:
        return BoardEmbed(self, width)


class BoardEmbed(nn.Module):
    """One linear map of what is on a square, plus a learned vector for each square. Where the map starts at 0
    (`init.residual="zero"`), planes that training never shows, as earlier positions in labels of single ones, weigh
    nothing.
    """

    scales: Tensor

    def __init__(self, config: BoardEmbedConfig, width: int) -> None:
        super().__init__()
        count = planes_for(config.history)
        self.project = Projection(count, width, bias=False, writes=True)
        self.table = nn.Parameter(torch.empty(SQUARES, width))
        scales = torch.ones(count)
        scales[count - STATE_PLANES + 5] = 1 / CLOCK
        self.register_buffer("scales", scales, persistent=False)

    def whole(self, planes: UInt8[Tensor, "B N P"]) -> Layout:
        """Each position is one document."""
        return Layout.full(planes.shape[0], SQUARES, device=planes.device)

    def forward(self, planes: UInt8[Tensor, "B N P"], layout: Layout) -> tuple[Float[Tensor, "B N D"], Layout]:
        return self.project(planes * self.scales) + self.table, layout


@register("from_to")
@dataclass(frozen=True)
class FromToHeadConfig(HeadConfig):
    """Logits of all moves that the side to move can have, in the order of `headway.codecs.boards`; `size` is that of
    the vectors that meet.
    """

    size: int = 64  # size of the vectors whose products are the scores

    def build(self, width: int, symbols: int, table: nn.Parameter | None) -> FromToHead:
        return FromToHead(self, width)


class FromToHead(nn.Module):
    """The score of a move is the product of a query of the square it starts from and a key of the square it ends on,
    as in attention; what a pawn becomes adds a number that the end square tells (Monroe and Chalmers 2024, section
    3.4).
    """

    moves: Tensor
    promotions: Tensor

    def __init__(self, config: FromToHeadConfig, width: int) -> None:
        super().__init__()
        self.size = config.size
        self.ends = Projection(width, (config.size, config.size))
        self.promote = Projection(width, 4)
        source, target, promotion = (torch.from_numpy(part[:MOVERS]) for part in PARTS)
        self.register_buffer("moves", source * SQUARES + target, persistent=False)
        # Where a move adds nothing it reads a zero behind the last of the 8 x 4 numbers.
        added = torch.where(promotion < 0, 32, (target % 8) * 4 + promotion)
        self.register_buffer("promotions", added, persistent=False)

    def forward(self, x: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B M"]:
        query, key = self.ends(x).chunk(2, dim=-1)
        scores = (query @ key.transpose(1, 2)).flatten(1) * self.size**-0.5
        become = nn.functional.pad(self.promote(x[:, SQUARES - 8 :]).flatten(1), (0, 1))
        return scores[:, self.moves] + become[:, self.promotions]


@register("squares")
@dataclass(frozen=True)
class SquaresHeadConfig(HeadConfig):
    """`outputs` numbers of a whole position: each square is compressed to `compressed` numbers, and a layer of `hidden`
    units reads them all.
    """

    outputs: int = 3  # numbers of a position
    compressed: int = 8  # numbers to which each square is compressed
    hidden: int = 64  # units that read all squares
    activation: ActivationName = "silu"  # of the hidden units

    def build(self, width: int, symbols: int, table: nn.Parameter | None) -> SquaresHead:
        return SquaresHead(self, width)


class SquaresHead(nn.Module):
    def __init__(self, config: SquaresHeadConfig, width: int) -> None:
        super().__init__()
        self.compress = Projection(width, config.compressed)
        self.dense = Projection(SQUARES * config.compressed, config.hidden)
        self.activation = ACTIVATIONS[config.activation]
        self.project = Projection(config.hidden, config.outputs)

    def forward(self, x: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B E"]:
        return self.project(self.activation(self.dense(self.activation(self.compress(x)).flatten(1))))
