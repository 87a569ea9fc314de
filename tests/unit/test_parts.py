"""Layouts, dropout, positions and initial weights."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import nn

from headway.errors import ConfigError
from headway.layout import Layout
from headway.learn.learner import attach_generator
from headway.nn.mixers import ConditionalGRUConfig, ElmanConfig, GRUConfig, LSTMConfig
from headway.nn.models import build
from headway.nn.models.presets import gpt, transformer_2017
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.init import InitConfig, initialise
from headway.nn.parts.positions import SinusoidalConfig
from headway.nn.parts.projection import Projection


def test_layouts() -> None:
    packed = Layout.packed([[2, 3], [4]], 6)
    assert packed.positions.tolist() == [[0, 1, 0, 1, 2, -1], [0, 1, 2, 3, -1, -1]]
    assert packed.segments.tolist() == [[1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1]]
    assert packed.lengths.tolist() == [5, 4]
    assert not packed.dense
    assert Layout.packed([[3], [3]]).dense
    assert not Layout.packed([[2, 1], [3]]).dense
    assert Layout.padded([3, 3]).dense
    assert not Layout.padded([3, 2]).dense
    assert not Layout.full(1, 2, offset=4).dense
    assert Layout.full(1, 2, offset=4).positions.tolist() == [[4, 5]]
    assert packed.select(torch.tensor([1, 1])).positions.tolist() == [packed.positions[1].tolist()] * 2


def test_dropout_keeps_the_mean_and_repeats_with_its_seed() -> None:
    module = Dropout(0.3).train()
    generator = attach_generator(module)
    x = torch.ones(1000, 401)
    generator.manual_seed(7)
    first = module(x)
    assert first.mean().item() == pytest.approx(1.0, abs=0.005)
    for column in range(4):  # every 16 bits of a word serve
        assert (first[:, column::4] == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    generator.manual_seed(7)
    assert torch.equal(module(x), first)
    assert not torch.equal(module(x), first)
    assert torch.equal(module.eval()(x), x)


def test_dropout_keeps_the_mean_of_bf16() -> None:
    module = Dropout(0.1).train()
    attach_generator(module).manual_seed(7)
    x = torch.rand(1 << 18, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = module(x)
    assert y.dtype == x.dtype
    gained = y.double().sum() / x.double()[y != 0].sum()
    assert gained.item() == pytest.approx(1 / 0.9, rel=2e-4)  # the scale rounded to bf16 would be 0.15 % less


def test_dropout_needs_no_generator_of_torch() -> None:
    module = Dropout(0.5).train()
    attach_generator(module).manual_seed(1)
    before = torch.get_rng_state()
    module(torch.ones(100))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_dropout_refuses(p: float) -> None:
    with pytest.raises(ConfigError, match="set a probability below 1"):
        Dropout(p)


def test_sinusoids_are_those_of_the_paper() -> None:
    module = SinusoidalConfig().build(8, None)
    found = module(Layout.full(1, 20), torch.zeros(1))[0]
    for position in (0, 1, 19):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert found[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_initial_weights() -> None:
    module = nn.ModuleDict({"a": Projection(256, (128, 512)), "b": Projection(256, 256, residual=True)})
    initialise(module, InitConfig("xavier", residual="zero"), 2, 0)
    first, second = module["a"].weight.split((128, 512))  # type: ignore[operator]
    assert first.std().item() == pytest.approx(math.sqrt(2 / (256 + 128)), rel=0.02)
    assert second.std().item() == pytest.approx(math.sqrt(2 / (256 + 512)), rel=0.02)
    assert module["b"].weight.abs().sum() == 0  # type: ignore[operator]
    initialise(module, InitConfig("normal", std=0.02, residual="scaled"), 8, 0)
    assert module["b"].weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)  # type: ignore[operator]


@pytest.mark.parametrize("uniform", [None, 0.08])
def test_recurrent_matrices_start_orthogonal_where_asked(uniform: float | None) -> None:
    mixers = [ElmanConfig(), LSTMConfig(), GRUConfig(reset_after=True), ConditionalGRUConfig()]
    for config in mixers:
        module = config.build(32, nn.ModuleDict())
        initialise(module, InitConfig(uniform=uniform, recurrent="orthogonal"), 1, 3)
        hidden = cast(Projection, module.hidden)
        matrices = hidden.weight.split(32)
        for matrix in matrices:
            assert torch.allclose(matrix @ matrix.T, torch.eye(32), atol=1e-5)
        assert not any(torch.equal(matrix, matrices[0]) for matrix in matrices[1:])
        inputs = cast(Projection, module.input).weight
        assert inputs.std().item() == pytest.approx(0.02 if uniform is None else 0.08 / 3**0.5, rel=0.1)
        initialise(module, InitConfig(uniform=uniform), 1, 3)
        assert hidden.weight.std().item() == pytest.approx(inputs.std().item(), rel=0.1)


def test_untrained_models_know_nothing() -> None:
    """The loss of fresh weights is close to that of guessing."""
    model = build(gpt(64, 2, 4, vocab_size=101, context=32)).eval()
    ids = torch.arange(64).view(2, 32)
    loss = model.heads["vocabulary"].loss(model(ids).x, ids.flip(1))  # type: ignore[union-attr,operator]
    assert loss.total.item() / loss.count == pytest.approx(math.log(101), abs=0.1)


def test_shared_table_is_one_parameter() -> None:
    model = build(transformer_2017(32, 1, 2, 64, vocab_size=50))
    tables = [p for p in model.parameters() if p.shape == (50, 32)]
    assert len(tables) == 1
