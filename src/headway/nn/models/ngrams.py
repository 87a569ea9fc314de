"""Logits that are linear in the n-grams of a text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.layout import Layout

# (a i + b j) modulo a prime, for tokens i and j, is a universal hash function (Carter and Wegman 1979); the products of
# token ids below 2^31 fit int64.
_PRIME, _FIRST, _SECOND = 2_147_483_647, 1_103_515_245, 1_962_706_129


class NgramLogits(nn.Module):
    """Logits that are linear in the TF-IDF weights of tokens and of pairs of neighbours, hashed to `buckets`
    (Weinberger et al. 2009; Joulin et al. 2017). They are added to those of a head, as in "Wide & deep learning"
    (Cheng et al. 2016), but fitted after training: `idf` [H], `weight` [H, C] and `bias` [C] are 0 until then.
    """

    idf: Float[Tensor, "H"]
    weight: Float[Tensor, "H C"]
    bias: Float[Tensor, "C"]

    def __init__(self, buckets: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("idf", torch.zeros(buckets))
        self.register_buffer("weight", torch.zeros(buckets, outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def ngrams(self, ids: Int[Tensor, "B T"], layout: Layout) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
        """The bucket of each token and each pair of neighbours, and where there are some; rows are one document."""
        first, mask = ids.long() + 1, layout.mask
        pairs = (first[:, :-1] * _FIRST + first[:, 1:] * _SECOND) % _PRIME
        hashed = torch.cat([first * _FIRST % _PRIME, pairs], 1) % len(self.idf)
        return hashed, torch.cat([mask, mask[:, :-1] & mask[:, 1:]], 1)

    def forward(self, ids: Int[Tensor, "B T"], layout: Layout) -> Float[Tensor, "B C"]:
        buckets, exist = self.ngrams(ids, layout)
        values = self.idf[buckets] * exist
        values = values / values.norm(dim=1, keepdim=True).clamp(min=1e-9)
        return torch.einsum("bn,bnc->bc", values, self.weight[buckets]) + self.bias
