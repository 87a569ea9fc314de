"""A U-Net over time and what finds places in pictures: their parts against torch's, and what they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.nn.models import Chunks, DiffusionConfig, KeypointsConfig, Observations, UNetConfig, UNetPolicyConfig
from headway.nn.models.keypoints import SpatialSoftmax, grid_coordinates
from headway.nn.models.resnet import GroupNorm
from headway.nn.models.unet_policy import KeypointEncoder, UNet
from headway.nn.parts.convolution import DoublingConvolution
from headway.nn.parts.init import InitConfig, initialise

NET = UNetConfig((8, 16), 3, 4, 8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_doubling_is_a_transposed_convolution() -> None:
    theirs, ours = nn.ConvTranspose1d(3, 5, 4, 2, 1), DoublingConvolution(3, 5)
    with torch.no_grad():
        ours.product.weight.copy_(theirs.weight.flatten(1).T)
        ours.bias.copy_(theirs.bias)  # type: ignore[arg-type]
        x = normal(2, 6, 3)
        torch.testing.assert_close(ours(x), theirs(x.mT).mT, rtol=1e-5, atol=1e-6)


def test_groups_of_channels_are_normalised_over_all_places() -> None:
    norm, x = GroupNorm(2, 6), normal(2, 4, 5, 6)
    y = norm(x).unflatten(-1, (2, 3))
    torch.testing.assert_close(y.mean((1, 2, 4)), torch.zeros(2, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.square().mean((1, 2, 4)), torch.ones(2, 2), rtol=1e-4, atol=0)


def test_a_bright_spot_is_found_where_it_is() -> None:
    softmax = SpatialSoftmax(1, 1, (3, 5))
    with torch.no_grad():
        softmax.maps.weight.fill_(1.0)
    x = torch.zeros(1, 3, 5, 1)
    x[0, 2, 1] = 60.0
    torch.testing.assert_close(softmax(x), torch.tensor([[[-0.5, 1.0]]]))
    sharp = SpatialSoftmax(1, 1, (3, 5), sharpness=60.0)
    sharp.load_state_dict(softmax.state_dict())
    torch.testing.assert_close(sharp(x / 60), softmax(x))
    assert grid_coordinates((1, 2)).tolist() == [[-1.0, -1.0], [1.0, -1.0]]


def test_the_middle_of_a_picture_is_read() -> None:
    eye = KeypointEncoder(KeypointsConfig(cameras=((40, 50),), crop=(32, 32), points=2))
    initialise(eye, InitConfig("fan_in"), 1, 0)
    image = normal(1, 3, 40, 50)
    border = image.clone()
    border[:, :, :4], border[..., :9], border[..., 41:] = 0, 0, 0
    with torch.no_grad():
        torch.testing.assert_close(eye(image), eye(border))


@pytest.mark.parametrize("numbers", [1, 3])
def test_a_net_keeps_time_and_is_told(numbers: int) -> None:
    net = UNet(NET, numbers, 5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, steps, seen = normal(2, 6, numbers), torch.tensor([0, 9]), normal(2, 5, seed=1)
    found = net(x, steps, seen)
    assert found.shape == x.shape
    assert not torch.allclose(net(x, steps + 1, seen), found)
    assert not torch.allclose(net(x, steps, seen + 1), found)
    torch.testing.assert_close(net(x[1:], steps[1:], seen[1:]), found[1:], rtol=1e-4, atol=1e-6)  # rows are apart


def policy(**settings: Any) -> UNetPolicyConfig:
    head = DiffusionConfig(20, 5, predicts="noise", clip=1.0, spacing="leading")
    return UNetPolicyConfig(**{"horizon": 4, "actions": 2, "net": NET, "head": head, **settings})


def test_it_learns_what_to_do_where() -> None:
    """Two states, two ways to go: after some steps the chunks are those that were shown."""
    model = policy(observation=KeypointsConfig(2), head=DiffusionConfig(20, 5)).build()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    random = np.random.default_rng(0)
    states = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])[:, None].expand(2, 2, 2)
    shown = torch.stack([torch.full((4, 2), 0.6), torch.full((4, 2), -0.6)])
    for _ in range(180):
        rows = torch.from_numpy(random.integers(0, 2, 32))
        chunks = Chunks(shown[rows], torch.ones(32, 4, dtype=torch.bool))
        total, count = model.losses(Observations(states[rows]), chunks, model.sample_noise(random, 32))["actions"]
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()
    with torch.no_grad():
        found = model(Observations(states), model.sample_noise(random, 2))
    assert found.shape == (2, 3, 2)  # from the present on
    assert float((found - shown[:, 1:]).abs().max()) < 0.4


def test_a_config_is_data() -> None:
    config = policy(observation=KeypointsConfig(2, 1, ((40, 40),), (36, 36), (32, 32), 3, 34, "frozen", True))
    assert from_dict(UNetPolicyConfig, to_dict(config)) == config


def test_sizes_are_those_of_the_data() -> None:
    kept = KeypointsConfig(2, 1, ((40, 40),))
    assert kept.with_inputs(3, ((40, 40),)) == kept
    assert kept.with_inputs(5, ()) == KeypointsConfig(5)


def test_what_is_not_seen_is_said() -> None:
    model = policy(observation=KeypointsConfig(2)).build()
    with pytest.raises(UserError, match="states have size 3, not this model's 2"):
        model(Observations(normal(1, 2, 3)), model.sample_noise(np.random.default_rng(0), 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: KeypointsConfig(-1), "robot=-1, surroundings=0 and points=32: sizes must be at least 0"),
        (lambda: KeypointsConfig(1, 0, ((40, 40), (40, 41))), "the cameras have 2 different image sizes"),
        (lambda: KeypointsConfig(1, 0, ((40, 0),)), "set both sides from 1 to"),
        (lambda: UNetConfig((8, 12), 3, 8), "12 channels are not divisible into 8 groups"),
        (lambda: UNetConfig((12,), 3, 4), "set a multiple of 8"),
        (lambda: policy(horizon=5), "set a multiple of 2"),
        (lambda: policy(history=0), "model.history must be at least 1"),
    ],
)
def test_models_that_cannot_be(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
