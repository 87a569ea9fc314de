"""Convolutions in place of the one linear map of patches (Xiao et al. 2021)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from headway.parts.convolution import ImageConvolution
from headway.parts.feedforward import ACTIVATIONS
from headway.parts.norm import LayerNormConfig
from headway.parts.projection import Projection


class ConvolutionalStem(nn.Module):
    """`halvings` convolutions of 3 x 3 with stride 2, after each of them `more` with stride 1, each with a norm over
    channels and GELU; then a linear map.

    Channels double up to the width, as in Xiao et al. 2021, table 2. They normalise over the batch; here each place is
    normalised by itself, so that an image's vectors hang on no other image.
    """

    def __init__(self, channels: int, width: int, halvings: int, more: int = 0) -> None:
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        self.places: list[int] = []  # of each convolution, for one patch
        for left in reversed(range(halvings)):
            after = width >> left
            for stride in (2, *(1,) * more):
                self.convolutions.append(ImageConvolution(channels, after, stride=stride, bias=False))
                self.norms.append(LayerNormConfig().build(after))
                self.places.append(4**left)
                channels = after
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
        sizes = [convolution.product.weight.numel() for convolution in self.convolutions]  # type: ignore[union-attr]
        return sum(2 * size * (places - 1) for size, places in zip(sizes, self.places))
