"""Weights as the engine reads them: fp32 where they lie, or int8 and int4 in groups of 64 columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.checkpoints.native import Weights as Format
from headway.engine.tiles import FP32, GROUP, INT4, INT8, LINES4, TILE
from headway.errors import UserError

CODES: dict[str, int] = {"fp32": FP32, "int8": INT8, "int4": INT4}
_TRIES = (1.0, 0.95, 0.9, 0.85, 0.8)  # parts of the largest weight that the int4 range may end at


class Packed(NamedTuple):
    """A matrix of `rows` x `columns`. Quantised: value = scale of the group x code, in tiles (`engine/tiles.py`) whose
    last rows and columns are filled with zeros.
    """

    kind: int
    weights: Float[Tensor, "R C"] | Int[Tensor, "T G B"]
    scales: Float[Tensor, "T G 16"] | None
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
    tall, groups = -(-rows // TILE), -(-columns // GROUP)
    padded = torch.nn.functional.pad(whole, (0, groups * GROUP - columns, 0, tall * TILE - rows))
    codes, scales = (_eight if form == "int8" else _four)(padded.view(tall * TILE, groups, GROUP))
    return Packed(CODES[form], _tiles(codes), _by_group(scales), rows, columns)


def unpack(packed: Packed) -> Float[Tensor, "R C"]:
    """The weights as the engine's products see them."""
    if packed.scales is None:
        return packed.weights
    tall, groups = packed.scales.shape[:2]
    lines = packed.weights.view(tall, groups, -1, TILE, 4)
    if packed.kind == INT4:
        lines = torch.cat([lines & 15, lines >> 4], dim=2).to(torch.int16) - 8
    values = lines.permute(0, 3, 1, 2, 4).float().reshape(tall, TILE, groups, GROUP)
    values *= packed.scales.permute(0, 2, 1)[:, :, :, None]
    return values.view(tall * TILE, groups * GROUP)[: packed.rows, : packed.columns].contiguous()


def _tiles(codes: Int[Tensor, "R G C"]) -> Int[Tensor, "T G B"]:
    """Rows of groups as tiles; an int4 group has codes from 0 to 15."""
    groups = codes.shape[1]
    lines = codes.view(-1, TILE, groups, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if codes.dtype == torch.uint8:
        lines = lines[:, :, :LINES4] | (lines[:, :, LINES4:] << 4)
    return lines.reshape(lines.shape[0], groups, -1).contiguous()


def _by_group(scales: Float[Tensor, "R G"]) -> Float[Tensor, "T G 16"]:
    return scales.view(-1, TILE, scales.shape[1]).permute(0, 2, 1).contiguous()


def _eight(parts: Float[Tensor, "R G 64"]) -> tuple[Tensor, Tensor]:
    scales = parts.abs().amax(-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0)
    return (parts * inverse[:, :, None]).round().to(torch.int8), scales


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
    return (_codes(parts, scales) + 8).to(torch.uint8), scales


def _codes(parts: Tensor, scales: Tensor) -> Tensor:
    inverse = torch.where(scales != 0, 1 / scales, 0)
    return (parts * inverse[:, :, None]).round().clamp(-8, 7)
