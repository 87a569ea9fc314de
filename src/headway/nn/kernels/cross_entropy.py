"""A fused linear layer and cross-entropy that never materialises all logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headway.nn.kernels.linear import are_products_bf16

# Logits in memory at once: 64 MiB in fp32. The weight gradient is a product over a chunk's rows; with a vocabulary of
# 50,000, a quarter of this size makes the three products 1.2 times slower.
_CHUNK_ELEMENTS = 1 << 24
IGNORE_INDEX = -100  # the label of a position that has no target


def true_indices(mask: Bool[Tensor, "N"], count: int) -> Int[Tensor, "n"]:
    """The indices of the `count` true elements. A program does not wait for a GPU, because it knows their number."""
    return torch.nonzero_static(mask, size=count)[:, 0]


def linear_cross_entropy(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    labels: Int[Tensor, "N"],
    bias: Float[Tensor, "C"] | None = None,
    *,
    smoothing: float = 0.0,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Sum over rows of the cross-entropy (nats) of softmax(x weight^T + bias) against `labels`.

    `smoothing` is label smoothing (Szegedy et al. 2016, section 7): the target is (1 - smoothing) of the label plus
    smoothing / C of every class. No label may be IGNORE_INDEX: drop such rows first. `chunk` rows are processed at
    once. Gradients are computed with the loss, chunk by chunk, so memory is one chunk plus the gradients.
    """
    rows = chunk or max(1, _CHUNK_ELEMENTS // weight.shape[0])
    return _LinearCrossEntropy.apply(x, weight, bias, labels, smoothing, rows)


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, smoothing: float = 0.0
) -> Tensor:
    """Reference for `linear_cross_entropy`."""
    logits = torch.nn.functional.linear(x, weight, bias)
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float, rows: int
    ) -> Tensor:
        device = x.device.type
        # Products run in bf16 if enabled, or in autocast's dtype; sums over classes and chunks stay in fp32.
        dtype = torch.bfloat16 if are_products_bf16() else weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wants_dx, wants_dweight, wants_dbias = ctx.needs_input_grad[:3]  # a frozen head needs no gradients
        total = torch.zeros((), dtype=weight.dtype, device=x.device)
        dx = torch.empty_like(x) if wants_dx else None
        dweight = torch.zeros_like(weight) if wants_dweight else None
        dbias = torch.zeros_like(bias) if wants_dbias and bias is not None else None
        buffer = weight.new_empty(min(rows, x.shape[0]), weight.shape[0]) if dtype == weight.dtype else None
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, x.shape[0], rows):
                part, targets = x[start : start + rows].to(dtype), labels[start : start + rows, None]
                if buffer is None:
                    logits = torch.nn.functional.linear(part, matrix).to(weight.dtype)
                else:
                    logits = torch.mm(part, matrix.T, out=buffer[: part.shape[0]])
                if bias is not None:
                    logits += bias
                torch.log_softmax(logits, -1, out=logits)
                loss = -logits.gather(1, targets)
                if smoothing:
                    loss = (1 - smoothing) * loss - smoothing * logits.mean(-1, keepdim=True)
                total += loss.sum()
                logits.exp_()  # from here on the gradient of the logits
                if smoothing:
                    logits.sub_(smoothing / logits.shape[-1])
                logits.scatter_add_(1, targets, torch.full_like(targets, smoothing - 1, dtype=logits.dtype))
                dlogits = logits.to(dtype)
                if dbias is not None:
                    dbias += logits.sum(0)
                if dx is not None:
                    dx[start : start + rows] = dlogits @ matrix
                if dweight is not None and dtype == weight.dtype:
                    dweight.addmm_(dlogits.T, part)
                elif dweight is not None:
                    dweight += dlogits.T @ part
        ctx.save_for_backward(dx, dweight, dbias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx, dweight, dbias = ctx.saved_tensors
        if gradient.device.type == "cpu" and gradient == 1:  # as in training: saves a pass over the weights
            return dx, dweight, dbias, None, None, None
        scaled = [None if g is None else g * gradient.to(g.dtype) for g in (dx, dweight, dbias)]
        return (*scaled, None, None, None)
