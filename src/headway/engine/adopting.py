"""Keys and values that torch computed, as blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.engine.cache import Blocks
from headway.engine.operations import BLOCK
from headway.engine.tiles import FP32


class Layer(NamedTuple):
    """What a layer keeps of a row. Position p lies in slot p modulo S. `form` is what the blocks have: FP32 or INT8."""

    form: int
    keys: Float[Tensor, "S G K"]
    values: Float[Tensor, "S G V"]


def write(store: Blocks, layers: list[Layer], length: int) -> list[int]:
    """New blocks with the positions below `length` that are still seen; 0 for blocks of which none is."""
    if not layers:
        return []
    first = store.first_seen(length)
    blocks = [store.take() for _ in range(first, -(-length // BLOCK))]
    start = 0
    for layer in layers:
        content = _content(layer, first * BLOCK, len(blocks) * BLOCK, length).numpy()
        for block, part in zip(blocks, content):
            store.view(block)[start : start + len(part)] = part
        start += content.shape[1]
    return [0] * first + blocks


def _content(layer: Layer, begin: int, room: int, length: int) -> UInt8[Tensor, "N Y"]:
    """The bytes of a layer in each of the blocks from position `begin` on, as `keys` describes them."""
    keys, values = (_ordered(part, begin, room, length) for part in layer[1:])
    scales: list[Tensor] = []
    if layer.form != FP32:
        (keys, *one), (values, *two) = _rounded(keys), _rounded(values)
        scales = [*one, *two]
    orders = [(keys, (0, 2, 3, 1)), (values, (0, 2, 1, 3)), *((scale, (0, 2, 3, 1)) for scale in scales)]
    parts = [part.unflatten(0, (-1, BLOCK)).permute(order).flatten(2).contiguous() for part, order in orders]
    return torch.cat([part.view(torch.uint8) for part in parts], -1).flatten(1)


def _rounded(part: Float[Tensor, "T G K"]) -> tuple[Tensor, Tensor]:
    """Whole numbers and a scale for each position and group, as `attention.keep` makes them."""
    largest = part.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    return (part * inverse).round().to(torch.int8), largest / 127


def _ordered(part: Float[Tensor, "S G K"], begin: int, room: int, length: int) -> Float[Tensor, "T G K"]:
    slots, out = part.shape[0], part.new_zeros(room, *part.shape[1:], dtype=torch.float32)
    first = max(begin, length - slots)
    held = part[first:length] if length <= slots else part[torch.arange(first, length) % slots]
    out[first - begin : length - begin] = held.float()
    return out
