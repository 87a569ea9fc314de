"""A linear head fitted before the first step: logistic regression on the vectors of a model that has learned before."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # inverse penalties, from strong to weak regularisation
_ITERATIONS = 200


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
    weights: Float[Tensor, "C"] | None = None,
) -> LinearHead:
    """Multinomial logistic regression with an L2 penalty, and with `weights` of the classes in the loss.

    The penalty is the strongest of four whose accuracy on `validation` is within one standard error of the best (Hastie
    et al. 2009, section 7.10): chance in a small part decides little, and the head leaves training something to learn.
    With `weights` it is the one of the smallest loss.

    Fine-tuning from such a head keeps what the model has learned, where a random head's first gradients distort it
    (Kumar et al. 2022, "Fine-tuning can distort pretrained features", section 3).
    """
    scale = train[0].double().norm(dim=1).mean().clamp(min=1e-12)
    vectors, held_out = train[0].double() / scale, validation[0].double() / scale
    head = LinearHead(vectors.new_zeros(classes, vectors.shape[1]), vectors.new_zeros(classes))
    weights = None if weights is None else weights.double()
    heads, shares, losses = [], [], []
    for strength in _STRENGTHS:
        head = _fitted(head, vectors, train[1], strength, weights)
        logits = head(held_out)
        heads.append(head)
        shares.append((logits.argmax(-1) == validation[1]).double().mean().item())
        losses.append(F.cross_entropy(logits, validation[1], weights).item())
    best = max(shares)
    within = best - math.sqrt(best * (1 - best) / max(1, len(held_out)))
    found = next(i for i, share in enumerate(shares) if share >= within)
    weight, bias = heads[found if weights is None else losses.index(min(losses))]
    return LinearHead((weight / scale).float(), bias.float())


def _fitted(start: LinearHead, vectors: Tensor, targets: Tensor, strength: float, weights: Tensor | None) -> LinearHead:
    weight, bias = (parameter.clone().requires_grad_() for parameter in start)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        errors = F.cross_entropy(F.linear(vectors, weight, bias), targets, weights)
        loss = errors + weight.square().sum() / (2 * strength * len(targets))
        loss.backward()
        return loss

    optimiser.step(closure)
    return LinearHead(weight.detach(), bias.detach())
