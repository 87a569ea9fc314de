"""Readers of models: what they say of themselves, and their tensors."""

from __future__ import annotations

import io
import json
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grammar_gguf import composed_architecture, composed_blocks
from grammar_quantized import METHODS, composed_quantized
from mutate import damaged, damaged_json
from run import Reader

from headway.codecs import train_codec
from headway.formats.ctranslate2 import ModelBin
from headway.formats.families import families, find_family, text_part
from headway.formats.gguf import GgufFile, load_gguf, load_gguf_codec, save_gguf
from headway.formats.gguf.file import gguf
from headway.formats.gguf.k_quants import FORMATS, encode
from headway.formats.llama2c import load_llama2c
from headway.formats.native import read_config, uninitialized_model
from headway.formats.published import CONFIG, INDEX, open_shards, read_settings, read_special_tokens
from headway.formats.quantization import QUANTIZATION, QuantizedWeights, find_scheme
from headway.formats.settings import Settings
from headway.formats.tensorfile import TensorFile
from headway.formats.torch_file import TorchFile
from headway.nn.models import build

WIDTH, HEADS, SYMBOLS, CONTEXT = 32, 2, 300, 16
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "intermediate_size": WIDTH,
    "vocab_size": SYMBOLS,
    "max_position_embeddings": CONTEXT,
}
# The same under the other names that families have for them.
OTHER: dict[str, Any] = {
    **dict.fromkeys(("n_embd", "d_model", "dim", "d_ff", "hidden_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), WIDTH),
    **dict.fromkeys(("head_dim", "d_kv", "query_pre_attn_scalar"), WIDTH // HEADS),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("n_positions", "original_max_position_embeddings"), CONTEXT),
    **dict.fromkeys(("num_local_experts", "num_experts"), 2),
    **{"moe_intermediate_size": WIDTH, "num_experts_per_tok": 1},
}
SEEN = {  # by a policy, and what it does
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [3]},
        "observation.environment_state": {"type": "ENV", "shape": [2]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
    **dict.fromkeys(("dim_model", "dim_feedforward"), WIDTH),
    **dict.fromkeys(("n_encoder_layers", "n_decoder_layers", "n_vae_encoder_layers"), 1),
    "down_dims": [8, 16],
}
# Of a model of two.
TOWERS = {"text_config": {**SMALL, "eos_token_id": 2}, "vision_config": {**SMALL, "image_size": 32}}
TOWERS |= {part: {**SMALL, "head_dim": WIDTH // HEADS} for part in ("encoder", "decoder")}
HELD = 1 << 20  # bytes of weights that a config is checked against
NAMES = [f"tensor {i}" for i in range(100)]  # and the tensors there


def config_seeds(folder: Path) -> list[bytes]:
    """A small config.json of every family."""
    found = []
    for name, family in sorted(families().items()):
        small = {key: value for key, value in OTHER.items() if key in family.defaults or key != "head_dim"}
        towers = TOWERS if name in ("clip", "siglip", "t5gemma") else {}
        seen = SEEN if name in ("act", "diffusion") else {}
        settings = {**family.defaults, **SMALL, **small, **towers, **seen, "model_type": name}
        settings |= {"embedding_size": WIDTH // 2} if name == "albert" else {}
        found.append(json.dumps(settings).encode())
    found.append(json.dumps({"model_type": "gemma3", "text_config": {**SMALL, "head_dim": 16}}).encode())
    return found


def read_config_file(path: Path) -> None:
    settings = read_settings(path.parent)
    family, settings = find_family(settings), text_part(settings)
    settings = Settings({**family.defaults, **settings.values}, settings.source)
    config = read_config(family, settings, NAMES)
    uninitialized_model(config, HELD, settings.source)
    family.rules(config)
    read_special_tokens(path.parent, settings)


def tensor_seeds(folder: Path) -> list[bytes]:
    entries = {"a": ("F32", [2, 3], 24), "b": ("BF16", [4], 8), "c": ("I8", [0, 5], 0), "d": ("F16", [], 2)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little") + text + bytes(end)]


def damaged_tensors(data: bytes, draw: random.Random) -> bytes:
    """Bytes anywhere, or the header as JSON with its length put right."""
    if draw.random() < 0.4:
        return damaged(data, draw)
    length = int.from_bytes(data[:8], "little")
    text = damaged_json(data[8 : 8 + length], draw)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_tensors(path: Path) -> None:
    file = TensorFile(path)
    for name in file.names():
        file.get(name).clone()
        file.done(name)


def index_seeds(folder: Path) -> list[bytes]:
    """Two shards and what lies where."""
    (whole,) = tensor_seeds(folder)
    (folder / "one.safetensors").write_bytes(whole)
    (folder / "two.safetensors").write_bytes(
        whole.replace(b'"b"', b'"e"').replace(b'"a"', b'"f"').replace(b'"c"', b'"g"').replace(b'"d"', b'"h"')
    )
    names = dict.fromkeys("abcd", "one.safetensors") | dict.fromkeys("efgh", "two.safetensors")
    return [json.dumps({"metadata": {"total_size": 68}, "weight_map": names}).encode()]


def read_index(path: Path) -> None:
    shards = open_shards(path.parent)
    for name in shards.names():
        shards.get(name).clone()
        shards.done(name)


def gguf_seeds(folder: Path) -> list[bytes]:
    found = []
    texts = ["the cat sat on the mat, and the dog saw the cat\n"] * 3
    for name, precision in (("llama", "F32"), ("qwen3", "Q8_0")):
        family = families()[name]
        settings = {**family.defaults, **SMALL, "head_dim": 4}
        config = family.read(Settings(settings, name), ())
        path = folder / f"{name}.gguf"  # no file is replaced
        save_gguf(build(config), config, path, train_codec("bpe", texts, 270), precision=precision)  # type: ignore[arg-type]
        found.append(path.read_bytes())
    return found


def read_gguf(path: Path) -> None:
    load_gguf(path)
    load_gguf_codec(path)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_local_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 8},
    "olmo3": {"rope_theta": 1e4},
    "gemma2": {"query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "gemma3_text": {"query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "phi3": {},
    "stablelm": {"partial_rotary_factor": 0.5},
    "starcoder2": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 16},
}
_CONTENTS: dict[bytes, tuple[dict[str, Any], dict[str, tuple[int, tuple[int, ...]]]]] = {}


def architecture_seeds(folder: Path) -> list[bytes]:
    for name, changes in ARCHITECTURES.items():
        family = families()[name]
        settings = {**family.defaults, **({} if name == "gpt2" else {**SMALL, "head_dim": 16}), **changes}
        config = family.read(Settings(settings, name), ())
        path = folder / f"{name}.gguf"
        save_gguf(build(config), config, path)
        file = GgufFile(path)
        _CONTENTS[path.read_bytes()] = file.values, {name: (0, file.shape(name)) for name in file.names()}
    return list(_CONTENTS)


def damaged_architecture(seed: bytes, draw: random.Random) -> bytes:
    return composed_architecture(*_CONTENTS[seed], draw)


def read_blocks(path: Path) -> None:
    """Decode all tensors, and encode finite ones in every format: no code may be far from its number."""
    file = GgufFile(path)
    for name in file.names():
        tensor = file.get(name).float().numpy()
        if tensor.ndim < 2 or tensor.shape[-1] % 256 or not np.isfinite(tensor).all() or not tensor.size:
            continue
        rows = tensor.reshape(-1, 256).clip(-1e4, 1e4)
        largest = np.abs(rows).max(axis=1, keepdims=True)
        for kind, block_format in FORMATS.items():
            blocks = encode(rows, kind)
            found = gguf().quants.dequantize(blocks, gguf().GGMLQuantizationType[kind])
            step = largest * (2.5 / 2**block_format.bits + 0.02) + 1e-3
            assert (np.abs(found - rows) <= step).all(), kind


def llama2c_seeds(folder: Path) -> list[bytes]:
    width, hidden, depth, heads, kv, symbols, context = 8, 8, 1, 2, 1, 12, 16
    layer = 2 * width + 2 * width * width + 2 * width * kv * (width // heads) + 3 * width * hidden
    numbers = symbols * width + depth * layer + width
    header = struct.pack("<7i", width, hidden, depth, heads, kv, symbols, context)
    legacy = header + bytes(4 * (numbers + context * width // heads))
    first = (struct.pack("<Ii", 0x616B3432, 1) + header + b"\1").ljust(256, b"\0") + bytes(4 * numbers)
    return [legacy, first]


def ctranslate2_seeds(folder: Path) -> list[bytes]:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    def variable(name: str, shape: tuple[int, ...], kind: int, size: int) -> bytes:
        return text(name) + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, kind, size) + bytes(size)

    held = [
        variable("a", (2, 3), 1, 6),
        variable("a_scale", (2,), 0, 8),
        variable("b", (4,), 4, 8),
        variable("n", (), 2, 2),
    ]
    head = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(held))
    return [head + b"".join(held) + struct.pack("<I", 1) + text("c") + text("a")]


def read_ctranslate2(path: Path) -> None:
    model = ModelBin(path)
    for name in (*model.names(), *model.aliases):
        model.get(name).clone()
        model.done(name)


def torch_seeds(folder: Path) -> list[bytes]:
    """A file of torch.save in both of its forms: two views of one storage, other types, and what lies beside them."""
    table = torch.arange(12.0).view(3, 4)
    tensors = OrderedDict(a=table, b=table.t(), c=torch.ones(2, dtype=torch.bfloat16), d=torch.tensor(2))
    found = []
    for tree, form in (({"state_dict": tensors, "epoch": 3, "lr": 0.1}, True), (tensors, True), (tensors, False)):
        buffer = io.BytesIO()
        torch.save(tree, buffer, _use_new_zipfile_serialization=form)
        found.append(buffer.getvalue())
    return found


def read_torch(path: Path) -> None:
    file = TorchFile(path)
    for name in file.names():
        file.get(name).clone()
        file.done(name)


def quantized_seeds(folder: Path) -> list[bytes]:
    return [composed_quantized(random.Random(0), method, 0.0) for method in METHODS]


def read_quantized(path: Path) -> None:
    """All matrices, which are 32-bit floats whatever their parts are."""
    file = TensorFile(path)
    said = json.loads(file.metadata[QUANTIZATION[0]])
    scheme = find_scheme(Settings({QUANTIZATION[0]: said}, str(path)))
    if scheme is None:
        return
    weights = QuantizedWeights(file, scheme)
    for name in weights.names():
        tensor = weights.get(name)
        assert tensor.dtype == torch.float32 or name in file.names(), tensor.dtype
        weights.done(name)


MODELS = {
    "torch": Reader("pytorch_model.bin", torch_seeds, damaged, read_torch),
    "config": Reader(CONFIG, config_seeds, damaged_json, read_config_file),
    "safetensors": Reader("model.safetensors", tensor_seeds, damaged_tensors, read_tensors),
    "index": Reader(INDEX, index_seeds, damaged_json, read_index),
    "gguf": Reader("model.gguf", gguf_seeds, damaged, read_gguf),
    "composed-gguf-architecture": Reader("b.gguf", architecture_seeds, damaged_architecture, load_gguf),
    "composed-gguf-blocks": Reader(
        "c.gguf", lambda _: [composed_blocks(random.Random(0), 0.0)], lambda _, draw: composed_blocks(draw), read_blocks
    ),
    "composed-quantized": Reader(
        "d.safetensors", quantized_seeds, lambda _, draw: composed_quantized(draw), read_quantized
    ),
    "llama2c": Reader("model.bin", llama2c_seeds, damaged, load_llama2c),
    "ctranslate2": Reader("model.bin", ctranslate2_seeds, damaged, read_ctranslate2),
}
