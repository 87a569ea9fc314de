"""The attention weights of a forward pass, for pictures and for study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.nn.kernels import recording
from headway.nn.mixers import ConditionalGRU, CrossAttention, SelfAttention


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


def attention_maps(model: nn.Module, run: Callable[[], Any]) -> dict[str, Float[Tensor, "B H T S"]]:
    """Weights of every attention of `model` by module name while `run()` calls it, in the order of the calls."""
    maps: dict[str, Tensor] = {}
    current: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (SelfAttention, ConditionalGRU, CrossAttention)):
            hooks.append(module.register_forward_pre_hook(partial(_note, current, name)))
    try:
        with recording(lambda weights: maps.__setitem__(current[-1], weights)), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _note(calls: list[str], name: str, module: nn.Module, inputs: Any) -> None:
    calls.append(name)
