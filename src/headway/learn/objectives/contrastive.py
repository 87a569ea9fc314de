"""Contrastive losses with in-batch negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.data import Splits
from headway.errors import ConfigError, UserError
from headway.learn.examples import Batch, Examples
from headway.learn.objective import Objective
from headway.learn.recipe import Recipe
from headway.learn.recomputing import recomputed
from headway.nn.models import Loss
from headway.nn.parts.dropout import Dropout

E = TypeVar("E", bound=Examples)
T = TypeVar("T")


class Contrastive(Objective[E]):
    """A contrastive objective on pairs: `logits` match the right items in a batch to its left items. Targets are int64
    [N], the left item for each right item, and bool [B, N], the pairs with equal content, which are not negatives of
    each other.
    """

    goal_better: Literal["min", "max"] = "max"
    unit = "pair"
    kind: Literal["softmax", "sigmoid"] = "softmax"

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B N"]:
        """The similarity of each left item in a batch to each right item."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        contrast = softmax_contrast if self.kind == "softmax" else sigmoid_contrast
        return {"loss": Loss(contrast(self.logits(model, batch), *batch.targets), batch.tokens)}


def contrastive_batch_size(recipe: Recipe, noun: str, remedy: str) -> int:
    """The number of samples (`noun`) in a contrastive batch. Raises ConfigError if batches are accumulated; `remedy`
    names the alternative setting.
    """
    train = recipe.train
    if train.accumulate != 1:
        raise ConfigError(
            f"train.accumulate={train.accumulate}, but a contrastive loss needs all pairs in a batch at once; use "
            f"one process and train.accumulate=1{remedy}"
        )
    if train.batch_size is None or train.batch_size < 2:
        raise ConfigError(
            f"train.batch_size is {train.batch_size}; set it to the number of {noun} per batch, at least 2"
        )
    return train.batch_size


def check_splits(splits: Splits, size: int, noun: str) -> None:
    """Raise UserError if there are no validation samples, or if a batch exceeds the training samples."""
    splits.rows("validation")
    count = len(splits.rows("train"))
    if count < size:
        raise UserError(f"train.batch_size={size} exceeds the {count} {noun} for training; lower it, or add data")


def softmax_contrast(
    logits: Float[Tensor, "B N"], left_of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (van den Oord et al. 2018), as in Radford et al. 2021, figure 3, summed over the right items:
    the mean of -log p(its left item | right) and -log p(right | its left item).

    Pairs in `same` are not negatives of each other, so right items that share a left item do not compete.
    """
    right_indices = torch.arange(len(left_of), device=left_of.device)
    excluded = same.clone()
    excluded[left_of, right_indices] = False
    right_to_left = F.cross_entropy(logits.masked_fill(excluded, float("-inf")).T, left_of, reduction="sum")
    rival_mask = same[left_of] & (right_indices[:, None] != right_indices)
    left_to_right = F.cross_entropy(
        logits[left_of].masked_fill(rival_mask, float("-inf")), right_indices, reduction="sum"
    )
    return (left_to_right + right_to_left) / 2


def sigmoid_contrast(
    logits: Float[Tensor, "B N"], left_of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Zhai et al. 2023, equation 1, summed over the right items: each pair is an independent binary classification."""
    positives = torch.zeros_like(same)
    positives[left_of, torch.arange(len(left_of), device=left_of.device)] = True
    losses = -F.logsigmoid(torch.where(positives, logits, -logits))
    return losses.masked_fill(same & ~positives, 0.0).sum()


def encode_chunks(
    encode: Callable[[T], Tensor], chunks: Sequence[T], recompute: nn.Module | None = None
) -> Float[Tensor, "N E"]:
    """The concatenated vectors from all chunks.

    `recompute` is the model that contains the dropout. If it is set, only vectors are stored, and each chunk is
    recomputed in the backward pass with the same dropout (Gao et al. 2021, GradCache). This gives the complete batch's
    gradient with the memory for one chunk.
    """
    if recompute is None or not torch.is_grad_enabled():
        return torch.cat([encode(chunk) for chunk in chunks])
    generator = next((m.generator for m in recompute.modules() if isinstance(m, Dropout) and m.generator), None)

    return torch.cat([recomputed(encode, generator)(chunk) for chunk in chunks])
