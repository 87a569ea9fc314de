"""Dropout with a seeded generator of its own and cheap random bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.errors import ConfigError

_LEVELS = 1 << 16  # a draw is 16 random bits: a quarter of the cost of torch's Bernoulli draws on a CPU


class Dropout(nn.Module):
    """Zeroes elements with probability `p` and scales the others by 1 / (1 - p) (Srivastava et al. 2014), in training.

    `p` is rounded to a multiple of 2^-16 and the scale follows it, so that the expectation is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"dropout {p} is not a probability below 1; choose 0 to 0.5")
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return (x * self._mask(x)).to(x.dtype)

    def _mask(self, x: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        words = -(-x.numel() // 4)
        bits = torch.empty(words, dtype=torch.int64, device=x.device).random_(generator=self.generator)
        draws = bits.view(torch.int16)[: x.numel()].view(x.shape)
        # `random_` leaves the sign bit of a word clear, so every fourth draw would lack its top bit: compare 15 bits.
        kept = (draws & 0x7FFF) >= dropped // 2
        # In bf16 the scale itself would be rounded, and with it the expectation.
        return kept.to(torch.promote_types(x.dtype, torch.float32)).mul_(_LEVELS / (_LEVELS - dropped // 2 * 2))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropPath(Dropout):
    """Leaves a whole row out with probability `p` and scales the others by 1 / (1 - p), in training: stochastic depth
    (Huang et al. 2016, section 3) where it stands on a branch of a block.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return (x * self._mask(x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)))).to(x.dtype)


def attach_generator(model: nn.Module, device: torch.device | str = "cpu") -> torch.Generator:
    """Give all dropout of `model` one generator and return it; whoever trains reseeds it at each step."""
    generator = torch.Generator(device=device)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
    return generator
