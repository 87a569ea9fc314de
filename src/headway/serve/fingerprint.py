"""system_fingerprint: a hash of everything that determines the bits of a model's output."""

from __future__ import annotations

import json
import zlib
from importlib.metadata import version
from typing import Any

import torch
from llvmlite import binding

from headway import __version__
from headway.config import to_dict
from headway.engine import Engine, PackedTensor
from headway.engine.processor import INSTRUCTION_SET, WIDE
from headway.formats.native import named_tensors
from headway.nn.kernels import is_deterministic
from headway.predict.model_handle import ModelHandle

_LIBRARIES = ("torch", "numba", "llvmlite", "tokenizers")


def fingerprint(model: ModelHandle) -> str:
    """ "hw-" and 8 hexadecimal digits, equal if the same request with the same seed gets an answer with the same bits.

    The hash covers the model's weights in their number format, its configuration, tokenizer and chat template, and the
    format of the KV cache; the versions of headway and of the numerical libraries; and the processor and its
    instruction set. Threads only count if torch generates the text. Takes a second for about 2 GB of weights.
    """
    codec, usage = model.open_session().codec, model.usage
    processor: list[Any] = [binding.get_host_cpu_name()]
    if isinstance(model.generator, Engine):
        processor += [INSTRUCTION_SET, WIDE]
    elif model.device.type == "cpu":
        processor += [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    else:
        name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else ""
        processor = [model.device.type, name]
    facts = {
        "weights": _checksum(model.module),
        "model": to_dict(model.module.config),
        "tokenizer": None if codec is None else codec.fingerprint(),
        "usage": [usage.begin, usage.ends, usage.suppressed, usage.template],
        "cache": model.generator.cache if isinstance(model.generator, Engine) else "fp32",
        "versions": [__version__, *map(version, _LIBRARIES)],
        "processor": processor,
        "deterministic": is_deterministic(),
    }
    return f"hw-{zlib.crc32(json.dumps(facts, sort_keys=True, default=str).encode()):08x}"


def _checksum(module: Any) -> int:
    """The checksum over the names and bytes of all weights."""
    crc = 0
    for name, tensor in named_tensors(module):
        packed = tensor.packed if isinstance(tensor, PackedTensor) else None
        parts = [tensor] if packed is None else [packed.weights, *([] if packed.scales is None else [packed.scales])]
        crc = zlib.crc32(name.encode(), crc)
        for part in parts:
            crc = zlib.crc32(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc
