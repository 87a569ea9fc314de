"""Contrastive losses with in-batch negatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headway.data import Splits
from headway.errors import ConfigError, UserError
from headway.learn.examples import Batch, Examples
from headway.learn.objective import Objective
from headway.learn.recipe import Recipe
from headway.nn.models import Loss
from headway.nn.parts.dropout import Dropout

E = TypeVar("E", bound=Examples)
T = TypeVar("T")


class Contrast(Objective[E]):
    """A contrastive objective on pairs: right items are matched to left items of a batch by `logits`. Targets are
    int64 [N], the left item of each right item, and bool [B, N], pairs with equal content, which are not negatives of
    each other.
    """

    goal_better: Literal["min", "max"] = "max"
    unit = "pair"
    kind: Literal["softmax", "sigmoid"] = "softmax"

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B N"]:
        """The similarity of each left item of a batch to each right item."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        contrast = softmax_contrast if self.kind == "softmax" else sigmoid_contrast
        return {"loss": Loss(contrast(self.logits(model, batch), *batch.targets), batch.tokens)}


def coupled(recipe: Recipe, what: str, instead: str) -> int:
    """The number of samples (`noun`) of a contrastive batch. ConfigError if batches are accumulated; `remedy` names the
    alternative setting.
    """
    train = recipe.train
    if train.accumulate != 1:
        raise ConfigError(
            f"train.accumulate is {train.accumulate}, but a contrastive loss needs all pairs of a batch at once; set "
            f"train.accumulate to 1{instead}"
        )
    if train.batch_size is None or train.batch_size < 2:
        raise ConfigError(f"train.batch_size is {train.batch_size}; set it to the {what} per batch, 2 or more")
    return train.batch_size


def check_sides(splits: Splits, size: int, what: str) -> None:
    """UserError if there are no validation samples, or if a batch exceeds the training samples."""
    splits.rows("validation")
    count = len(splits.rows("train"))
    if count < size:
        raise UserError(f"train.batch_size {size} exceeds the {count} {what} for training; lower it, or add data")


def softmax_contrast(
    logits: Float[Tensor, "B N"], of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (van den Oord et al. 2018), as in Radford et al. 2021, figure 3, summed over the right items:
    the mean of -log p(its left item | right) and -log p(right | its left item).

    Pairs in `same` are not negatives of each other, so several right items of a left item do not compete.
    """
    right = torch.arange(len(of), device=of.device)
    others = same.clone()
    others[of, right] = False
    back = F.cross_entropy(logits.masked_fill(others, float("-inf")).T, of, reduction="sum")
    rivals = same[of] & (right[:, None] != right)
    forth = F.cross_entropy(logits[of].masked_fill(rivals, float("-inf")), right, reduction="sum")
    return (forth + back) / 2


def sigmoid_contrast(
    logits: Float[Tensor, "B N"], of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Zhai et al. 2023, equation 1, summed over the right items: each pair is an independent binary classification."""
    own = torch.zeros_like(same)
    own[of, torch.arange(len(of), device=of.device)] = True
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    return losses.masked_fill(same & ~own, 0.0).sum()


def of_parts(encode: Callable[[T], Tensor], parts: Sequence[T], again: nn.Module | None = None) -> Float[Tensor, "N E"]:
    """The concatenated vectors of all chunks.

    With `recompute`, the model that contains the dropout, only vectors are stored and each chunk is recomputed in the
    backward pass with the same dropout (Gao et al. 2021, GradCache): the gradient of the complete batch with the memory
    of one chunk.
    """
    if again is None or not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in parts])
    generator = next((m.generator for m in again.modules() if isinstance(m, Dropout) and m.generator), None)
    return torch.cat([_recomputed(encode, part, generator) for part in parts])


def _recomputed(encode: Callable[[T], Tensor], part: T, generator: torch.Generator | None) -> Tensor:
    state = None if generator is None else generator.get_state()

    def contexts() -> tuple:
        return nullcontext(), _replayed(generator, state)

    found = checkpoint(encode, part, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    assert isinstance(found, Tensor)
    return found


@contextmanager
def _replayed(generator: torch.Generator | None, state: Tensor | None) -> Iterator[None]:
    """Rewind the generator to `state` inside the context, and restore it afterwards."""
    if generator is None or state is None:
        yield
        return
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)
