"""Chess models: 64 squares as tokens, a head for moves from square to square, and a head for the outcome."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from headway.codecs.chess_boards import DRAW_HALF_MOVES, MOVE_PARTS, STATE_PLANES, UPWARD_MOVES, num_planes
from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.models.embeds import Embed, EmbedConfig
from headway.nn.models.heads import HeadConfig
from headway.nn.parts.feedforward import ACTIVATIONS, ActivationName
from headway.nn.parts.projection import Projection

SQUARES = 64


@register("board")
@dataclass(frozen=True)
class BoardEmbedConfig(EmbedConfig):
    """Planes of a position (`headway.codecs.chess_boards`), one token per square, with `history` earlier positions."""

    history: int = 1  # number of earlier positions

    def __post_init__(self) -> None:
        if not 0 <= self.history <= 7:
            raise ConfigError(f"history is {self.history}; set 0 to 7 earlier positions")

    @property
    def length(self) -> int:
        return SQUARES

    def describe_inputs(self, vocab_size: int, context: int | None) -> str:
        return f"chess positions ({self.length} tokens), {self.history} earlier ones"

    def build(self, width: int, vocab_size: int, context: int | None) -> BoardEmbed:
        return BoardEmbed(self, width)


class BoardEmbed(Embed):
    """A linear layer over a square's planes, plus a learned vector per square. If the layer starts at 0
    (`init.residual="zero"`), planes that never occur in training, such as earlier positions in data of single
    positions, have no effect.
    """

    scales: Tensor

    def __init__(self, config: BoardEmbedConfig, width: int) -> None:
        super().__init__()
        count = num_planes(config.history)
        self.project = Projection(count, width, bias=False, residual=True)
        self.table = nn.Parameter(torch.empty(SQUARES, width))
        scales = torch.ones(count, device="cpu")
        scales[count - STATE_PLANES + 5] = 1 / DRAW_HALF_MOVES
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, planes: UInt8[Tensor, "B N P"], layout: Layout) -> tuple[Float[Tensor, "B N D"], Layout]:
        return self.project(planes * self.scales) + self.table, layout


@register("from_to")
@dataclass(frozen=True)
class FromToHeadConfig(HeadConfig):
    """Logits of all possible moves of the side to move, in the order of `headway.codecs.chess_boards`."""

    size: int = 64  # size of the query and key vectors

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> FromToHead:
        return FromToHead(self, width)


class FromToHead(nn.Module):
    """A move's score is the product of its start square's query and its target square's key, as in attention;
    promotions add a score from the target square (Monroe and Chalmers 2024, section 3.4).
    """

    moves: Tensor
    promotions: Tensor

    def __init__(self, config: FromToHeadConfig, width: int) -> None:
        super().__init__()
        self.size = config.size
        self.ends = Projection(width, (config.size, config.size))
        self.promote = Projection(width, 4)
        source, target, promotion = (torch.from_numpy(part[:UPWARD_MOVES]) for part in MOVE_PARTS)
        self.register_buffer("moves", source * SQUARES + target, persistent=False)
        # Moves without promotion index a zero after the last of the 8 x 4 scores.
        added = torch.where(promotion < 0, 32, (target % 8) * 4 + promotion)
        self.register_buffer("promotions", added, persistent=False)

    def forward(self, x: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B M"]:
        query, key = self.ends(x).chunk(2, dim=-1)
        scores = (query @ key.transpose(1, 2)).flatten(1) * self.size**-0.5
        promotion_scores = nn.functional.pad(self.promote(x[:, SQUARES - 8 :]).flatten(1), (0, 1))
        return scores[:, self.moves] + promotion_scores[:, self.promotions]


@register("squares")
@dataclass(frozen=True)
class SquaresHeadConfig(HeadConfig):
    """Outputs for a whole position: each square is compressed, and a hidden layer reads all squares."""

    outputs: int = 3  # outputs per position
    compressed: int = 8  # size to which each square is compressed
    hidden: int = 64  # units of the hidden layer over all squares
    activation: ActivationName = "silu"  # activation of both layers

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> SquaresHead:
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
