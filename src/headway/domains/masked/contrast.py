"""Contrast between two maskings of the same documents, which trains a vector for each document."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.layout import Layout
from headway.learn.objectives.contrastive import softmax_contrast
from headway.nn.models import Loss, ModelFeatures

_TEMPERATURE = 0.05  # divides the cosines (Gao et al. 2021, "SimCSE", table D.1)


def document_means(x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "N D"]:
    """The mean of each document's vectors, in the order of rows and then of documents in a row."""
    inside = layout.mask
    document = layout.starts[inside].long().cumsum(0) - 1
    counts = torch.bincount(document)
    return x.new_zeros(len(counts), x.shape[-1]).index_add(0, document, x[inside]) / counts[:, None].to(x)


def masking_contrast(encoded: ModelFeatures, layout: Layout) -> Loss:
    """InfoNCE between the means of two views of each document; the second half of the rows are the second views. The
    other documents in the batch are the negatives (Gao et al. 2021, equation 1, with masks in addition to dropout).
    """
    first, second = F.normalize(document_means(encoded.x, layout), dim=-1).chunk(2)
    index = torch.arange(len(first), device=first.device)
    same = torch.zeros(len(first), len(first), dtype=torch.bool, device=first.device)
    return Loss(softmax_contrast(first @ second.T / _TEMPERATURE, index, same), len(first))
