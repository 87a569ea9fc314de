"""Trajectories as tokens: their order, who sees whom, step by step as in one piece, and states that are images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headway.config import override
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.nn.models import (
    ConvolutionsConfig,
    PatchesConfig,
    StateVectorConfig,
    TrajectoryInputs,
    Transformer,
    TransformerConfig,
    build,
    describe,
    step_heads,
)
from headway.nn.models.presets import decision_atari, decision_gym
from headway.nn.parts.convolution import ImageConvolution

STEPS, STATES, ACTIONS = 6, 3, 2


def atari(image: int = 36) -> TransformerConfig:
    """That of Atari, smaller: positions, tanh, the timestep of the first step."""
    config = override(decision_atari(steps=STEPS, timesteps=50), {"width": 16, "depth": 2, "heads": 2})
    embed = replace(config.embed, states=ConvolutionsConfig((image, image), 2), actions=ACTIONS)  # type: ignore[call-arg]
    return replace(config, embed=embed, heads=step_heads(embed))


CONFIGS: dict[str, TransformerConfig] = {
    "numbers": decision_gym(STATES, ACTIONS, width=16, depth=2, heads=2, timesteps=50, extra=True),
    "choices": decision_gym(STATES, ACTIONS, discrete=True, width=16, depth=2, heads=2, timesteps=50),
    "atari": atari(),
    "lstm": override(decision_gym(STATES, ACTIONS, width=16, depth=1, heads=2, timesteps=50), {"mixer": "lstm"}),
    "delta": override(
        decision_gym(STATES, ACTIONS, width=16, depth=1, heads=2, timesteps=50), {"mixer": "gated_delta"}
    ),
}


def model(name: str) -> Transformer:
    """With no weight at zero, so that all that can matter does."""
    found: Any = build(CONFIGS[name])
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.2)
    return found.eval()


def inputs_of(
    built: Transformer, batch: int = 2, steps: int = STEPS, first: int = 0, seed: int = 0
) -> TrajectoryInputs:
    embed: Any = built.config.embed
    random = torch.Generator().manual_seed(seed)
    actions = torch.randn(batch, steps, ACTIONS, generator=random)
    if embed.discrete:
        actions = torch.randint(0, ACTIONS, (batch, steps), generator=random)
    returns = torch.randn(batch, steps, generator=random) if embed.returns else None
    states = torch.randn(batch, steps, *embed.states.shape, generator=random)
    return TrajectoryInputs(returns, states, actions, torch.arange(first, first + steps).expand(batch, steps))


def changed(inputs: TrajectoryInputs, name: str, step: int) -> TrajectoryInputs:
    values = getattr(inputs, name).clone()
    values[:, step] = 1 - values[:, step] if values.dtype == torch.long else values[:, step] + 1
    return inputs._replace(**{name: values})


def differs(a: Tensor, b: Tensor) -> list[int]:
    """The places along time where two tensors differ."""
    return torch.nonzero((a - b).abs().amax((0, 2)) > 1e-6)[:, 0].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_stand_in_the_order_of_the_paper(name: str) -> None:
    built = model(name)
    inputs = inputs_of(built)
    x, layout = built.embed(inputs, built.embed.default_layout(inputs))
    assert x.shape[:2] == layout.positions.shape == (2, 3 * STEPS)
    for place, part in enumerate(("returns", "states", "actions")):
        other, _ = built.embed(changed(inputs, part, 2), built.embed.default_layout(inputs))
        assert differs(x, other) == [3 * 2 + place]
    other, _ = built.embed(inputs._replace(timesteps=inputs.timesteps + 7), layout=built.embed.default_layout(inputs))
    assert differs(x, other) == list(range(3 * STEPS))  # all tokens have their timestep


@pytest.mark.parametrize("name", CONFIGS)
def test_an_action_sees_its_state_and_return_and_what_was_before_alone(name: str) -> None:
    built = model(name)
    inputs = inputs_of(built)
    with torch.no_grad():
        said = built.output("actions", inputs)
        assert said.shape == (2, STEPS, ACTIONS)
        for part, first in (("returns", 2), ("states", 2), ("actions", 3)):
            assert differs(said, built.output("actions", changed(inputs, part, 2))) == list(range(first, STEPS))


def test_the_next_state_and_return_are_said_from_the_action() -> None:
    built = model("numbers")
    inputs = inputs_of(built)
    with torch.no_grad():
        for head, size in (("states", STATES), ("returns", 1)):
            said = built.output(head, inputs)
            assert said.shape == (2, STEPS, size)
            assert differs(said, built.output(head, changed(inputs, "actions", 2))) == list(range(2, STEPS))
            assert differs(said, built.output(head, changed(inputs, "states", 3))) == list(range(3, STEPS))


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_padded_at_the_left_say_what_they_say_alone(name: str) -> None:
    built = model(name)
    inputs = inputs_of(built, first=4)
    keep = torch.arange(STEPS) >= torch.tensor([2, 0])[:, None]
    layout = Layout(torch.where(keep, torch.arange(STEPS) - torch.tensor([2, 0])[:, None], -1))
    short = TrajectoryInputs(*(part[:1, 2:] for part in inputs))  # type: ignore[index]
    with torch.no_grad():
        both, alone = built.output("actions", inputs, layout), built.output("actions", short)
        torch.testing.assert_close(both[:1, 2:], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both[1:], built.output("actions", inputs)[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_step_by_step_is_the_whole(name: str) -> None:
    """A further step's tokens after the states of those before; the last action may be unknown."""
    built = model(name)
    inputs = inputs_of(built)
    with torch.no_grad():
        whole = built(inputs).x
        first = TrajectoryInputs(*(part[:, :1] for part in inputs))  # type: ignore[index]
        first = first._replace(actions=inputs.actions[:, :0])
        x, layout = built.embed(first, Layout.full(2, 1))
        states = built.stack.initial_states(2, 3 * STEPS, like=x)
        pieces = []
        for step in range(STEPS):
            if step:
                here = TrajectoryInputs(*(part[:, step : step + 1] for part in inputs))  # type: ignore[index]
                x, layout = built.embed.step_tokens(inputs.actions[:, step - 1], here, Layout.full(2, 1, step))  # type: ignore[operator]
            x, states, _ = built.stack(x, layout, states)
            pieces.append(x)
        torch.testing.assert_close(torch.cat(pieces, 1), whole[:, :-1], rtol=1e-4, atol=1e-5)
        without = built(inputs._replace(actions=inputs.actions[:, :-1])).x
        torch.testing.assert_close(without, whole[:, :-1], rtol=1e-4, atol=1e-5)


