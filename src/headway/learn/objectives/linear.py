"""A linear head fitted before the first step: logistic regression on a pretrained model's features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # inverse penalties, from strong to weak regularisation
_DEFAULT_STRENGTH = 10.0  # inverse penalty for a few sentence-encoder vectors; leaves training room to improve
ITERATIONS = 200
_MAX_CHOOSING = 4096  # maximum training samples for choosing the penalty
_REFIT = 10.0  # inverse penalty on the change of the weights when refitting
_FLOAT64_ELEMENTS = 1 << 23  # maximum number of elements for which float64 costs little


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
    *,
    strengths: Sequence[float] = STRENGTHS,
    iterations: int = ITERATIONS,
) -> LinearHead:
    """Multinomial logistic regression with an L2 penalty and class `weights` in the loss.

    `strengths` are inverse penalties, from strong to weak regularisation. With up to 4,096 training samples, the choice
    is the one nearest to 10 among those whose accuracy on `validation` is within one standard error of the best (Hastie
    et al. 2009, section 7.10), because a small validation set is noisy. With more samples, heads are fitted to 4,096 of
    them, and the best by accuracy, then loss, is chosen; with `weights`, the best by loss.

    Fine-tuning from such a head preserves pretrained features, while the first gradients of a random head distort them
    (Kumar et al. 2022, "Fine-tuning can distort pretrained features", section 3).
    """
    dtype = torch.float64 if train[0].numel() <= _FLOAT64_ELEMENTS else torch.float32
    scale = train[0].norm(dim=1, dtype=dtype).mean().clamp(min=1e-12)
    vectors, held_out = train[0].to(dtype) / scale, validation[0].to(dtype) / scale
    zero = LinearHead(vectors.new_zeros(classes, vectors.shape[1]), vectors.new_zeros(classes))
    weights = None if weights is None else weights.to(dtype)
    subset = torch.linspace(0, len(vectors) - 1, min(len(vectors), _MAX_CHOOSING)).long()
    head, heads, shares, losses = zero, [], [], []
    for strength in strengths:
        head = _fit_logistic(head, zero.weight, vectors[subset], train[1][subset], strength, weights, iterations)
        logits = head(held_out)
        heads.append(head)
        shares.append((logits.argmax(-1) == validation[1]).double().mean().item())
        losses.append(F.cross_entropy(logits, validation[1], weights).item())
    best = max(shares)
    threshold = best - math.sqrt(best * (1 - best) / max(1, len(held_out)))
    if weights is not None or len(subset) < len(vectors):
        chosen = min(range(len(heads)), key=lambda i: (-shares[i] if weights is None else 0.0, losses[i]))
    else:
        candidates = [i for i, share in enumerate(shares) if share >= threshold]
        chosen = min(candidates, key=lambda i: abs(math.log(strengths[i] / _DEFAULT_STRENGTH)))
    head = heads[chosen]
    if len(subset) < len(vectors):
        head = _fit_logistic(head, zero.weight, vectors, train[1], strengths[chosen], weights, iterations)
    return LinearHead((head.weight / scale).float(), head.bias.float())


def refit_linear(
    head: LinearHead, samples: tuple[Float[Tensor, "N D"], Int[Tensor, "N"]], weights: Float[Tensor, "C"] | None = None
) -> LinearHead:
    """Refit `head` to all `samples`, some of which are new, with a penalty on the change of its weights."""
    scale = samples[0].double().norm(dim=1).mean().clamp(min=1e-12)
    start = LinearHead(head.weight.double() * scale, head.bias.double())
    weights = None if weights is None else weights.double()
    moved = _fit_logistic(start, start.weight, samples[0].double() / scale, samples[1], _REFIT, weights, ITERATIONS)
    return LinearHead((moved.weight / scale).float(), moved.bias.float())


def _fit_logistic(
    start: LinearHead,
    centre: Tensor,
    vectors: Tensor,
    targets: Tensor,
    strength: float,
    weights: Tensor | None,
    iterations: int,
) -> LinearHead:
    """Minimise the cross-entropy with an L2 penalty on the distance of the weights from `centre`."""
    weight, bias = (parameter.clone().requires_grad_() for parameter in start)

    def loss() -> Tensor:
        errors = F.cross_entropy(F.linear(vectors, weight, bias), targets, weights)
        return errors + (weight - centre).square().sum() / (2 * strength * len(targets))

    minimise(loss, [weight, bias], iterations, 1e-5, 1e-7)
    return LinearHead(weight.detach(), bias.detach())


def minimise(
    loss: Callable[[], Tensor],
    parameters: list[Tensor],
    iterations: int,
    tolerance_grad: float,
    tolerance_change: float,
) -> None:
    """Change the parameters in place until the loss is minimal (L-BFGS)."""
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        tolerance_grad=tolerance_grad,
        tolerance_change=tolerance_change,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
