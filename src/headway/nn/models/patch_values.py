"""The head of masked images and sounds: it hides patches of the input and predicts their values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from headway.config_kinds import register
from headway.layout import Layout
from headway.nn.models.heads import HeadConfig
from headway.nn.models.patches import Grid
from headway.nn.parts.projection import Projection


@register("patch_values")
@dataclass(frozen=True)
class PatchValuesHeadConfig(HeadConfig):
    """The values of the patch of `patch` rows and columns (pixels, or frames and mel bands) that each token covers,
    except the first `skip` tokens.
    """

    patch: tuple[int, int] = (16, 16)  # rows and columns of a patch
    channels: int = 1  # values per row and column
    skip: int = 0  # tokens before the patches

    def build(self, width: int, vocab_size: int, table: nn.Parameter | None) -> PatchValuesHead:
        return PatchValuesHead(self, width)


class PatchValuesHead(nn.Module):
    """A linear layer (Xie et al. 2022, "SimMIM", section 3.3) and the learned patch that replaces hidden ones.

    Patches are hidden in the input instead of after the embedding, so a convolutional stem cannot see across their
    borders. For a linear embedding both are the same: it maps the learned patch to the paper's mask vector.
    """

    def __init__(self, config: PatchValuesHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        size = config.channels * config.patch[0] * config.patch[1]
        self.mask = nn.Parameter(torch.zeros(size))  # the mean of normalised inputs
        self.project = Projection(width, size)

    def forward(self, x: Float[Tensor, "B T D"], layout: Layout | None = None) -> Float[Tensor, "B N V"]:
        return self.project(x[:, self.config.skip :])

    def grid(self, inputs: Float[Tensor, "B ..."]) -> Grid:
        """Rows and columns of patches in images [B, C, H, W] or frames [B, T, M]."""
        return inputs.shape[-2] // self.config.patch[0], inputs.shape[-1] // self.config.patch[1]

    def cut(self, inputs: Float[Tensor, "B ..."]) -> Float[Tensor, "B N V"]:
        """The values of the patches, row by row."""
        height, width = self.config.patch
        images = inputs if inputs.dim() == 4 else inputs[:, None]
        patches = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, C, rows, P, columns, Q]
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def join(self, patches: Float[Tensor, "B N V"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The inputs that consist of these patches, with the shape of `like`: the inverse of `cut`."""
        height, width = self.config.patch
        rows = patches.unflatten(1, self.grid(like)).unflatten(3, (self.config.channels, height, width))
        return rows.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)

    def hide(self, inputs: Float[Tensor, "B ..."], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B ..."]:
        """The inputs with the learned patch in the place of the hidden ones."""
        patches = self.cut(inputs)
        return self.join(torch.where(hidden[..., None], self.mask.to(patches.dtype), patches), inputs)
