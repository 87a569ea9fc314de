"""Encode matrices in llama.cpp's block formats. `GgufFile.get` decodes them.

In Q4_0, Q5_0 and Q5_1 a scale in fp16 belongs to 32 numbers. In a K-quant, 256 numbers share a scale in fp16, which an
integer per 16 or 32 numbers refines; some formats have a minimum of the same kind. A scale, and a minimum, minimise the
weighted squared error over several roundings (`_affine`, `_symmetric`). Larger numbers have larger weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from headway.formats.gguf.file import gguf

_BLOCK = 256  # numbers of a K-quant's block
_NUMBERS = 1 << 16  # encoded at once: arrays that fit a processor's cache
_MAX_HALF = 65504.0  # the largest number in fp16
_TINY = 1e-30
# Ends of the candidates for 1 / scale, relative to the one that maps the extreme number to the last code.
_NARROW, _WIDE = (-0.9, 0.9, 13), (-1.0, 1.0, 13)


class BlockFormat(NamedTuple):
    """A format of `part` numbers per scale: codes of `bits` bits, integer scales up to `scales` (0: fp16 scales)."""

    part: int
    bits: int
    has_minimum: bool
    scales: int
    pack: Callable[..., list[np.ndarray]]


def encode(array: np.ndarray, name: str) -> np.ndarray:
    """Return the bytes of a matrix whose rows consist of complete blocks, [..., bytes per row]."""
    if name not in FORMATS:  # Q8_0, where a search gains nothing
        return gguf().quants.quantize(array, gguf().GGMLQuantizationType[name])
    block_format = FORMATS[name]
    block = _BLOCK if block_format.scales else block_format.part
    blocks = np.asarray(array, np.float32).reshape(-1, block)
    step = _NUMBERS // block
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        chunks = [_encode_blocks(blocks[start : start + step], block_format) for start in range(0, len(blocks), step)]
    return np.concatenate(chunks).reshape(*array.shape[:-1], -1)


def rounding_step(name: str) -> float:
    """Return a bound of a number's rounding error in a format, relative to the largest number of its tensor."""
    if name not in FORMATS:
        return {"F32": 0.0, "F16": 2.0**-11}.get(name, 0.5 / 127 + 2.0**-10)
    return 2.5 / 2 ** FORMATS[name].bits + 0.02


def _encode_blocks(blocks: np.ndarray, block_format: BlockFormat) -> np.ndarray:
    """Return [B, bytes per block]."""
    part, bits, has_minimum, _, pack = block_format
    count = len(blocks)
    x = np.ascontiguousarray(blocks.reshape(-1, part).T)  # [part, B * parts]: sums over a part add rows
    top = (1 << bits) - 1
    if has_minimum:
        scale, minimum = _affine(x, top)
        scale_parts = _refine(scale.reshape(count, -1), block_format, signed=False)
        minimum_parts = _refine(minimum.reshape(count, -1), block_format, signed=False)
        codes = _divide(x + minimum_parts.values.reshape(-1), scale_parts.values.reshape(-1))
        fields = (scale_parts, minimum_parts)
    else:
        scale_parts = _refine(_symmetric(x, 1 << bits - 1).reshape(count, -1), block_format, signed=True)
        codes = _divide(x, scale_parts.values.reshape(-1)) + (1 << bits - 1)
        fields = (scale_parts,)
    codes = np.rint(codes).clip(0, top).astype(np.uint8)
    columns = pack(codes.T.reshape(count, -1), *fields)
    return np.concatenate([column.reshape(count, -1).view(np.uint8) for column in columns], axis=1)


