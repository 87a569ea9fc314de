"""Chunks of actions: the latent and its posterior, padding, diffusion, and what a model refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headway.config import from_dict, override, to_dict
from headway.errors import ConfigError, UserError
from headway.nn.models import (
    Act,
    ActConfig,
    Chunks,
    DiffusionConfig,
    ModelConfig,
    Observations,
    RegressionConfig,
    act,
    build,
    describe,
)
from headway.nn.models.chunks import NoisyChunks, alphas_cumprod, ddim, ddpm, sampling_steps

close = torch.testing.assert_close
HEADS: list[Any] = [
    RegressionConfig(latent=4),
    RegressionConfig(latent=0),
    DiffusionConfig(10, 4),
    DiffusionConfig(10, 4, predicts="noise", clip=1.0),
]


def config(head: Any = None, cameras: tuple[tuple[int, int], ...] = (), words: int = 0, states: int = 5) -> ActConfig:
    found = act(width=16, depth=2, posterior=2, heads=2, chunk=6, dropout=0.0, head=head or RegressionConfig(latent=4))
    seen = replace(found.observation, states=states, cameras=cameras)
    return replace(found, actions=3, words=words, observation=seen)


def built(settings: ActConfig) -> Act:
    model: Any = build(settings, 1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model.requires_grad_(False).eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shown(rows: int = 3) -> tuple[Observations, Chunks]:
    keep = torch.arange(6) < torch.tensor([6, 4, 1])[:rows, None]
    return Observations(normal(rows, 5)), Chunks(normal(rows, 6, 3, seed=1), keep)


@pytest.mark.parametrize("head", HEADS)
def test_a_config_is_plain_data(head: Any) -> None:
    one = config(head, cameras=((32, 48),), words=7)
    assert from_dict(ModelConfig, to_dict(one)) == one
    told = describe(one)
    assert told["parameters"] == sum(p.numel() for p in built(one).parameters())
    assert ("  posterior" in told["tree"]) == (head.size > 0)


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_learns(head: Any) -> None:
    model = built(config(head, cameras=((32, 16), (16, 16)), words=7)).requires_grad_(True).train()
    seen, chunks = shown()
    images = (normal(3, 3, 32, 16), normal(3, 3, 16, 16))
    words = torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]])
    seen = seen._replace(images=images, words=words, lengths=torch.tensor([2, 1, 3]))
    losses = model.losses(seen, chunks, model.sample_noise(np.random.default_rng(0), 3))
    sum((loss.total for loss in losses.values()), torch.zeros(())).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_the_latent_is_zero_in_use() -> None:
    """The posterior is never asked, and what chance draws changes nothing."""
    model, (seen, _) = built(config()), shown()
    said = model(seen, model.sample_noise(np.random.default_rng(0), 3))
    close(said, model(seen._replace(latent=torch.zeros(3, 4)), model.sample_noise(np.random.default_rng(1), 3)))
    assert not torch.allclose(
        said, model(seen._replace(latent=torch.ones(3, 4)), model.sample_noise(np.random.default_rng(0), 3))
    )
    model.posterior = None
    close(model(seen, model.sample_noise(np.random.default_rng(0), 3)), said)


def test_losses_of_regression_by_hand() -> None:
    """Zhao et al. 2023, algorithm 1."""
    model, (seen, chunks) = built(config(RegressionConfig(latent=4, beta=3.0))), shown()
    drawn = model.sample_noise(np.random.default_rng(0), 3)
    losses = model.losses(seen, chunks, drawn)
    mean, log_variance = model.infer(seen, chunks)
    divergence = 0.0
    for m, v in zip(mean.flatten().tolist(), log_variance.flatten().tolist()):
        divergence += -0.5 * (1 + v - m * m - math.exp(v))
    assert losses["kl"].count == 3
    assert float(losses["kl"].total) == pytest.approx(3.0 * divergence, rel=1e-4)
    said = model(seen._replace(latent=mean + log_variance.exp().sqrt() * drawn.noise), drawn)
    error = sum(
        float((said[row, place] - chunks.actions[row, place]).abs().mean())
        for row in range(3)
        for place in range(6)
        if chunks.mask[row, place]
    )
    assert losses["actions"].count == 11
    assert float(losses["actions"].total) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[1]])
def test_actions_after_the_end_teach_nothing(head: Any) -> None:
    model, (seen, chunks) = built(config(head)), shown()
    drawn = model.sample_noise(np.random.default_rng(0), 3)
    other = torch.where(chunks.mask[..., None], chunks.actions, 99.0)
    for name, loss in model.losses(seen, chunks, drawn).items():
        close(model.losses(seen, Chunks(other, chunks.mask), drawn)[name].total, loss.total)


@pytest.mark.parametrize("head", HEADS)
def test_rows_are_alone(head: Any) -> None:
    """Also where they have different numbers of words."""
    model = built(config(head, words=7))
    words, lengths = torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]]), torch.tensor([3, 1, 2])
    seen = shown()[0]._replace(words=words, lengths=lengths)
    drawn = model.sample_noise(np.random.default_rng(0), 3)
    whole = model(seen, drawn)
    for row in range(3):
        one = Observations(seen.states[row : row + 1], (), words[row : row + 1, : lengths[row]], lengths[row : row + 1])
        steps = None if drawn.steps is None else drawn.steps[row : row + 1]
        alone = model(one, drawn._replace(noise=drawn.noise[row : row + 1], steps=steps))
        close(alone[0], whole[row], rtol=1e-4, atol=1e-5)


def test_the_schedule_is_a_squared_cosine() -> None:
    kept = alphas_cumprod(100)
    wanted = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    for step in (0, 30, 80):
        assert float(kept[step]) == pytest.approx(wanted[step + 1] / wanted[0], rel=1e-5)
    assert bool((kept[1:] < kept[:-1]).all())
    assert float(kept[-1]) > 0
    assert sampling_steps(100, 10) == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]
    assert sampling_steps(3, 3) == [2, 1, 0]


@pytest.mark.parametrize("says", ["noise", "sample"])
def test_with_a_perfect_denoiser_the_sample_comes_back(says: Any) -> None:
    """Whatever the noise and the number of steps, and also where the model says the noise."""
    truth, kept = normal(2, 6, 3, seed=3).clamp(-1, 1), alphas_cumprod(50)

    class Perfect:
        def encode(self, observations: Observations) -> Any:
            return None, {}

        def decode_chunk(self, encoded: Any, noisy: Any) -> Tensor:
            left = kept[noisy.steps][:, None, None]
            return truth if says == "sample" else (noisy.actions - left.sqrt() * truth) / (1 - left).sqrt()

        def infer(self, observations: Observations, chunks: Chunks) -> Any:
            raise AssertionError

    for sampled in (1, 4, 50):
        head = DiffusionConfig(50, sampled, says, clip=1.0)
        drawn = head.sample_noise(np.random.default_rng(5), 2, 6, 3)
        close(head.predict(Perfect(), Observations(), drawn), truth, rtol=1e-3, atol=1e-3)


def test_ddim_takes_noise_away_by_its_equation() -> None:
    """Song et al. 2021, equation 12, two steps by hand."""
    kept = torch.tensor([0.9, 0.4])
    said = {1: torch.full((1, 1, 1), 0.5), 0: torch.full((1, 1, 1), 0.25)}
    seen: list[Tensor] = []

    def part(x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        clean, left = said[int(steps[0])], kept[steps[0]]
        return clean, (x - left.sqrt() * clean) / (1 - left).sqrt()

    x = torch.full((1, 1, 1), 2.0)
    assert float(ddim(x, part, kept, [1, 0])) == 0.25
    noise = (2.0 - math.sqrt(0.4) * 0.5) / math.sqrt(0.6)
    assert float(seen[1]) == pytest.approx(math.sqrt(0.9) * 0.5 + math.sqrt(0.1) * noise, rel=1e-6)


def test_ddpm_adds_noise_by_its_equation() -> None:
    """Ho et al. 2020, equations 6 and 7, two steps by hand; nothing is added at the last."""
    kept = torch.tensor([0.9, 0.4])
    seen: list[Tensor] = []

    def part(x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return torch.full((1, 1, 1), 0.5 if int(steps[0]) else 0.25), x

    noise = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1)
    assert float(ddpm(noise, part, kept, [1, 0])) == 0.25
    alpha = 0.4 / 0.9
    mean = math.sqrt(0.9) * (1 - alpha) / 0.6 * 0.5 + math.sqrt(alpha) * 0.1 / 0.6 * 2.0
    assert float(seen[1]) == pytest.approx(mean + math.sqrt(0.1 / 0.6 * (1 - alpha)) * 3.0, rel=1e-6)


def test_steps_that_end_at_the_first() -> None:
    assert sampling_steps(100, 10, "leading") == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert sampling_steps(20, 6, "leading") == [15, 12, 9, 6, 3, 0]


def test_diffusion_learns_what_it_says() -> None:
    """Noise of the drawn step on the actions, and the error of what is wanted, over the actions that there are."""
    for says in ("noise", "sample"):
        model, (seen, chunks) = built(config(DiffusionConfig(10, 4, says, clip=1.0))), shown()
        drawn = model.sample_noise(np.random.default_rng(0), 3)
        kept = alphas_cumprod(10)[drawn.steps][:, None, None]
        noised = NoisyChunks(kept.sqrt() * chunks.actions + (1 - kept).sqrt() * drawn.noise, drawn.steps)
        error = model.decode_chunk(model.encode(seen)[0], noised) - (drawn.noise if says == "noise" else chunks.actions)
        wanted = error.square().mean(-1)[chunks.mask].sum()
        found = model.losses(seen, chunks, drawn)["actions"]
        assert found.count == 11
        close(found.total, wanted)


def test_settings_reach_all_stacks() -> None:
    one = override(config(), {"depth": [3, 2], "heads": 4, "width": 32, "dropout": 0.2})
    assert [len(stack.blocks) for stack in (one.encoder, one.decoder, one.posterior)] == [3, 2, 3]
    assert one.observation.dropout == one.decoder.blocks[0].dropout == 0.2
    assert built(one)(shown()[0], built(one).sample_noise(np.random.default_rng(0), 3)).shape == (3, 6, 3)
    assert override(one, {"depth": [1, 1, 4]}).posterior.blocks[3:]
    lstm = built(override(config(), {"mixer": "lstm"}))
    assert lstm(shown()[0], lstm.sample_noise(np.random.default_rng(0), 3)).shape == (3, 6, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 0}, "model.chunk=0 and"),
        ({"head.latent": -1}, "latent=-1 and beta"),
        ({"head": {"kind": "diffusion", "sampled": 101}}, "cannot sample 101 of 100 steps"),
        ({"head": {"kind": "diffusion", "predicts": "noise"}}, "set model.head.clip=1"),
        ({"depth": [1, 2, 3, 4]}, r"model\.depth is \[1, 2, 3, 4\]"),
        ({"observation": {"kind": "robot", "states": 0}}, "has no state and no cameras"),
        ({"observation.cameras": [[30, 32]]}, "do not split into 16 x 16 patches"),
        ({"encoder": {"blocks": [{}]}}, "model.encoder is causal"),
    ],
)
def test_models_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(override(config(), settings))


def test_observations_that_do_not_fit() -> None:
    model, (seen, _) = built(config(words=7)), shown()
    drawn = model.sample_noise(np.random.default_rng(0), 3)
    with pytest.raises(UserError, match="needs the words of the task"):
        model(seen, drawn)
    with pytest.raises(UserError, match="states have size 4, not this model's 5"):
        model(Observations(normal(3, 4)), drawn)
    with pytest.raises(UserError, match="images from 1 cameras for a model with 0"):
        model(seen._replace(images=(normal(3, 3, 16, 16),)), drawn)
    plain = built(config())
    with pytest.raises(UserError, match="does not take task words"):
        plain(seen._replace(words=torch.ones(3, 1, dtype=torch.long), lengths=torch.ones(3, dtype=torch.long)), drawn)
