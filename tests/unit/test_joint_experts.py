"""Experts computed together have the outputs and gradients of experts one after the other, and wait for no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headway.generate.torch_weights import join_experts, store_in_bf16
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig
from headway.nn.parts.experts import Experts, ExpertsConfig
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, MLPConfig
from headway.nn.parts.joint_experts import mix_few, mix_many
from simulated_gpu import Waits, device

device()  # registered before any test computes gradients, because autograd starts its threads once per process
EXPERTS: dict[str, FeedForwardConfig] = {
    "gated": GatedConfig(16),
    "clamped, with biases": GatedConfig(16, bias=True, limit=1.0, down_bias=False),
    "mlp": MLPConfig(24),
}


def mixture(name: str, active: int = 2) -> Experts:
    torch.manual_seed(0)
    experts = ExpertsConfig(6, active, EXPERTS[name]).build(16)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(experts, Experts)
    return experts.eval()


def mixed(experts: Experts, tokens: Tensor, function: Any) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of tokens and all weights."""
    experts.zero_grad()
    tokens = tokens.clone().requires_grad_()
    with torch.autocast("cpu", enabled=False):  # the same experts
        _, weights, ids = experts._route(experts.router(tokens))
    layout = Layout.full(1, len(tokens))
    if function is None:
        y = experts._mix(tokens, weights, ids, layout)
    else:
        y = function(experts.experts, tokens, weights, ids, layout)
    y.float().square().sum().backward()
    gradients = [parameter.grad for parameter in (tokens, *experts.parameters()) if parameter.grad is not None]
    return y.detach(), gradients


@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("name", EXPERTS)
def test_few_tokens(name: str, count: int) -> None:
    """One token copies the matrices of its experts; 20 use all matrices."""
    experts, tokens = mixture(name), torch.randn(count, 16, generator=torch.Generator().manual_seed(1))
    expected, found = mixed(experts, tokens, None), mixed(experts, tokens, mix_few)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", EXPERTS)
def test_many_tokens_in_grouped_products(name: str) -> None:
    """In bf16, also where an expert has no token."""
    experts, tokens = mixture(name), torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        experts.router.weight[3] = 0
        experts.router.bias = None
    expected = mixed(experts, tokens, None)
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = mixed(experts, tokens, mix_many)
    for ours, theirs in zip((output, *gradients), (expected[0], *expected[1]), strict=True):
        assert float((ours.float() - theirs).norm() / theirs.norm().clamp(min=1e-6)) < 0.03


def test_fp32_and_odd_widths_have_no_grouped_product() -> None:
    experts, tokens = mixture("gated"), torch.randn(4, 16)
    _, weights, ids = experts._route(experts.router(tokens))
    assert mix_many(experts.experts, tokens, weights, ids, Layout.full(1, 4)) is None


def test_a_step_of_training_and_decoding_with_experts_does_not_wait() -> None:
    feed_forward = ExpertsConfig(4, expert=GatedConfig(16))
    config = TransformerConfig(16, 23, None, StackConfig((BlockConfig(AttentionConfig(2), feed_forward=feed_forward),)))
    ids = torch.randint(23, (4, 40), generator=torch.Generator().manual_seed(0))
    expected = config.build(1).eval()(ids).x.detach()
    for is_bf16, count in ((False, 2), (True, 4)):  # few tokens in fp32, many in bf16
        with Waits() as waits:
            model = config.build(1).eval().to(device())
            rows, layout = ids[:count, : 40 if is_bf16 else 20].to(device()), Layout.full(count, 40 if is_bf16 else 20)
            layout = layout.to(device())
            waits.clear()
            with torch.autocast("sim", torch.bfloat16, enabled=is_bf16):
                x = model(rows, layout).x
                x.sum().backward()
            assert not waits.counts
            found = x.detach().cpu()
        torch.testing.assert_close(found, expected[:count, : rows.shape[1]], atol=0.05, rtol=0.05)


def test_joined_experts_are_parts_of_one_tensor() -> None:
    feed_forward = ExpertsConfig(4, expert=GatedConfig(16))
    config = TransformerConfig(16, 23, None, StackConfig((BlockConfig(AttentionConfig(2), feed_forward=feed_forward),)))
    model: Any = config.build(1).eval()
    store_in_bf16(model)
    rows, layout = torch.randn(3, 16), Layout.full(1, 3)
    experts = model.stack.blocks[0].feed_forward
    _, weights, ids = experts._route(experts.router(rows))
    with torch.no_grad():
        before = mix_few(experts.experts, rows, weights, ids, layout)
        join_experts(model)
        assert torch.equal(mix_few(experts.experts, rows, weights, ids, layout), before)
    storages = {expert.down.weight.untyped_storage().data_ptr() for expert in experts.experts}
    assert len(storages) == 1
    assert before.dtype == torch.float32
