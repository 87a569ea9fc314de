"""Which number format each tensor of a .gguf file gets: llama.cpp's mixtures (src/llama-quant.cpp, 2026).

Q4_K_M, for instance, is mostly Q4_K; the embedding that is also the output, and values and the end of feed-forwards in
half of the layers, are Q6_K.
"""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

from headway.formats.gguf.file import KINDS

Precision = Literal[
    "F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K"
]
# Formats of rows that are not complete blocks of 256 numbers.
_FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_SIZES = {kind.name: kind.block for kind in KINDS.values()}
_UNQUANTIZED = re.compile(r"_norm\.|ffn_gate_inp\.|^position_embd\.|^token_types\.|bias$")
_LAYER = re.compile(r"blk\.(\d+)\.(\w+?)(_exps|_shexp)?\.weight")


class FormatMixture(NamedTuple):
    """What the choice of formats depends on: `groups` are query heads per key head."""

    precision: Precision
    layers: int
    groups: int
    experts: int
    is_tied: bool

    def format_of(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the name of the format for a tensor."""
        if math.prod(shape[:-1]) < 2 or self.precision == "F32" or _UNQUANTIZED.search(name):
            return "F32"
        if self.precision == "F16":
            return "F16"
        base = self.precision.removesuffix("_M").removesuffix("_S")
        layer = _LAYER.fullmatch(name)
        if name == "output.weight" or (self.is_tied and name == "token_embd.weight"):
            chosen = "Q8_0" if base == "Q8_0" or shape[-1] % _SIZES[base] else "Q6_K"
        else:
            chosen = base if layer is None else self._layer_format(layer[2], int(layer[1]), base)
        if shape[-1] % _SIZES[chosen]:
            chosen = _FALLBACKS.get(chosen, "F16")
        return "F16" if shape[-1] % _SIZES[chosen] else chosen

    def _layer_format(self, tensor: str, layer: int, base: str) -> str:
        count, eighth = self.layers, self.layers // 8
        needs_more = layer < eighth or layer >= 7 * count // 8 or (layer - eighth) % 3 == 2
        if tensor in ("attn_v", "attn_qkv", "attn_k") and self.experts == 8:
            return "Q8_0"
        raised: dict[str, str] = {}
        if tensor in ("attn_v", "attn_qkv"):
            raised = {
                "Q2_K": "Q4_K" if self.groups >= 4 else "Q3_K",
                "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
                "Q4_K_S": "Q5_K" if layer < 4 else base,
                "Q4_K_M": "Q6_K" if needs_more else base,
                "Q5_K_M": "Q6_K" if needs_more else base,
            }
        elif tensor == "ffn_down":
            raised = {
                "Q2_K": "Q3_K",
                "Q3_K_M": "Q5_K" if layer < count // 16 else "Q4_K",
                "Q4_K_S": "Q5_K" if layer < eighth else base,
                "Q4_K_M": "Q6_K" if needs_more else base,
                "Q5_K_M": "Q6_K" if needs_more else base,
            }
        elif tensor == "attn_output" and self.experts == 8:
            raised = dict.fromkeys(("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M"), "Q5_K")
        elif tensor == "attn_output":
            raised = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}
        return raised.get(self.precision, base)
