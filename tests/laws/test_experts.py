"""Laws of mixtures of experts: tokens sorted by expert give, bit for bit, what one expert after the other gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FEED_FORWARDS, inputs, shake
from torch import Tensor

from headway.layout import Layout
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import GatedConfig


def one_by_one(module: Any, x: Tensor) -> Tensor:
    """The sum over experts in their order, each with a look at all tokens."""
    tokens = x.reshape(-1, x.shape[-1])
    weights, expert_ids = module.router(tokens).softmax(-1).topk(module.config.active, dim=-1)
    if module.config.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(tokens)
    for index, expert in enumerate(module.experts):
        rows, slots = (expert_ids == index).nonzero(as_tuple=True)
        part, _ = expert(tokens[rows][None], Layout.full(*x.shape[:2]))
        out = out.index_add(0, rows, part[0] * weights[rows, slots, None])
    return out.view_as(x)


@pytest.mark.parametrize(("count", "active"), [(4, 2), (9, 4), (3, 1), (40, 3)])
def test_sorted_tokens_keep_the_bits(count: int, active: int) -> None:
    """Outputs, and gradients of the input and of every weight: a run of an older version resumes as it was."""
    module: Any = ExpertsConfig(count, active, GatedConfig(ratio=1.0)).build(16)
    shake(module)
    module.float()
    x = inputs(3, 7, 16).float()
    found = []
    for run in (lambda x: module(x, Layout.full(3, 7))[0], lambda x: one_by_one(module, x)):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        module.zero_grad()
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        assert all(gradient is not None for gradient in gradients)
        found.append([y, leaf.grad, *gradients])
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(*found))


@pytest.mark.parametrize("name", [name for name in FEED_FORWARDS if name.startswith("experts")])
def test_gradients_are_those_of_differences(name: str) -> None:
    module: Any = FEED_FORWARDS[name].build(4)
    shake(module)
    x = inputs(1, 5, 4).requires_grad_()
    layout = Layout.full(1, 5)
    assert torch.autograd.gradcheck(lambda x: module(x, layout)[0], x)


def test_the_bias_for_the_choice_chooses_but_does_not_weigh() -> None:
    module: Any = ExpertsConfig(4, 2, GatedConfig(ratio=1.0), scores="sigmoid", normalise=False).build(8)
    shake(module)
    x, layout = inputs(2, 3, 8), Layout.full(2, 3)
    before, _ = module(x, layout)
    module.correction[:] = 5.0  # of all: no choice changes
    assert torch.equal(module(x, layout)[0], before)
    module.correction[1] = 1e3
    module.correction[3] = 1e3
    scores = module.router(x).sigmoid()
    wanted = sum(scores[..., n, None] * module.experts[n](x, layout)[0] for n in (1, 3))
    torch.testing.assert_close(module(x, layout)[0], wanted)
