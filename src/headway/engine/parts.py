"""What modules say of themselves, as instructions need it."""

from __future__ import annotations

from torch import Tensor, nn

from headway.engine import operations as code
from headway.parts.norm import LayerNorm, RMSNorm
from headway.parts.projection import Projection


class CannotLowerError(Exception):
    """What the engine has no instruction for."""


def norm_parts(norm: nn.Module) -> tuple[int, Tensor | None, Tensor | None, float]:
    """Its kind, weight, bias and epsilon."""
    if isinstance(norm, LayerNorm):
        return code.LAYER, norm.weight, norm.bias, norm.eps
    if isinstance(norm, RMSNorm):
        weight = None if norm.weight is None else norm.weight + norm.offset
        return code.RMS, weight, None, norm.eps
    raise CannotLowerError(f"the norm {type(norm).__name__}")


def offset_of(projection: Projection) -> Tensor | None:
    """Its bias, with zeros where slices have none; None where no slice has one."""
    return None if projection.bias is None else projection.offset()
