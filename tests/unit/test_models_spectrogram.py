"""Spectrograms as patches: what the map reads, and the published classifiers of sounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from headway.errors import ConfigError, UserError
from headway.nn.models import SpectrogramEmbedConfig, build, describe
from headway.nn.models.presets import ast, kwt, whisper_classifier


def test_patches_are_those_of_a_convolution() -> None:
    config = SpectrogramEmbedConfig(46, 36, (16, 16), (10, 10), tokens=2)
    embed = config.build(8, 0, None).double()
    for parameter in embed.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    frames = torch.randn(2, 46, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, layout = embed(frames, embed.default_layout(frames))
    kernel = embed.project.weight.view(8, 1, 16, 16)
    wanted = F.conv2d(frames[:, None], kernel, embed.project.bias, stride=10).flatten(2).transpose(1, 2)
    assert x.shape == (2, config.length, 8) == (2, layout.length, 8)
    torch.testing.assert_close(x[:, 2:], wanted + embed.positions.table[2:], rtol=1e-12, atol=1e-12)
    assert torch.equal(x[0, :2], x[1, :2])


def test_sizes_that_do_not_fit_are_refused() -> None:
    config = SpectrogramEmbedConfig(100, 80, (16, 16), (10, 10))
    assert config.padded_frames(100) == 106
    assert config.padded_frames(3) == 16
    with pytest.raises(ConfigError, match="smaller than a patch"):
        SpectrogramEmbedConfig(10, 80, (16, 16), (10, 10))
    embed = config.build(8, 0, None)
    with pytest.raises(UserError, match="40 mel bands; compute 80 bands"):
        embed.default_layout(torch.zeros(1, 100, 40))
    with pytest.raises(UserError, match="12 frames is shorter than a patch of 16"):
        embed.default_layout(torch.zeros(1, 12, 80))


def test_the_published_sizes() -> None:
    """Gong et al. 2021: 1,212 patches of 10 s, the 87M of DeiT. Berg et al. 2021, table 1: 607k, 2.4M and 5.4M."""
    published = ast(768, 12, 12)
    assert published.embed.length == 1212 + 2
    assert describe(published)["parameters"] == pytest.approx(87.6e6, rel=0.02)
    for width, heads, count in ((64, 1, 607e3), (128, 2, 2394e3), (192, 3, 5361e3)):
        config = kwt(width, 12, heads)
        assert config.embed.length == 99
        assert describe(config)["parameters"] == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    "config", [ast(16, 1, 2, 3, 36, 26), kwt(16, 1, 2, 3, 20, 8), whisper_classifier(16, 1, 2, 3, 10, 8)]
)
def test_each_says_something_of_sounds(config) -> None:
    model = build(config)
    embed = config.embed
    frames = torch.randn(2, getattr(embed, "frames", 20), embed.bands)
    logits = model.output("classes", frames)
    assert logits.shape == (2, 3)
    assert torch.equal(logits, torch.zeros(2, 3))  # before training, all are as likely
