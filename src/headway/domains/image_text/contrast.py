"""The losses that tell each image's own texts from those of others, and batches too large to be computed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headway.parts.dropout import Dropout

T = TypeVar("T")


def softmax_contrast(
    logits: Float[Tensor, "B N"], of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Radford et al. 2021, figure 3, summed over the texts: the mean of -log p(its image | text) and -log p(text | its
    image).

    Text n belongs to image `of[n]`. Pairs that are the `same` are no negatives of each other, so that several texts of
    an image do not compete.
    """
    texts = torch.arange(len(of), device=of.device)
    others = same.clone()
    others[of, texts] = False
    back = F.cross_entropy(logits.masked_fill(others, float("-inf")).T, of, reduction="sum")
    rivals = same[of] & (texts[:, None] != texts)
    forth = F.cross_entropy(logits[of].masked_fill(rivals, float("-inf")), texts, reduction="sum")
    return (forth + back) / 2


def sigmoid_contrast(
    logits: Float[Tensor, "B N"], of: Int[Tensor, "N"], same: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Zhai et al. 2023, equation 1, summed over the texts: each pair by itself is right or wrong."""
    own = torch.zeros_like(same)
    own[of, torch.arange(len(of), device=of.device)] = True
    losses = -F.logsigmoid(torch.where(own, logits, -logits))
    return losses.masked_fill(same & ~own, 0.0).sum()


def of_parts(encode: Callable[[T], Tensor], parts: Sequence[T], again: nn.Module | None) -> Float[Tensor, "N E"]:
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
