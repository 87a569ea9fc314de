"""Scalings of rotary positions as GGUF says them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.checkpoints.gguf.dialects import FACTORS
from headway.errors import UserError
from headway.parts.rotary import LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, RotaryConfig, YarnScaling


class Said(NamedTuple):
    values: dict[str, Any]  # below the architecture's name
    tensors: dict[str, Tensor]


def rotary_values(rotary: RotaryConfig, head_size: int, context: int) -> Said:
    """Values and tensors that say `rotary`. UserError for a scaling that has no form there."""
    values: dict[str, Any] = {"rope.freq_base": float(rotary.theta)}
    scaling = rotary.scaling
    if scaling is None:
        return Said(values, {})
    if isinstance(scaling, LinearScaling):
        return Said({**values, "rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}, {})
    if isinstance(scaling, YarnScaling) and scaling == YarnScaling(scaling.factor, scaling.original):
        said = {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        return Said({**values, **said, "rope.scaling.original_context_length": scaling.original}, {})
    if isinstance(scaling, Llama3Scaling) or _is_one_set(scaling):
        plain = Rotary(RotaryConfig(rotary.theta), head_size).frequencies
        scaled = Rotary(rotary, head_size).frequencies
        return Said(values, {FACTORS: (plain / scaled).to(torch.float32)})
    raise UserError(
        f"rotary positions scaled by {type(scaling).__name__} have no form in GGUF; export a folder instead"
    )


def _is_one_set(scaling: Any) -> bool:
    """Whether these are factors that hold for all lengths, as a file has them."""
    return isinstance(scaling, LongRopeScaling) and scaling.short == scaling.long and scaling.attention_factor == 1.0
