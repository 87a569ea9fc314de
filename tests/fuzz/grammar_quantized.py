"""Weights of quantised folders, of valid structure and hostile contents: pure functions of a draw. The settings of
config.json are the metadata of the file, so that one file is all.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from grammar_models import DTYPES, WHOLE, composed_object

GROUP = 32
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "U32": 4}
Parts = dict[str, tuple[str, Sequence[int]]]  # dtype and shape of a matrix's tensors, by their endings
Method = tuple[dict[str, Any], Callable[[int, int], Parts]]  # settings, and parts of a matrix of rows and columns


def _gptq(bits: int) -> Callable[[int, int], Parts]:
    return lambda rows, columns: {
        ".qweight": ("I32", (columns * bits // 32, rows)),
        ".qzeros": ("I32", (columns // GROUP, rows * bits // 32)),
        ".scales": ("F16", (columns // GROUP, rows)),
        ".g_idx": ("I32", (columns,)),
    }


def _awq(rows: int, columns: int) -> Parts:
    return {**_gptq(4)(rows, columns), ".qweight": ("I32", (columns, rows // 8)), ".g_idx": ("I32", (0,))}


def _rows(weight: str, ending: str, scale: str = "F32", more: Parts | None = None) -> Callable[[int, int], Parts]:
    return lambda rows, columns: {
        ".weight": (weight, (rows, columns)),
        ending: (scale, (rows, 1) if ending != ".SCB" else (rows,)),
        **(more or {}),
    }


def _blocks(rows: int, columns: int) -> Parts:
    return {".weight": ("F8_E4M3", (rows, columns)), ".weight_scale_inv": ("F32", (-(-rows // 24), -(-columns // 40)))}


def _packed(bits: int) -> Callable[[int, int], Parts]:
    return lambda rows, columns: {
        ".weight_packed": ("I32", (rows, columns * bits // 32)),
        ".weight_scale": ("BF16", (rows, columns // GROUP)),
        ".weight_zero_point": ("I32", (rows * bits // 32, columns // GROUP)),
        ".weight_shape": ("I64", (2,)),
        ".weight_g_idx": ("I32", (columns,)),
    }


def _four_bits(rows: int, columns: int) -> Parts:
    blocks = rows * columns // 64
    return {
        ".weight": ("U8", (rows * columns // 2, 1)),
        ".weight.absmax": ("U8", (blocks,)),
        ".weight.quant_map": ("F32", (16,)),
        ".weight.nested_absmax": ("F32", (-(-blocks // 256),)),
        ".weight.nested_quant_map": ("F32", (256,)),
        ".weight.quant_state.bitsandbytes__nf4": ("U8", (0,)),
    }


def _mxfp4(rows: int, columns: int) -> Parts:
    return {"_blocks": ("U8", (2, rows, columns // GROUP, 16)), "_scales": ("U8", (2, rows, columns // GROUP))}


def _mlx(bits: int) -> Callable[[int, int], Parts]:
    return lambda rows, columns: {
        ".weight": ("U32", (rows, columns * bits // 32)),
        ".scales": ("F16", (rows, columns // GROUP)),
        ".biases": ("F16", (rows, columns // GROUP)),
    }


def _compressed(form: str, bits: int, kind: str) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind}}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


_ZEROS: Parts = {".weight_zero_point": ("I8", (64, 1)), ".input_scale": ("F32", (1,))}
METHODS: tuple[Method, ...] = (
    ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, _awq),
    *(({"quant_method": "gptq", "bits": bits, "group_size": GROUP}, _gptq(bits)) for bits in (2, 4, 8)),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, _gptq(4)),
    ({"quant_method": "fp8", "weight_block_size": [24, 40]}, _blocks),
    ({"quant_method": "fbgemm_fp8"}, _rows("F8_E4M3", ".weight_scale", more={".input_scale_ub": ("F32", (1,))})),
    *((_compressed("pack-quantized", bits, "int"), _packed(bits)) for bits in (2, 4, 8)),
    (_compressed("int-quantized", 8, "int"), _rows("I8", ".weight_scale", "BF16", _ZEROS)),
    (_compressed("float-quantized", 8, "float"), _rows("F8_E4M3", ".weight_scale", "BF16", {})),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, _rows("I8", ".SCB", more={".weight_format": ("U8", ())})),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, _four_bits),
    ({"quant_method": "mxfp4"}, _mxfp4),
    *(({"group_size": GROUP, "bits": bits}, _mlx(bits)) for bits in (2, 4, 8)),
)


def _state(rows: int, columns: int, draw: random.Random, odd: float) -> bytes:
    """What bitsandbytes says of a matrix in 4 bits."""
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": [rows, columns]}
    state |= {"nested_blocksize": 256, "nested_offset": 0.05, "nested_dtype": "float32"}
    text = json.dumps(composed_object(state, draw) if draw.random() < 4 * odd else state)
    return text.encode()[: draw.choice((1, 20)) if draw.random() < odd else None]


def _numbers(dtype: str, count: int, draw: random.Random, odd: float) -> bytes:
    """Scales are finite and codes are any, mostly."""
    if dtype in ("F32", "F16", "BF16"):
        values = np.asarray([draw.choice((0.01, 0.1, 1.0, -2.0)) for _ in range(4)], np.float32)
        if draw.random() < odd:
            values[0] = draw.choice((0.0, 1e-38, 6e4, 3e38, float("nan"), float("inf")))
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16) if dtype == "F16" else values
        whole = stored.view(np.uint16)[1::2].tobytes() if dtype == "BF16" else stored.tobytes()
    else:
        whole = draw.randbytes(64)
    size = count * SIZES.get(dtype, 1)
    return (whole * (size // len(whole) + 1))[:size]


def composed_quantized(draw: random.Random, method: Method | None = None, odd: float | None = None) -> bytes:
    """One or two matrices of a method; a share of `odd` of what is said of each part does not fit."""
    settings, parts_of = method or draw.choice(METHODS)
    odd = draw.choice((0.0, 0.02, 0.1)) if odd is None else odd
    rows, columns = (64, 64) if odd == 0.0 else (draw.choice((16, 32, 64)), draw.choice((32, 64, 128)))
    header: dict[str, Any] = {}
    data = b""
    for base in draw.choice((("a.b",), ("a.b", "a.c"))):
        for ending, (dtype, shape) in parts_of(rows, columns).items():
            if draw.random() < odd / 2 or (shape == (0,) and ending == ".g_idx"):
                continue
            if draw.random() < odd:
                dtype = draw.choice(DTYPES[:-3])
            if draw.random() < odd:
                shape = draw.choice((shape[:-1], (*shape, 1), shape[::-1], [draw.choice((0, 1, 3, 64)) for _ in shape]))
            content = _content(ending, dtype, shape, (rows, columns), draw, odd)
            if ending.endswith("nf4"):
                dtype, shape = "U8", (len(content),)
            header[base + ending] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [len(data), len(data) + len(content)],
            }
            data += content
    said = composed_object(settings, draw) if draw.random() < 4 * odd else settings
    header["__metadata__"] = {"quantization_config": json.dumps(said)}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _content(
    ending: str, dtype: str, shape: Sequence[int], matrix: tuple[int, int], draw: random.Random, odd: float
) -> bytes:
    """A tensor's bytes: any numbers, but for those that say how the others are read."""
    if ending.endswith("nf4"):
        return _state(*matrix, draw, odd)
    bits = next((int(digits) for digits in ("64", "32", "16", "8") if digits in dtype), 8)
    count = int(np.prod([int(side) for side in shape], dtype=object)) * bits // 8 // SIZES.get(dtype, bits // 8)
    if draw.random() >= odd:
        if ending == ".weight_shape" and (dtype, tuple(shape)) == ("I64", (2,)):
            return np.asarray(matrix, np.int64).tobytes()
        if ending.endswith("g_idx") and dtype == "I32":
            return (np.arange(count, dtype=np.int32) // GROUP).tobytes()
    elif ending == ".weight_shape" and dtype == "I64":
        return np.asarray([draw.choice((0, -1, 1, 3, 64, *WHOLE[:-2])) for _ in range(count)], np.int64).tobytes()
    if dtype in SIZES:
        return _numbers(dtype, count, draw, odd)
    return draw.randbytes(count * bits // 8)
