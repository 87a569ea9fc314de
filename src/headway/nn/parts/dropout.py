"""Dropout with its own seeded generator and cheap random bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.errors import ConfigError

_LEVELS = 1 << 16  # a sample is 16 random bits: a quarter of the cost of torch's Bernoulli samples on a CPU


class Dropout(nn.Module):
    """Zeroes elements with probability `p` and scales the others by 1 / (1 - p) (Srivastava et al. 2014), in training.

    `p` is rounded to a multiple of 2^-16 and the scale follows it, so that the expectation is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"dropout is {p}; set a probability below 1, such as 0.1")
        self.p = p
        self.generator: torch.Generator | None = None
        self.fused = False  # whether `generator` is the default one of a GPU, from which fused kernels sample

    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training or self.p == 0 else (x * self._mask(x)).to(x.dtype)

    def of_weights(self) -> Dropout | float:
        """For attention: the rate if its kernels may sample, otherwise this layer; 0 outside training."""
        return 0.0 if not self.training or self.p == 0 else self.p if self.fused else self

    def _mask(self, x: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        words = -(-x.numel() // 4)
        bits = torch.empty(words, dtype=torch.int64, device=x.device).random_(generator=self.generator)
        samples = bits.view(torch.int16)[: x.numel()].view(x.shape)
        # `random_` leaves the sign bit of a word clear, so every fourth sample lacks its top bit: compare 15 bits.
        mask = (samples & 0x7FFF) >= dropped // 2
        # In bf16 the scale itself would be rounded, and with it the expectation.
        return mask.to(torch.promote_types(x.dtype, torch.float32)).mul_(_LEVELS / (_LEVELS - dropped // 2 * 2))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropPath(Dropout):
    """Zeroes a whole row with probability `p` and scales the others by 1 / (1 - p), in training: stochastic depth
    (Huang et al. 2016, section 3) if used on a branch of a block.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.new_empty(x.shape[0], *(1,) * (x.dim() - 1))
        return x if not self.training or self.p == 0 else (x * self._mask(rows)).to(x.dtype)
