"""GELU in one compiled pass is what torch's operations make of it, and is taken by large layers that are trained."""

from __future__ import annotations

import pytest
import torch
from cases import inputs
from torch import Tensor

from headway.engine.slopes import GELU_TANH
from headway.layout import Layout
from headway.nn.kernels import deterministic, gelu_passes, gelu_tanh, gelu_tanh_reference, is_gelu_compiled, products
from headway.nn.kernels.pointwise import shifted_gelu_tanh
from headway.nn.parts.feedforward import MLP, MLPConfig

_ROWS, _WIDTH = 550, 496  # numbers enough to be many; rows that are no multiple of those summed at once


def _of(x: Tensor, bias: Tensor, weights: Tensor, compiled: bool) -> tuple[Tensor, ...]:
    """The value, and the gradients of x and the bias."""
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    with gelu_passes(lambda: GELU_TANH):
        y = shifted_gelu_tanh(x, bias) if compiled else gelu_tanh_reference(x + bias)
    return y, *torch.autograd.grad(y, (x, bias), weights)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_value_and_gradients(kind: torch.dtype) -> None:
    x, weights = (3 * inputs(_ROWS, _WIDTH, seed=seed).to(kind) for seed in (1, 2))
    bias = inputs(_WIDTH, seed=3).float()
    found = _of(x, bias, weights, compiled=True)
    wanted = _of(x.double(), bias.double(), weights.double(), compiled=False)
    assert [each.dtype for each in found] == [kind, kind, torch.float32]
    # slope and gradient are both rounded, to 9 bits
    near = {"rtol": 2e-5, "atol": 2e-5} if kind == torch.float32 else {"rtol": 2**-7, "atol": 2**-7}
    for got, right in zip(found[:2], wanted):
        torch.testing.assert_close(got.double(), right, **near)
    most = 1e-6 if kind == torch.float32 else 2**-8
    assert (found[2] - wanted[2]).norm() < most * wanted[2].norm()
    for once, again in zip(found, _of(x, bias, weights, compiled=True)):
        assert torch.equal(once, again)


def test_far_numbers_and_none() -> None:
    row = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 20.0, -20.0, 0.0] * 2)
    value, slope, _ = _of(row[None], torch.zeros(16), torch.ones(1, 16), compiled=True)
    assert value[0, 0].isnan()
    assert slope[0, 0].isnan()
    assert torch.equal(value[0, [1, 2, 3, 5]], row[[1, 2, 3, 5]])
    torch.testing.assert_close(slope[0, 1:8], torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.5]))
    torch.testing.assert_close(value[0, [4, 6]], torch.zeros(2), rtol=0, atol=1e-8)


def _mlp(activation: str = "gelu_tanh") -> tuple[MLP, Tensor]:
    mlp = MLP(MLPConfig(activation=activation), 32)  # type: ignore[arg-type]
    for seed, parameter in enumerate(mlp.parameters()):
        parameter.data.copy_(0.3 * inputs(*parameter.shape, seed=seed))
    return mlp, inputs(2, 1100, 32, seed=9).float()


def _gradients(mlp: MLP, x: Tensor, compiled: bool) -> tuple[Tensor, ...]:
    with gelu_passes((lambda: GELU_TANH) if compiled else None):
        y, _ = mlp(x, Layout.full(*x.shape[:2]))
    return y, *torch.autograd.grad(y.square().mean(), [p for p in mlp.parameters() if p.requires_grad])


def test_a_large_layer_learns_the_same() -> None:
    mlp, x = _mlp()
    for kind, most in (("fp32", 1e-5), ("bf16", 1e-2)):
        with products(kind):  # type: ignore[arg-type]
            found, wanted = (_gradients(mlp, x, compiled) for compiled in (True, False))
        assert not torch.equal(found[0], wanted[0])
        for got, right in zip(found, wanted):
            assert got.dtype == right.dtype
            assert (got - right).norm() < most * right.norm()


def test_an_adapter_of_the_layer_is_not_left_out() -> None:
    mlp, x = _mlp()
    plain = _gradients(mlp, x, compiled=True)[0]
    mlp.up.register_forward_hook(lambda module, given, out: out + 1)
    found, wanted = (_gradients(mlp, x, compiled) for compiled in (True, False))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found[0] - plain).abs().max() > 0.01


def test_what_is_not_compiled() -> None:
    x = torch.zeros(_ROWS, 8)
    assert not is_gelu_compiled(x, _WIDTH)
    with gelu_passes(lambda: GELU_TANH):
        assert is_gelu_compiled(x, _WIDTH)
        assert not is_gelu_compiled(x, _WIDTH + 1)
        assert not is_gelu_compiled(x[:9], _WIDTH)
        assert not is_gelu_compiled(x.double(), _WIDTH)
        assert not is_gelu_compiled(x.to("meta"), _WIDTH)
        with torch.no_grad():
            assert not is_gelu_compiled(x, _WIDTH)
        with deterministic():
            assert not is_gelu_compiled(x, _WIDTH)
        assert gelu_tanh(torch.tensor(1.0, requires_grad=True)).dim() == 0
