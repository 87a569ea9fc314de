"""Tiny models of published families for the tests of file formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headway.formats.families import find_family
from headway.formats.settings import Settings
from headway.nn.models import ModelConfig, build

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 24}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 48,
    "max_position_embeddings": 64,
}


def published_config(settings: dict[str, Any], **changes: Any) -> ModelConfig:
    """The configuration that a config.json of these settings means."""
    given = {**settings, **changes}
    family = find_family(Settings(given, "a test"))
    return family.read(Settings({**family.defaults, **given}, "a test"), ())


def drawn(config: ModelConfig, seed: int = 1) -> nn.Module:
    """A model in which every number is drawn, norms and biases too."""
    model = build(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def rewritten(path: Path, change: Callable[[Any], tuple[Any, Any]] | None = None, tensors: int = 0) -> Path:
    """A GGUF file again, as the package writes it: with other data and formats, or a number of tensors in each part."""
    import gguf

    reader, target = gguf.GGUFReader(path), path.with_name("p.gguf")
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents(), split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            types = field.types if len(field.types) > 1 else [*field.types, None]
            writer.add_key_value(name, field.contents(), types[0], types[1])
    for tensor in reader.tensors:
        data, kind = (tensor.data, None) if change is None else change(tensor.data)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
