"""The values of a .gguf file as the settings of a config.json, and the settings as values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from torch import Tensor

from headway.checkpoints.gguf.dialects import FACTORS, LONG_FACTORS, SHORT_FACTORS, Dialect
from headway.errors import UserError

_MOST_FACTORS = 1 << 14  # half of the features of a head
# Gemma's largest models divide their scores by the width over the heads, the others by the size of a head.
_WIDE_SCORES = {"gemma2": 46, "gemma3_text": 62}  # layers


class Described(Protocol):
    """What is looked at of a file, or of one that is to be written."""

    @property
    def source(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> Tensor: ...


def read_values(file: Described, architecture: str, dialect: Dialect) -> dict[str, Any]:
    """The settings of the folder that a file was made from, "model_type" among them."""
    start = f"{architecture}."
    values = {key.removeprefix(start): value for key, value in file.values.items() if key.startswith(start)}
    if values.get("expert_count"):
        raise UserError(f"{file.source} is a mixture of {values['expert_count']} experts, which is not read from GGUF")
    said: dict[str, Any] = {theirs: values[ours] for ours, theirs in dialect.sizes.items() if ours in values}
    said["model_type"] = dialect.family
    said["tie_word_embeddings"] = "output.weight" not in file.names()
    if "token_embd.weight" in file.names():
        said["vocab_size"] = file.shape("token_embd.weight")[0]
    if dialect.rotary:
        said |= _attention(file, values, said)
        said |= _rotary(file, values, said)
    said |= {f"{mark}_token_id": file.values.get(f"tokenizer.ggml.{mark}_token_id") for mark in ("bos", "eos")}
    return said


def _attention(file: Described, values: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    width, heads = said.get("hidden_size"), said.get("num_attention_heads")
    sizes = type(width) is int and type(heads) is int and heads > 0
    found: dict[str, Any] = {}
    if "sliding_window" in said:  # else the family's own holds
        found["sliding_window"] = said["sliding_window"] or None
    if "head_dim" not in said and sizes:
        found["head_dim"] = width // heads  # type: ignore[operator]
    family = said["model_type"]
    if family == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in file.names()
        found["mlp_bias"] = "blk.0.ffn_gate.bias" in file.names()
        if found.get("sliding_window") is not None:
            found["model_type"] = "mistral"
    if family in _WIDE_SCORES and sizes:
        wide = said.get("num_hidden_layers") == _WIDE_SCORES[family]
        found["query_pre_attn_scalar"] = width // heads if wide else said.get("head_dim", width // heads)  # type: ignore[operator]
    return found


def _rotary(file: Described, values: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """rope_parameters, and for Phi-3 the length of its first training."""
    base = values.get("rope.freq_base", 10000.0)
    given = {"rope_theta": base, **_scaling(file, values, said)}
    size = said.get("head_dim") or 0
    turned = values.get("rope.dimension_count", size)
    if turned != size and type(turned) is int and type(size) is int and size > 0:
        given["partial_rotary_factor"] = turned / size
    if said["model_type"] == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": given, "sliding_attention": local}}
    original = values.get("rope.scaling.original_context_length")
    return {"rope_parameters": given} | ({} if original is None else {"original_max_position_embeddings": original})


def _scaling(file: Described, values: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    context = said.get("max_position_embeddings")
    if FACTORS in file.names():  # Llama 3.1's, as what they come to for each frequency
        factors = _factors(file, FACTORS)
        given = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return {"rope_type": "longrope", "original_max_position_embeddings": context, **given}
    if SHORT_FACTORS in file.names() and LONG_FACTORS in file.names():
        given = {"short_factor": _factors(file, SHORT_FACTORS), "long_factor": _factors(file, LONG_FACTORS)}
        return {"rope_type": "longrope", "attention_factor": values.get("rope.scaling.attn_factor"), **given}
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    kind = values.get("rope.scaling.type", "linear" if factor else "none")  # older files say a factor alone
    if kind == "none":
        return {"rope_type": "default"}
    return {"rope_type": kind, "factor": factor}


def _factors(file: Described, name: str) -> list[float]:
    count = math.prod(file.shape(name))
    if count > _MOST_FACTORS:
        raise UserError(f"{file.source}: {name} has {count} factors, more than a head has features; get the file again")
    return file.get(name).flatten().tolist()
