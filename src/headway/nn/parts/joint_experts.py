"""Experts computed together, without asking a GPU how many tokens each has."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headway.layout import Layout
from headway.nn.kernels.linear import is_stored_in_bf16
from headway.nn.parts.expert_copies import Copies, Sums
from headway.nn.parts.projection import Projection

Product = Callable[[Tensor, Tensor], Tensor]  # of inputs and the matrices [E, O, I] of all experts


class JointProjection(nn.Module):
    """One projection of every expert, as one product."""

    is_hooked = False

    def __init__(self, matrices: Float[Tensor, "E O I"], offsets: Tensor | None, inner: bool, product: Product) -> None:
        super().__init__()
        self.matrices, self.offsets, self.inner, self.product = matrices, offsets, inner, product
        self.bias = None  # it is part of this product

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        is_bf16 = is_stored_in_bf16(self.matrices)
        y = self.product(x.bfloat16() if is_bf16 else x, self.matrices)
        y = y if self.offsets is None else y + self.offsets
        return y.bfloat16() if is_bf16 and self.inner else y.float() if is_bf16 else y


def stacked(experts: nn.ModuleList, name: str) -> Float[Tensor, "E O I"]:
    """The matrices of a projection of all experts: one tensor of which they are parts, or copies of them."""
    parts: list[Projection] = [getattr(expert, name) for expert in experts]
    joint = getattr(parts[0], "joint", None)
    return torch.stack([part.matrix() for part in parts]) if joint is None else joint


def _joined(
    experts: nn.ModuleList, product: Product, offsets: Callable[[Tensor], Tensor], select: Callable[[Tensor], Tensor]
) -> nn.Module:
    """A module that computes all experts: the first one, with the projections of all. `offsets` and `select` give the
    biases [E, O] and matrices of a product's inputs.
    """
    joined = copy.copy(experts[0])
    modules: dict[str, nn.Module | None] = dict(joined._modules)
    for name, part in experts[0].named_children():
        if isinstance(part, Projection):
            biases = None
            if part.bias is not None:
                biases = offsets(torch.stack([getattr(expert, name).offset() for expert in experts]))
            modules[name] = JointProjection(select(stacked(experts, name)), biases, part.inner, product)
    joined.__dict__["_modules"] = modules
    return joined


def mix_few(
    experts: nn.ModuleList,
    tokens: Float[Tensor, "N D"],
    weights: Float[Tensor, "N A"],
    expert_ids: Int[Tensor, "N A"],
    layout: Layout,
) -> Float[Tensor, "N D"]:
    """The weighted sum of each token's experts, with fixed shapes: all experts for all tokens, or, if that reads fewer
    weights, a copy of the chosen experts' matrices per token.
    """
    count, active = expert_ids.shape

    def product(x: Tensor, matrices: Tensor) -> Tensor:
        multiply = getattr(matrices, "product", None)  # of matrices in few bits, which have a kernel
        return torch.bmm(x, matrices.mT) if multiply is None else multiply(x)

    if count * active < len(experts):
        chosen = expert_ids.flatten()
        module = _joined(experts, product, lambda biases: biases[chosen][:, None], lambda stack: stack[chosen])
        outputs, _ = module(tokens.repeat_interleave(active, 0)[:, None], layout)
        outputs = outputs.view(count, active, -1)
    else:
        module = _joined(experts, product, lambda biases: biases[:, None], lambda stack: stack)
        everything, _ = module(tokens.expand(len(experts), -1, -1), layout)
        outputs = everything[expert_ids, torch.arange(count, device=tokens.device)[:, None]]
    return (outputs * weights[..., None].to(outputs.dtype)).sum(1)


def mix_many(
    experts: nn.ModuleList,
    tokens: Float[Tensor, "N D"],
    weights: Float[Tensor, "N A"],
    expert_ids: Int[Tensor, "N A"],
    layout: Layout,
) -> Float[Tensor, "N D"] | None:
    """The weighted sum by torch's grouped products in bf16; None in fp32, and for widths that no kernel has."""
    parts = [part for part in experts[0].children() if isinstance(part, Projection)]
    autocast = torch.is_autocast_enabled(tokens.device.type)
    is_bf16 = torch.get_autocast_dtype(tokens.device.type) == torch.bfloat16 if autocast else False
    if not (is_bf16 or is_stored_in_bf16(parts[0].weight)) or any(size % 8 for p in parts for size in p.weight.shape):
        return None
    sorted_ids, order = expert_ids.flatten().sort(stable=True)
    numbers = torch.arange(len(experts), device=tokens.device)
    ends = torch.searchsorted(sorted_ids, numbers, right=True).int()
    slots, rows = order.argsort().view_as(expert_ids), order // expert_ids.shape[1]

    def product(x: Tensor, matrices: Tensor) -> Tensor:
        return torch._grouped_mm(x[0].bfloat16(), matrices.bfloat16().mT, offs=ends)[None]  # type: ignore[attr-defined]

    module = _joined(experts, product, lambda biases: biases[sorted_ids], lambda stack: stack)
    mixed = module(Copies.apply(tokens, rows, slots)[None], layout)[0][0]
    return Sums.apply(mixed * weights.flatten()[order, None].to(mixed.dtype), rows, slots)