def _divide(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x * np.where(np.abs(scale) > _TINY, 1 / scale, 0).astype(np.float32)


class RefinedScales(NamedTuple):
    """Scales of a block's parts as stored: `whole` in fp16 [B, 1] times `steps` [B, parts] is `values`."""

    whole: np.ndarray
    steps: np.ndarray
    values: np.ndarray


def _refine(scales: np.ndarray, block_format: BlockFormat, signed: bool) -> RefinedScales:
    """Store scales [B, parts] in fp16, or as multiples of one in fp16.

    Signed multiples are from -scales to scales - 1: the largest scale gets the first one, as in ggml.
    """
    if not block_format.scales:
        whole = scales.clip(-_MAX_HALF, _MAX_HALF).astype(np.float16)
        return RefinedScales(whole, np.ones_like(scales), whole.astype(np.float32))
    index = np.abs(scales).argmax(1)[:, None]
    extreme = np.take_along_axis(scales, index, 1)
    most = block_format.scales
    whole = (extreme / (-most if signed else most)).clip(-_MAX_HALF, _MAX_HALF).astype(np.float16)
    steps = np.rint(_divide(scales, whole.astype(np.float32)))
    steps = steps.clip(-most, most - 1) if signed else steps.clip(0, most)
    return RefinedScales(whole, steps.astype(np.int16), whole.astype(np.float32) * steps.astype(np.float32))


def _weights(x: np.ndarray) -> np.ndarray:
    """Root mean square of the part plus magnitude, [part, N]."""
    return np.sqrt(np.square(x).mean(0)) + np.abs(x)


def _affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and minimum [N] for which x [part, N] is about scale * code - minimum, codes from 0 to `top`.

    Each candidate rounds x in its own way; least squares give its scale and minimum (at least 0).
    """
    low = np.minimum(x.min(0), 0)
    span = x.max(0) - low
    shifted = x - low
    w = _weights(x)
    wx = w * x
    sum_w = w.sum(0)
    sum_x = wx.sum(0)
    sum_xx = (wx * x).sum(0)
    scale = span / top
    minimum = -low
    best = (w * np.square(np.minimum(np.rint(_divide(shifted, scale)), top) * scale - shifted)).sum(0)
    for offset in np.linspace(*_WIDE, dtype=np.float32):
        q = np.minimum(np.rint(_divide(shifted, span / (top + offset))), top)
        wq = w * q
        sum_q = wq.sum(0)
        sum_qq = (wq * q).sum(0)
        sum_xq = (wx * q).sum(0)
        determinant = sum_w * sum_qq - np.square(sum_q)
        slope = (sum_w * sum_xq - sum_x * sum_q) / determinant
        offset_x = (sum_qq * sum_x - sum_q * sum_xq) / determinant
        is_free = (determinant > 1e-5 * sum_w * sum_qq) & (offset_x < 0)
        slope = np.where(is_free, slope, sum_xq / sum_qq)
        offset_x = np.where(is_free, offset_x, 0)
        error = sum_xx - slope * sum_xq - offset_x * sum_x
        better = (error < best) & (slope > 0)
        best = np.where(better, error, best)
        scale = np.where(better, slope, scale)
        minimum = np.where(better, -offset_x, minimum)
    return scale, minimum


def _symmetric(x: np.ndarray, half: int) -> np.ndarray:
    """Return the scale [N] for which x [part, N] is about scale * code, codes from -half to half - 1."""
    high = x.max(0)
    low = x.min(0)
    extreme = np.where(high > -low, high, low)
    w = _weights(x)
    wx = w * x
    sum_xx = (wx * x).sum(0)
    scale = -extreme / half
    best = (w * np.square(np.rint(_divide(x, scale)).clip(-half, half - 1) * scale - x)).sum(0)
    for offset in np.linspace(*_NARROW, dtype=np.float32):
        q = np.rint(_divide(x, -extreme / (half + offset))).clip(-half, half - 1)
        sum_xq = (wx * q).sum(0)
        slope = sum_xq / (w * q * q).sum(0)
        error = sum_xx - slope * sum_xq
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, slope, scale)
    return scale


def _joined(codes: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Bytes of codes from groups of `shape`, whose rows fill a byte from its lowest bits on."""
    groups = codes.reshape(len(codes), -1, *shape)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(groups << shifts, axis=2)


def _nibbles(codes: np.ndarray, width: int) -> np.ndarray:
    """Four bits per code; a byte has codes that are `width` apart."""
    return _joined(codes & 15, 4, (2, width))


def _quarters(codes: np.ndarray, width: int = 32) -> np.ndarray:
    """Two bits per code; a byte has codes that are `width` apart."""
    return _joined(codes & 3, 2, (4, width))


def _high_bits(bits: np.ndarray) -> np.ndarray:
    """One bit per code; a byte has those of codes that are 32 apart."""
    return np.packbits(bits.reshape(len(bits), 8, 32), axis=1, bitorder="little")


def _six_bits(scales: np.ndarray, minimums: np.ndarray) -> np.ndarray:
    """Eight scales and eight minimums of six bits in 12 bytes."""
    columns = [np.split(part.astype(np.uint8), 2, axis=1) for part in (scales, minimums)]
    first = [low | high >> 4 << 6 for low, high in columns]
    last = [high & 15 for _, high in columns]
    return np.concatenate([*first, last[0] | last[1] << 4], axis=1)


def _pack_q4_0(codes: np.ndarray, scale: RefinedScales) -> list[np.ndarray]:
    return [scale.whole, _nibbles(codes, 16)]


def _pack_q5_0(codes: np.ndarray, *scales: RefinedScales) -> list[np.ndarray]:
    """Q5_0, and Q5_1 with a minimum, which the file adds."""
    halves = [part.whole if i == 0 else -part.whole for i, part in enumerate(scales)]
    return [*halves, np.packbits(codes >> 4, axis=1, bitorder="little"), _nibbles(codes, 16)]


def _pack_q2_k(codes: np.ndarray, scale: RefinedScales, minimum: RefinedScales) -> list[np.ndarray]:
    steps = scale.steps.astype(np.uint8) | minimum.steps.astype(np.uint8) << 4
    return [steps, _quarters(codes), scale.whole, minimum.whole]


def _pack_q3_k(codes: np.ndarray, scale: RefinedScales) -> list[np.ndarray]:
    steps = (scale.steps + 32).astype(np.uint8)
    high = _quarters(steps >> 4, 4)
    return [_high_bits(codes >> 2), _quarters(codes), _nibbles(steps, 8), high, scale.whole]


def _pack_q4_k(codes: np.ndarray, scale: RefinedScales, minimum: RefinedScales) -> list[np.ndarray]:
    return [scale.whole, minimum.whole, _six_bits(scale.steps, minimum.steps), _nibbles(codes, 32)]


def _pack_q5_k(codes: np.ndarray, scale: RefinedScales, minimum: RefinedScales) -> list[np.ndarray]:
    steps = _six_bits(scale.steps, minimum.steps)
    return [scale.whole, minimum.whole, steps, _high_bits(codes >> 4), _nibbles(codes, 32)]


def _pack_q6_k(codes: np.ndarray, scale: RefinedScales) -> list[np.ndarray]:
    return [_nibbles(codes, 64), _quarters(codes >> 4), scale.steps.astype(np.int8), scale.whole]


# The functions pack codes [B, numbers] into columns of bytes, in the order of the file.
FORMATS = {
    "Q4_0": BlockFormat(part=32, bits=4, has_minimum=False, scales=0, pack=_pack_q4_0),
    "Q5_0": BlockFormat(part=32, bits=5, has_minimum=False, scales=0, pack=_pack_q5_0),
    "Q5_1": BlockFormat(part=32, bits=5, has_minimum=True, scales=0, pack=_pack_q5_0),
    "Q2_K": BlockFormat(part=16, bits=2, has_minimum=True, scales=15, pack=_pack_q2_k),
    "Q3_K": BlockFormat(part=16, bits=3, has_minimum=False, scales=32, pack=_pack_q3_k),
    "Q4_K": BlockFormat(part=32, bits=4, has_minimum=True, scales=63, pack=_pack_q4_k),
    "Q5_K": BlockFormat(part=32, bits=5, has_minimum=True, scales=63, pack=_pack_q5_k),
    "Q6_K": BlockFormat(part=16, bits=6, has_minimum=False, scales=128, pack=_pack_q6_k),
}
