"""What reads the frames of a sound: padding changes nothing, and what it cannot hear is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models import FramesEmbedConfig
from headway.nn.models.frames import SinusoidTableConfig
from headway.nn.parts.convolution import Convolution

BANDS, WIDTH = 5, 8


def embed(context: int | None = 20) -> nn.Module:
    module = FramesEmbedConfig(BANDS).build(WIDTH, 0, context).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def frames(*shape: int) -> Tensor:
    return torch.randn(*shape, BANDS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 3)])
def test_a_convolution_is_that_of_torch(taps: int, stride: int) -> None:
    ours, x = Convolution(BANDS, WIDTH, taps, stride).double(), frames(2, 11)
    weight = torch.randn(WIDTH, BANDS, taps, dtype=torch.float64)
    ours.product.weight.data = weight.flatten(1)
    theirs = torch.nn.functional.conv1d(x.mT, weight, ours.product.bias, stride, taps // 2).mT
    torch.testing.assert_close(ours(x), theirs)


def test_padding_changes_nothing() -> None:
    module, lengths = embed(), [12, 7, 1, 8]
    x = frames(4, 12)
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan
    found, layout = module(x, Layout.padded(lengths, 12))
    assert layout.lengths.tolist() == [6, 4, 1, 4]
    for row, length in enumerate(lengths):
        alone = x[row : row + 1, :length]
        wanted, where = module(alone, module.default_layout(alone))  # type: ignore[operator]
        assert where.dense
        torch.testing.assert_close(found[row : row + 1, : wanted.shape[1]], wanted)


def test_gradients_are_true() -> None:
    module, x = embed(), frames(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, Layout.padded([5, 3], 5))[0], (x,))


def test_what_it_cannot_hear_is_refused() -> None:
    module = embed()
    with pytest.raises(UserError, match="41 frames exceeds this model's limit of 40"):
        module(frames(1, 41), Layout.full(1, 41))
    with pytest.raises(UserError, match="one audio clip per row"):
        module(frames(1, 12), Layout.packed([[5, 7]]))
    with pytest.raises(UserError, match="4 mel bands; compute 5 bands"):
        module(frames(1, 12)[..., :4], Layout.full(1, 12))
    with pytest.raises(ConfigError, match="needs a context"):
        embed(None)
    with pytest.raises(ConfigError, match="width is 3; set an even number"):
        SinusoidTableConfig().build(3, 10)
