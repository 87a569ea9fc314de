"""Weights as the engine reads them: fp32 where they lie, or int8 and int4 in groups of 64 columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.checkpoints.native import Weights as Format
from headway.engine.machine import announced
from headway.engine.pool import pool
from headway.engine.tiles import FP32, GROUP, INT4, INT8, TILE, TILE4, TILE8
from headway.engine.tiling import pack_tiles
from headway.errors import UserError

CODES: dict[str, int] = {"fp32": FP32, "int8": INT8, "int4": INT4}


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
    def addresses(self) -> tuple[int, int]:
        """Of the weights and their scales, 0 where there are none."""
        return self.weights.data_ptr(), 0 if self.scales is None else self.scales.data_ptr()

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
    size, number = (TILE8, torch.int8) if form == "int8" else (TILE4, torch.uint8)
    codes, scales = torch.empty(tall, groups, size, dtype=number), torch.empty(tall, groups, TILE)
    fields = (CODES[form], whole.data_ptr(), rows, columns, codes.data_ptr(), scales.data_ptr())
    threads = pool(torch.get_num_threads())
    with announced(pack_tiles):
        threads.run(lambda thread: pack_tiles(*fields, thread, threads.threads))
    return Packed(CODES[form], codes, scales, rows, columns)


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
