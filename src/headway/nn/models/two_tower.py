"""Two towers whose vectors meet in one space: images and texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.models.transformer import ModelConfig, Transformer, TransformerConfig

HEAD = "embedding"
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


@register("two_tower")
@dataclass(frozen=True)
class TwoTowerConfig(ModelConfig):
    """`left` (images) and `right` (texts) each have a head "embedding", whose outputs are as wide as the other's.

    Two vectors x and y say exp(scale) cos(x, y) + bias to each other; `scale` and `bias` are where these learned
    numbers start, `bias` None is none at all. A text ends with its first `end` symbol ("highest": the highest id of its
    row), or is filled up to the context with `filler`, which the tower sees as it sees any symbol (SigLIP).

    Beside its fields, `--set` takes width, depth, heads, mixer, dropout and drop_path of both towers (or of each, as
    [left, right]), `shared`, the width of the common space, and symbols and context of the texts.
    """

    left: TransformerConfig  # the tower of images
    right: TransformerConfig  # the tower of texts
    scale: float = math.log(1 / 0.07)  # where the logarithm of the learned scale starts
    bias: float | None = None  # where the learned bias starts; none: there is none
    end: int | Literal["highest"] | None = None  # the symbol that ends a text
    filler: int | None = None  # the symbol that texts are filled up with

    @property
    def symbols(self) -> int:
        return self.right.symbols

    @property
    def context(self) -> int | None:
        return self.right.context

    @property
    def shared(self) -> int:
        """The width of the common space. ConfigError where the towers do not meet in one."""
        left, right = (_width(tower, side) for side, tower in zip(SIDES, (self.left, self.right)))
        if left != right:
            raise ConfigError(
                f"the left tower gives {left} numbers and the right one {right}; set model.shared to the width that "
                "both should have (a head that only attends gives the width of its tower)"
            )
        return left

    def build(self, seed: int | None = 0) -> TwoTower:
        return TwoTower(self, seed)


def _width(tower: TransformerConfig, side: Side) -> int:
    if HEAD not in tower.heads:
        known = ", ".join(tower.heads) or "none"
        raise ConfigError(f"the {side} tower has no head {HEAD!r} (its heads: {known}); give it one")
    return getattr(tower.heads[HEAD], "outputs", None) or tower.width


class TwoTower(nn.Module):
    """Radford et al. 2021 (CLIP), figure 3; with a bias, Zhai et al. 2023 (SigLIP), algorithm 1."""

    def __init__(self, config: TwoTowerConfig, seed: int | None = 0) -> None:
        """Without a `seed` weights are left undrawn."""
        super().__init__()
        self.config = config
        self.width = config.shared
        self.left = Transformer(config.left, seed)
        self.right = Transformer(config.right, None if seed is None else seed + 1)
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.bias = None if config.bias is None else nn.Parameter(torch.tensor(config.bias))

    def vectors(self, side: Side, inputs: Any, layout: Layout | None = None) -> Float[Tensor, "B E"]:
        """A vector of unit length for each input of a tower: images, or ids (TokenInputs) with their layout."""
        tower = cast(Transformer, getattr(self, side))
        if side == "right" and layout is None:
            layout = self.layout(inputs)
        return F.normalize(tower.output(HEAD, inputs, layout), dim=-1)

    def layout(self, ids: Int[Tensor, "B T"]) -> Layout:
        """Where texts sit whose rows may go on after their end."""
        end, (batch, length) = self.config.end, ids.shape
        if end is None:
            return Layout.full(batch, length, device=ids.device)
        ends = ids == (ids.amax(1, keepdim=True) if end == "highest" else end)
        after = ends.int().argmax(1) + 1
        return Layout.padded(torch.where(ends.any(1), after, length), length)

    def logits(self, left: Float[Tensor, "N E"], right: Float[Tensor, "M E"]) -> Float[Tensor, "N M"]:
        """What vectors of unit length say to each other."""
        said = self.scale.exp() * (left @ right.T)
        return said if self.bias is None else said + self.bias

    def forward(self, images: Any, ids: Any, layout: Layout | None = None) -> Float[Tensor, "N M"]:
        """The logits of every image with every text."""
        return self.logits(self.vectors("left", images), self.vectors("right", ids, layout))

    @torch.no_grad()
    def limit_scale(self, most: float) -> None:
        """Hold exp(scale) to at most `most` (Radford et al. 2021, section 2.5: 100, lest training becomes unstable)."""
        self.scale.clamp_(max=math.log(most))
