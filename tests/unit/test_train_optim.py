"""Schedules and optimisers against their formulas and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_task import SYMBOLS, counting_recipe
from torch import Tensor, nn

from headway.errors import ConfigError, UserError
from headway.learn import (
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    HalvingConfig,
    InverseSqrtConfig,
    MuonConfig,
    OptimConfig,
    SGDConfig,
    WSDConfig,
    noam_peak,
)
from headway.learn.optim import Optimizer, orthogonalise
from headway.nn.models import build
from headway.nn.parts.projection import Projection


def test_schedules_follow_their_formulas() -> None:
    assert [ConstantConfig(warmup=2).factor(step, 9) for step in (0, 1, 8)] == [0.5, 1, 1]
    cosine = CosineConfig(warmup=10, floor=0.1)
    assert cosine.factor(4, 110) == pytest.approx(0.5)
    assert cosine.factor(59, 110) == pytest.approx(0.55)
    assert cosine.factor(109, 110) == pytest.approx(0.1)
    wsd = WSDConfig(warmup=0.1, decay=0.5)
    assert [wsd.factor(step, 100) for step in (4, 9, 49, 75, 99)] == pytest.approx([0.5, 1, 1, 0.5, 0.02])


def test_halving_is_the_schedule_of_2014() -> None:
    """7.5 epochs of 100 steps: 0.7 for 5 epochs, then halved each half epoch."""
    for schedule in (HalvingConfig(), HalvingConfig(hold=500, every=50)):
        rates = [0.7 * schedule.factor(step, 750) for step in range(750)]
        assert rates == pytest.approx([0.7] * 500 + [0.7 / 2**k for k in range(1, 6) for _ in range(50)])
    assert [HalvingConfig(2, 4, 0.01).factor(step, 9) for step in range(7)] == [0.5, 1, 1, 1, 0.5, 0.25, 0.125]


def test_inverse_square_root_is_the_formula_of_2017() -> None:
    schedule, width, warmup = InverseSqrtConfig(warmup=4000), 512, 4000
    for step in (1, 100, 4000, 4001, 100_000):
        formula = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert noam_peak(width, warmup) * schedule.factor(step - 1, 100_000) == pytest.approx(formula)


def test_settings_out_of_range_name_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"optim.lr is 0; use a number above 0"):
        AdamWConfig(lr=0)
    with pytest.raises(ConfigError, match=r"schedule.decay is 0"):
        WSDConfig(decay=0)
    with pytest.raises(ConfigError, match=r"schedule.every is 0; use a fraction below 1, or a number of steps"):
        HalvingConfig(every=0)


def _small() -> nn.Module:
    return build(counting_recipe(**{"model.vocab_size": SYMBOLS}).model, seed=3)


def _descend(config: OptimConfig, model: nn.Module, steps: int = 4, optimizer: Optimizer | None = None) -> Optimizer:
    """Updates with gradients that depend on the weights and the step alone."""
    optimizer = optimizer or Optimizer(config, model)
    for step in range(optimizer.count, optimizer.count + steps):
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_((parameter.detach() * 3 + step).sin())
        optimizer.step(1.0)
    return optimizer


def test_adamw_is_torchs_with_decay_on_matrices_only() -> None:
    ours, theirs = _small().double(), _small().double()
    config = AdamWConfig(lr=0.01, weight_decay=0.3)
    _descend(config, ours)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    others = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        lr=0.01,
        betas=config.betas,
        eps=config.eps,
    )
    for step in range(4):
        for parameter in theirs.parameters():
            parameter.grad = (parameter.detach() * 3 + step).sin()
        reference.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(mine, other, msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    ours, theirs = _small(), _small()
    _descend(SGDConfig(momentum=momentum), ours)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.7, momentum=momentum)
    for step in range(4):
        for parameter in theirs.parameters():
            parameter.grad = (parameter.detach() * 3 + step).sin()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_gives_singular_values_near_one(dtype: torch.dtype) -> None:
    matrices = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    made = orthogonalise(matrices.to(dtype)).double()
    values = torch.linalg.svdvals(made)
    assert 0.6 < values.min() < values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    assert nn.functional.cosine_similarity(made.flatten(1), (u @ v).flatten(1)).min() > 0.97


class _Stacked(nn.Module):
    """Fused, tall, wide and repeated matrices, some in a stack."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [(8, (8, 4, 4)), (8, 8), (8, 32), (32, 8), (8, (8, 4, 4)), (5, 7)]
        self.stack = nn.ModuleList(Projection(width, slices) for width, slices in shapes)
        self.table = nn.Parameter(torch.empty(9, 8))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)


def test_muon_orthogonalises_each_slice_by_itself() -> None:
    model, plain = _Stacked().double(), _Stacked().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = MuonConfig(lr=0.1, weight_decay=0.5)
    _descend(config, model, steps=2)
    velocity = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for step in range(2):
        for name, parameter in plain.named_parameters():
            if parameter.dim() == 2 and name.startswith("stack"):
                gradient = (parameter.detach() * 3 + step).sin()
                velocity[name] = 0.95 * velocity[name] + 0.05 * gradient
                direction = 0.05 * gradient + 0.95 * velocity[name]
                update = torch.cat([_reference(part) for part in direction.split(list(parameter.slices))])  # type: ignore[attr-defined]
                parameter.data = parameter.data * (1 - 0.1 * 0.5) - 0.1 * update
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name.startswith("stack"):
            torch.testing.assert_close(parameter.data, dict(plain.named_parameters())[name].data, msg=name)
        else:
            assert not torch.equal(parameter, before[name]), name  # by AdamW


def _reference(direction: Tensor) -> Tensor:
    rows, columns = direction.shape
    wide = direction if rows <= columns else direction.T
    made = orthogonalise(wide[None])[0]
    return (made if rows <= columns else made.T) * math.sqrt(max(1, rows / columns))


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig(), SGDConfig(momentum=0.9)])
def test_saved_state_continues_bit_for_bit(config: OptimConfig) -> None:
    whole, first = _small(), _small()
    _descend(config, whole, 4)
    state = _descend(config, first, 2).state_dict()
    second = _small()
    optimizer = Optimizer(config, second)
    with torch.no_grad():
        optimizer.flat.data.copy_(Optimizer(config, first).flat.data)
    optimizer.load_state_dict({name: value.clone() for name, value in state.items()})
    _descend(config, second, 2, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))


def test_a_state_of_another_optimiser_is_refused() -> None:
    state = Optimizer(SGDConfig(), _small()).state_dict()
    with pytest.raises(UserError, match=r"mean\.embed\.table is missing"):
        Optimizer(AdamWConfig(), _small()).load_state_dict(state)


def test_frozen_parameters_stay() -> None:
    model = _small()
    frozen = model.embed.table.requires_grad_(False)  # type: ignore[union-attr,operator]
    before = frozen.clone()
    optimizer = Optimizer(AdamWConfig(), model)
    assert "embed.table" not in optimizer.flat.names
    assert torch.equal(frozen, before)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameters"):
        Optimizer(AdamWConfig(), model)
