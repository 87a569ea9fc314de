"""Laws of biases made from a whole row: rows do not know of each other, and nothing else than a row is taken."""

from __future__ import annotations

import pytest
import torch
from cases import HEADS, WHOLE_BIASES, WIDTH, shake

from headway.errors import UserError
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig
from headway.nn.models.stack import Stack
from headway.visibility import Full

LENGTH = 6


def stack(name: str) -> Stack:
    block = BlockConfig(AttentionConfig(HEADS, pattern=Full(), bias=name))
    made = Stack(StackConfig((block, block), biases=WHOLE_BIASES), WIDTH)
    shake(made)
    return made.eval()


def rows(count: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(count, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", WHOLE_BIASES)
def test_rows_are_independent(name: str) -> None:
    model, x = stack(name), rows(3)
    with torch.no_grad():
        together, *_ = model(x, Layout.full(3, LENGTH))
        for row in range(3):
            alone, *_ = model(x[row : row + 1], Layout.full(1, LENGTH))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", WHOLE_BIASES)
def test_the_bias_matters_and_all_of_a_row_is_in_it(name: str) -> None:
    model, x = stack(name), rows(2)
    bias = model.biases[name]
    layout = Layout.full(2, LENGTH)
    with torch.no_grad():
        found = bias(x, layout, layout)
        for place in range(LENGTH):
            other = x.clone()
            other[0, place] += 1.0
            changed = bias(other, layout, layout)
            assert (changed[0] - found[0]).abs().amax() > 1e-6
            torch.testing.assert_close(changed[1], found[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WHOLE_BIASES)
def test_gradients(name: str) -> None:
    model = stack(name)
    layout = Layout.full(1, LENGTH)
    x = rows(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, layout)[0], (x,), fast_mode=True)
    (model(x, layout)[0] ** 2).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", WHOLE_BIASES)
def test_what_is_no_whole_row_is_refused(name: str) -> None:
    model = stack(name)
    with pytest.raises(UserError, match="exactly 6 tokens"):
        model(rows(1, 5), Layout.full(1, 5))
    with pytest.raises(UserError, match="exactly 6 tokens"):
        model(rows(2), Layout.padded(torch.tensor([6, 4]), LENGTH))
    with pytest.raises(UserError, match="exactly 6 tokens"):
        model(rows(1), Layout.packed([[4, 2]], LENGTH))
