"""A linear head fitted before the first step: logistic regression on the vectors of a model that has learned before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_ITERATIONS = 200
_EXACT = 1 << 23  # numbers of vectors up to which double precision costs little


class LinearHead(NamedTuple):
    """Logits of a vector x are `weight` x + `bias`."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]

    def __call__(self, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        return vectors @ self.weight.T + self.bias


def fit_linear(
    train: tuple[Float[Tensor, "N D"], Int[Tensor, "N"]],
    validation: tuple[Float[Tensor, "M D"], Int[Tensor, "M"]],
    classes: int,
    *,
    strengths: Sequence[float] = _STRENGTHS,
    iterations: int = _ITERATIONS,
) -> LinearHead:
    """Multinomial logistic regression with an L2 penalty, the best of some by accuracy, then loss, on `validation`.
    `strengths` are inverse penalties, from strong to weak regularisation.

    Fine-tuning from such a head keeps what the model has learned, where a random head's first gradients distort it
    (Kumar et al. 2022, "Fine-tuning can distort pretrained features", section 3).
    """
    exact = torch.float64 if train[0].numel() <= _EXACT else torch.float32
    scale = train[0].norm(dim=1, dtype=exact).mean().clamp(min=1e-12)
    vectors, held_out = train[0].to(exact) / scale, validation[0].to(exact) / scale
    head = LinearHead(vectors.new_zeros(classes, vectors.shape[1]), vectors.new_zeros(classes))
    best: tuple[tuple[float, float], LinearHead] | None = None
    for strength in strengths:
        head = _fitted(head, vectors, train[1], strength, iterations)
        logits = head(held_out)
        hits = (logits.argmax(-1) == validation[1]).double().mean().item()
        score = hits, -F.cross_entropy(logits, validation[1]).item()
        if best is None or score > best[0]:
            best = score, head
    assert best is not None
    weight, bias = best[1]
    return LinearHead((weight / scale).float(), bias.float())


def _fitted(start: LinearHead, vectors: Tensor, targets: Tensor, strength: float, iterations: int) -> LinearHead:
    weight, bias = (parameter.clone().requires_grad_() for parameter in start)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        errors = F.cross_entropy(F.linear(vectors, weight, bias), targets)
        loss = errors + weight.square().sum() / (2 * strength * len(targets))
        loss.backward()
        return loss

    optimiser.step(closure)
    return LinearHead(weight.detach(), bias.detach())
