"""Products with weights that are stored in bf16 for generation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import has_torch_function


def product_of_bf16(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, "E"] | None, bf16_output: bool
) -> Float[Tensor, "... E"]:
    """`x @ weight.T + bias` with `x` rounded to bf16 and sums in fp32; the result is in fp32, or in bf16."""
    x = x.bfloat16()
    if bf16_output or weight.device.type in ("cpu", "mps") or has_torch_function((weight,)):
        y = F.linear(x, weight)
        y = y if bias is None else y + bias  # in fp32
        return y.bfloat16() if bf16_output else y.float()
    # The sums of a GPU are not rounded, which matters most for logits: bf16 has 8 bits.
    y = torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out_dtype=torch.float32).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias
