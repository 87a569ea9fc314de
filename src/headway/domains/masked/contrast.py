"""Contrast between two maskings of the same documents, which trains a vector for each document."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from headway.layout import Layout
from headway.learn.objectives.contrastive import softmax_contrast
from headway.nn.models import Loss, ModelFeatures

_TEMPERATURE = 0.05  # divides the cosines (Gao et al. 2021, "SimCSE", table D.1)


def masking_contrast(encoded: ModelFeatures, layout: Layout) -> Loss:
    """InfoNCE between the means [N, D] of two views of each of N documents; the second half of the rows are the second
    views. The other documents in the batch are the negatives (Gao et al. 2021, equation 1, with masks in addition to
    dropout).
    """
    document = layout.starts[layout.mask].long().cumsum(0) - 1  # of each token
    means = encoded.x.new_zeros(int(document[-1]) + 1, encoded.x.shape[-1])
    means = means.index_add(0, document, encoded.x[layout.mask]) / torch.bincount(document)[:, None]
    first, second = F.normalize(means, dim=-1).chunk(2)
    index = torch.arange(len(first), device=first.device)
    same = torch.zeros(len(first), len(first), dtype=torch.bool, device=first.device)
    return Loss(softmax_contrast(first @ second.T / _TEMPERATURE, index, same), len(first))