def test_without_returns_a_step_is_two_tokens() -> None:
    embed = replace(CONFIGS["numbers"].embed, returns=False)
    built: Any = build(replace(CONFIGS["numbers"], embed=embed, heads=step_heads(embed))).eval()  # type: ignore[arg-type]
    inputs = inputs_of(built)
    assert inputs.returns is None
    assert built(inputs).x.shape[1] == 2 * STEPS
    assert differs(built.output("actions", inputs), built.output("actions", changed(inputs, "actions", 2))) == [3, 4, 5]


@pytest.mark.parametrize(("taps", "stride", "shape"), [(8, 4, (84, 84)), (3, 1, (7, 9)), (4, 3, (11, 17))])
def test_convolutions_are_torchs(taps: int, stride: int, shape: tuple[int, int]) -> None:
    ours = ImageConvolution(3, 5, taps, stride, padded=False)
    torch.nn.init.normal_(ours.product.weight)
    x = torch.randn(2, 3, *shape)
    kernel = ours.product.weight.view(5, taps, taps, 3).permute(0, 3, 1, 2)
    theirs = F.conv2d(x, kernel, ours.product.bias, stride).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours(x.permute(0, 2, 3, 1)), theirs, rtol=1e-4, atol=1e-4)


def test_images_by_patches_are_one_token() -> None:
    config = PatchesConfig((4, 4), (8, 12), 2)
    embed = replace(CONFIGS["choices"].embed, states=config)  # type: ignore[type-var]
    built: Any = build(replace(CONFIGS["choices"], embed=embed))
    inputs = inputs_of(built)
    assert inputs.states.shape == (2, STEPS, 2, 8, 12)
    assert built(inputs).x.shape == (2, 3 * STEPS, 16)


def test_the_atari_model_is_of_the_size_by_hand() -> None:
    """Convolutions 8,224, 32,832 and 36,928, their map 3,136 to 128, maps of returns and four actions, 6 layers."""
    convolutions = 8_224 + 32_832 + 36_928 + 3_136 * 128 + 128
    layer = 12 * 128 * 128 + 13 * 128
    wanted = convolutions + 2 * 128 + 4 * 128 + 10_000 * 128 + 90 * 128 + 6 * layer + 2 * 128 + 4 * 128
    assert describe(decision_atari())["parameters"] == wanted == 2_962_208


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": StateVectorConfig(0)}, "model.embed.states.size is 0"),
        ({"actions": 0}, "actions=0 and"),
        ({"timesteps": 0}, "timesteps=0; set"),
        ({"states": ConvolutionsConfig((20, 20), 1)}, "20 x 20 are too small"),
        ({"states": PatchesConfig((8, 8), (20, 20), 1)}, "do not split into 8 x 8 patches"),
    ],
)
def test_what_cannot_be_built_is_told(change: dict[str, Any], message: str) -> None:
    config = replace(CONFIGS["numbers"], embed=replace(CONFIGS["numbers"].embed, **change))
    with pytest.raises(ConfigError, match=message):
        build(config)


def test_inputs_that_do_not_fit_are_told() -> None:
    built = model("numbers")
    inputs = inputs_of(built)
    with pytest.raises(UserError, match="6 steps but 2 actions"):
        built(inputs._replace(actions=inputs.actions[:, :2]))
    with pytest.raises(UserError, match="needs returns-to-go"):
        built(inputs._replace(returns=None))
