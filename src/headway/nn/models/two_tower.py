"""Two towers that embed images and texts in one shared space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.config_kinds import register
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.models.transformer import ModelConfig, Transformer, TransformerConfig

HEAD = "embedding"
TowerName = Literal["left", "right"]
TOWERS: tuple[TowerName, TowerName] = ("left", "right")


@register("two_tower")
@dataclass(frozen=True)
class TwoTowerConfig(ModelConfig):
    """Two towers, left for images and right for texts; each has a head "embedding" with the same output width.

    The logit of two vectors x and y is exp(scale) cos(x, y) + bias, with a learned scale and bias. A text ends with its
    first `end` token ("highest": the highest id in its row), or is padded to the context with `filler`, which the tower
    treats like any token (SigLIP).

    In addition to its fields, `--set` takes width, depth, heads, mixer, dropout and drop_path for both towers (or for
    each, as [left, right]), `shared`, the width of the shared space, and vocab_size and context of the texts.
    """

    left: TransformerConfig  # image tower
    right: TransformerConfig  # text tower
    scale: float = math.log(1 / 0.07)  # initial logarithm of the learned scale
    bias: float | None = None  # initial learned bias; none: no bias
    end: int | Literal["highest"] | None = None  # token that ends a text
    filler: int | None = None  # token that pads texts

    @property
    def vocab_size(self) -> int:
        return self.right.vocab_size

    @property
    def context(self) -> int | None:
        return self.right.context

    @property
    def shared(self) -> int:
        """Width of the shared space. Raises ConfigError if the towers' widths differ."""
        widths = []
        for name, tower in zip(TOWERS, (self.left, self.right)):
            if HEAD not in tower.heads:
                known = ", ".join(tower.heads) or "none"
                raise ConfigError(f"the {name} tower has no head {HEAD!r} (its heads: {known}); add one")
            widths.append(getattr(tower.heads[HEAD], "outputs", None) or tower.width)
        image_width, text_width = widths
        if image_width != text_width:
            raise ConfigError(
                f"the left tower outputs {image_width} features and the right one {text_width}; set model.shared to a "
                "common width "
                "(an attention-pooling head outputs the width of its tower)"
            )
        return image_width

    def build(self, seed: int | None = 0) -> TwoTower:
        return TwoTower(self, seed)


class TwoTower(nn.Module):
    """Radford et al. 2021 (CLIP), figure 3; with a bias, Zhai et al. 2023 (SigLIP), algorithm 1."""

    def __init__(self, config: TwoTowerConfig, seed: int | None = 0) -> None:
        """Without a `seed` weights stay uninitialised."""
        super().__init__()
        self.config = config
        self.width = config.shared
        self.left = Transformer(config.left, seed)
        self.right = Transformer(config.right, None if seed is None else seed + 1)
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.bias = None if config.bias is None else nn.Parameter(torch.tensor(config.bias))

    def vectors(self, tower_name: TowerName, inputs: Any, layout: Layout | None = None) -> Float[Tensor, "B E"]:
        """A unit vector per input of a tower: images, or ids (TokenInputs) with their layout."""
        tower = cast(Transformer, getattr(self, tower_name))
        if tower_name == "right" and layout is None:
            layout = self.layout(inputs)
        return F.normalize(tower.output(HEAD, inputs, layout), dim=-1)

    def layout(self, ids: Int[Tensor, "B T"]) -> Layout:
        """The layout of texts whose rows may continue after their end token."""
        end, (batch, length) = self.config.end, ids.shape
        if end is None:
            return Layout.full(batch, length, device=ids.device)
        is_end = ids == (ids.amax(1, keepdim=True) if end == "highest" else end)
        after = is_end.int().argmax(1) + 1
        return Layout.padded(torch.where(is_end.any(1), after, length), length)

    def logits(self, image_vectors: Float[Tensor, "N E"], text_vectors: Float[Tensor, "M E"]) -> Float[Tensor, "N M"]:
        """Logits between unit vectors."""
        logits = self.scale.exp() * (image_vectors @ text_vectors.T)
        return logits if self.bias is None else logits + self.bias

    def forward(self, images: Any, ids: Any, layout: Layout | None = None) -> Float[Tensor, "N M"]:
        """Logits of every image with every text."""
        return self.logits(self.vectors("left", images), self.vectors("right", ids, layout))

    @torch.no_grad()
    def limit_scale(self, max_scale: float) -> None:
        """Clamp exp(scale) to at most `max_scale` (Radford et al. 2021, section 2.5: 100, for stable training)."""
        self.scale.clamp_(max=math.log(max_scale))
