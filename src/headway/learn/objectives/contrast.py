"""Pairs that belong together, told from those that do not: in-batch negatives."""

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
    """The loss tells which right ones belong to which left ones of a batch, by what vectors of both say to each other
    (`logits`). Targets are int64 [N], the left one of each right one, and bool [B, N], pairs that are the same, which
    are no negatives of each other.
    """

    goal_better: Literal["min", "max"] = "max"
    unit = "pair"
    kind: Literal["softmax", "sigmoid"] = "softmax"

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B N"]:
        """What each left one of a batch says to each right one."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        contrast = softmax_contrast if self.kind == "softmax" else sigmoid_contrast
        return {"loss": Loss(contrast(self.logits(model, batch), *batch.targets), batch.tokens)}


def coupled(recipe: Recipe, what: str, instead: str) -> int:
    """The samples (`what`) of a batch whose loss couples them. ConfigError where it is made of parts; `instead` is what
    to set then.
    """
    train = recipe.train
    if train.accumulate != 1:
        raise ConfigError(
            f"train.accumulate is {train.accumulate}, but the loss couples the pairs of a batch, so that parts of it "
            f"are not the whole; set train.accumulate to 1{instead}"
        )
    if train.batch_size is None or train.batch_size < 2:
        raise ConfigError(f"train.batch_size is {train.batch_size}; give the {what} of a batch, 2 or more")
    return train.batch_size


def check_sides(splits: Splits, size: int, what: str) -> None:
    """UserError where there is nothing to judge a model by, and for batches of more than there is to train on."""
    splits.rows("validation")
    count = len(splits.rows("train"))
    if count < size:
        raise UserError(f"train.batch_size {size} exceeds the {count} {what} to train on; lower it, or give more")


def softmax_contrast(
    logits: Float[Tensor, "B N"], of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord et al. 2018) both ways, as in Radford et al. 2021, figure 3, summed over the right ones:
    the mean of -log p(its left one | right) and -log p(right | its left one).

    Pairs that are the `same` are no negatives of each other, so that several right ones of a left one do not compete.
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
    """Zhai et al. 2023, equation 1, summed over the right ones: each pair by itself is right or wrong."""
    own = torch.zeros_like(same)
    own[of, torch.arange(len(of), device=of.device)] = True
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    return losses.masked_fill(same & ~own, 0.0).sum()


def of_parts(encode: Callable[[T], Tensor], parts: Sequence[T], again: nn.Module | None = None) -> Float[Tensor, "N E"]:
    """The vectors of the inputs of all parts.

    With `again`, the model whose dropout takes part, only vectors are kept: on the way back each part is computed once
    more (Gao et al. 2021, GradCache), with the same dropout. So the gradient is that of the whole batch, and the memory
    that of a part.
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
    """Draw from `state` on once more, and go on as if nothing had been drawn."""
    if generator is None or state is None:
        yield
        return
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)
