"""GGUF files of valid structure and hostile contents: architectures with other values, and blocks of every format."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Mapping
from typing import Any

from grammar_models import NAMES, WHOLE, _gguf_value, _text, composed_object

from headway.formats.gguf.file import KINDS

Tensors = Mapping[str, tuple[int, tuple[int, ...]]]  # number of the format and shape by name
ALIGNMENT = 32


def file_bytes(values: Mapping[str, Any], tensors: Tensors, draw: random.Random, odd: float, payload: bytes) -> bytes:
    """A file, of whose descriptions a share of `odd` does not fit; `payload` is repeated as its data."""
    described, end = b"", 0
    for name, (number, shape) in tensors.items():
        kind = KINDS[number]
        if draw.random() < odd:
            number = draw.choice((*KINDS, 99))
        side = tuple(draw.choice((0, 1, *WHOLE[:-1])) if draw.random() < odd else size for size in shape)
        place = draw.choice((0, 1, *WHOLE[:-1])) if draw.random() < odd else end
        described += _text(draw.choice(NAMES) if draw.random() < odd else name)
        described += struct.pack(f"<I{len(side)}QIQ", len(side), *reversed(side), number, place)
        end += -(-(math.prod(shape) // kind.block * kind.size) // ALIGNMENT) * ALIGNMENT
    pairs = [_text(key) + _gguf_value(value, draw) for key, value in values.items() if not isinstance(value, dict)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + described
    head += bytes(-len(head) % ALIGNMENT)
    data = (payload * (end // len(payload) + 1))[:end] if end else b""
    return head + data[: len(data) - draw.choice((1, 40)) if draw.random() < odd else len(data)]


def composed_architecture(values: Mapping[str, Any], tensors: Tensors, draw: random.Random) -> bytes:
    """A model's file with other values below the architecture's name, and now and then other tensors."""
    name = values["general.architecture"]
    changed = {key: value for key, value in values.items() if not key.startswith("tokenizer.")}
    below = {key: value for key, value in changed.items() if key.startswith(f"{name}.")}
    below[f"{name}.attention.sliding_window_pattern"] = draw.choice((3, 0, 1 << 31, [True, False, True], ["x"]))
    odd = draw.choice((0.0, 0.0, 0.0, 0.02, 0.1))
    if draw.random() < 0.7:
        below = composed_object(below, draw)
    if draw.random() < 0.1:
        changed["general.architecture"] = draw.choice(("llama", "phi3", "gemma3", "gptneox", "bert"))
    return file_bytes({**changed, **below}, tensors, draw, odd, bytes(64))


def composed_blocks(draw: random.Random, odd: float | None = None) -> bytes:
    """Tensors of every format with any bits, one of floats that the K-quants then encode."""
    tensors = {}
    for index in range(draw.choice((1, 2, 5))):
        number = draw.choice((*KINDS, 0, 0))
        rows = draw.choice((1, 2, 5))
        tensors[f"t{index}"] = number, (rows, KINDS[number].block * draw.choice((1, 2, 256 // KINDS[number].block)))
    bits = draw.choice((4, 8, 30, 32))
    payload = b"".join(struct.pack("<I", draw.getrandbits(bits)) for _ in range(64))
    if draw.random() < 0.5:
        scale = 10.0 ** draw.uniform(-12, 12)
        payload = b"".join(struct.pack("<f", scale * draw.gauss(draw.choice((0, 0, 3)), 1)) for _ in range(64))
    odd = draw.choice((0.0, 0.1, 0.4)) if odd is None else odd
    return file_bytes({"general.architecture": "x"}, tensors, draw, odd, payload)
