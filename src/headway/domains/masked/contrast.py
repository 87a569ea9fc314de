"""Contrast between two maskings of the same documents, which trains a vector for each document."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from headway.layout import Layout, cached_on_host
from headway.learn.objectives.contrastive import softmax_contrast
from headway.nn.models import Loss, ModelFeatures

_TEMPERATURE = 0.05  # divides the cosines (Gao et al. 2021, "SimCSE", table D.1)


@cached_on_host
def _documents(layout: Layout) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "N"]]:
    """The index of each token in [B T] flattened, its document, and the tokens of each document."""
    tokens = layout.mask.flatten().nonzero()[:, 0]
    document = layout.starts.flatten()[tokens].long().cumsum(0) - 1
    return tokens, document, torch.bincount(document)


def masking_contrast(encoded: ModelFeatures, layout: Layout) -> Loss:
    """InfoNCE between the means [N, D] of two views of each of N documents; the second half of the rows are the second
    views. The other documents in the batch are the negatives (Gao et al. 2021, equation 1, with masks in addition to
    dropout).
    """
    tokens, document, counts = _documents(layout)
    sums = encoded.x.new_zeros(len(counts), encoded.x.shape[-1])
    means = sums.index_add(0, document, encoded.x.flatten(0, 1).index_select(0, tokens)) / counts[:, None]
    first, second = F.normalize(means, dim=-1).chunk(2)
    index = torch.arange(len(first), device=first.device)
    same = torch.zeros(len(first), len(first), dtype=torch.bool, device=first.device)
    return Loss(softmax_contrast(first @ second.T / _TEMPERATURE, index, same), len(first))
