"""Weights as the engine reads them: fp32 where they lie, or int8 and int4 in groups of 64 columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.checkpoints.native import Weights as Format
from headway.engine.dots import FP32, GROUP, INT4, INT8
from headway.errors import UserError

CODES: dict[str, int] = {"fp32": FP32, "int8": INT8, "int4": INT4}
_TRIES = (1.0, 0.95, 0.9, 0.85, 0.8)  # parts of the largest weight that the int4 range may end at


class Packed(NamedTuple):
    """A matrix of `rows` x `columns`. Quantised: value = scale of the group x code."""

    kind: int
    weights: Float[Tensor, "R C"] | Int[Tensor, "R B"]
    scales: Float[Tensor, "R G"] | None
    rows: int
    columns: int

    @property
    def bytes(self) -> int:
        held = (self.weights, self.scales)
        return sum(part.numel() * part.element_size() for part in held if part is not None)


def pack(matrix: Float[Tensor, "R C"], form: Format) -> Packed:
    """UserError for weights that are no numbers."""
    rows, columns = matrix.shape
    whole = matrix.detach().float().contiguous()
    if not bool(torch.isfinite(whole).all()):
        raise UserError("a weight is NaN or infinite; use a checkpoint with sound weights")
    if form == "fp32":
        return Packed(FP32, whole, None, rows, columns)
    groups = -(-columns // GROUP)
    padded = whole if groups * GROUP == columns else torch.nn.functional.pad(whole, (0, groups * GROUP - columns))
    parts = padded.view(rows, groups, GROUP)
    codes, scales = _eight(parts) if form == "int8" else _four(parts)
    return Packed(CODES[form], codes.view(rows, -1), scales, rows, columns)


def unpack(packed: Packed) -> Float[Tensor, "R C"]:
    """The weights as the engine's products see them."""
    if packed.scales is None:
        return packed.weights
    groups = packed.scales.shape[1]
    codes = packed.weights.view(packed.rows, groups, -1)
    if packed.kind == INT4:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1).to(torch.int16) - 8
    return (codes.float() * packed.scales[:, :, None]).view(packed.rows, -1)[:, : packed.columns]


def _eight(parts: Float[Tensor, "R G 64"]) -> tuple[Tensor, Tensor]:
    scales = parts.abs().amax(-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0)
    return (parts * inverse[:, :, None]).round().to(torch.int8), scales.contiguous()


def _four(parts: Float[Tensor, "R G 64"]) -> tuple[Tensor, Tensor]:
    """Codes -8 to 7. The weight of largest size falls on -8 or a little beyond: what leaves the least square error."""
    largest = parts.gather(-1, parts.abs().argmax(-1, keepdim=True))
    best = torch.full(parts.shape[:2], torch.inf)
    scales = torch.zeros(parts.shape[:2])
    for part in _TRIES:
        tried = (largest * part / -8)[:, :, 0]
        error = (_codes(parts, tried) * tried[:, :, None] - parts).square().sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    codes = (_codes(parts, scales) + 8).to(torch.uint8)
    low, high = codes.chunk(2, dim=-1)
    return low | (high << 4), scales.contiguous()


def _codes(parts: Tensor, scales: Tensor) -> Tensor:
    inverse = torch.where(scales != 0, 1 / scales, 0)
    return (parts * inverse[:, :, None]).round().clamp(-8, 7)
