"""Where what a model says of an image comes from: attention rolled out over its layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def rollout(maps: Mapping[str, Float[Tensor, "B H T T"]]) -> Float[Tensor, "B T T"]:
    """How much of each input token (columns) is in each output token (rows), by Abnar and Zuidema 2020, equation 1:
    the product over layers of attention, averaged over heads, with half of each token staying where it is.

    `maps` are those of `attention_maps`, in the order of the layers.
    """
    found: Tensor | None = None
    for weights in maps.values():
        mean = weights.mean(1)
        layer = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)) / 2
        found = layer if found is None else layer @ found
    if found is None:
        raise ValueError("there are no attention maps to roll out")
    return found
