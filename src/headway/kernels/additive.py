"""Additive attention: scores by a small network instead of a product."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headway.kernels.linear import is_deterministic, linear


def additive(
    query: Float[Tensor, "R A"],
    keys: Float[Tensor, "R S A"],
    values: Float[Tensor, "R S E"],
    keep: Bool[Tensor, "R S"] | None,
    score: Float[Tensor, "1 A"],
) -> tuple[Float[Tensor, "R E"], Float[Tensor, "R S"]]:
    """sum_j a_j v_j and a = softmax_j(score . tanh(query + k_j)) over the j to be kept, all where `keep` is None
    (Bahdanau, Cho and Bengio 2015, equations 5 and 6).
    """
    if is_deterministic():
        return _row_by_row(query, keys, values, keep, score)
    scores = linear(torch.tanh(query[:, None] + keys), score)[..., 0]
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    weights = scores.softmax(-1)
    return torch.bmm(weights[:, None], values)[:, 0], weights


def _row_by_row(
    query: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, score: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row over exactly its own keys: nothing that another row holds can change the result."""
    contexts, weights = [], query.new_zeros(keys.shape[:2])
    for row in range(query.shape[0]):
        own = slice(None) if keep is None else keep[row]
        found = (torch.tanh(query[row] + keys[row][own]) * score).sum(-1).softmax(-1)
        contexts.append((found[:, None] * values[row][own]).sum(0))
        weights[row, own] = found
    return torch.stack(contexts) if contexts else values.new_zeros(0, values.shape[-1]), weights
