"""Convolutions in place of the one linear map of patches (Xiao et al. 2021)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from headway.parts.convolution import ImageConvolution
from headway.parts.feedforward import ACTIVATIONS
from headway.parts.norm import LayerNormConfig
from headway.parts.projection import Projection


class ConvolutionalStem(nn.Module):
    """`halvings` convolutions of 3 x 3 with stride 2, each with a norm over channels and GELU, then a linear map.

    Channels double up to the width, as in Xiao et al. 2021, table 2. They normalise over the batch; here each place is
    normalised by itself, so that an image's vectors hang on no other image.
    """

    def __init__(self, channels: int, width: int, halvings: int) -> None:
        super().__init__()
        widths = [width >> (halvings - 1 - i) for i in range(halvings)]
        self.convolutions = nn.ModuleList(
            ImageConvolution(before, after, stride=2, bias=False) for before, after in zip([channels, *widths], widths)
        )
        self.norms = nn.ModuleList(LayerNormConfig().build(each) for each in widths)
        self.activation = ACTIVATIONS["gelu"]
        self.project = Projection(width, width)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """A vector for each patch of 2^halvings x 2^halvings pixels, row by row."""
        x = images.permute(0, 2, 3, 1)
        for convolution, norm in zip(self.convolutions, self.norms):
            x = self.activation(norm(convolution(x)))
        return self.project(x).flatten(1, 2)

    @property
    def flop(self) -> int:
        """Operations for one patch, beyond one multiplication of each weight: early convolutions see more places."""
        last = len(self.convolutions) - 1
        sizes = [convolution.product.weight.numel() for convolution in self.convolutions]  # type: ignore[union-attr]
        return sum(2 * size * (4 ** (last - i) - 1) for i, size in enumerate(sizes))
