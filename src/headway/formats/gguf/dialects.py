"""GGUF's names for the settings and tensors in published folders, by architecture.

A file is read as if it were the folder it was made from: values become settings of a config.json, tensors get their
published names, and the family does the rest. Changes that llama.cpp makes are undone here: interleaved rotary pairs
(llama), norms with 1 added (gemma), and transposed linear layers (gpt2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from headway.errors import UserError, nearest
from headway.nn.parts.positions import Rotary, RotaryConfig
from headway.nn.parts.scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling

# Keys below the architecture's name, and the matching settings of a config.json.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
GPT2_SIZES = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PHI3_LAYER = {**LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GEMMA2_LAYER = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER = re.compile(r"(\w+)\.(weight|bias)")
# Factors of rotary frequencies, stored as tensors in GGUF and as settings in config.json.
FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class Dialect:
    """One architecture: the `family` it is read as, and its names.

    `interleaved`: rotary pairs of queries and keys are adjacent. `offset`: norms store their scale including the 1 that
    the published tensor omits. `transposed`: layers whose published weight has its inputs in rows.
    """

    family: str
    layers: str = "model.layers"
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    rotary: bool = True
    interleaved: bool = False
    offset: bool = False
    transposed: frozenset[str] = frozenset()

    def published_name(self, name: str) -> str:
        """Return the published name of a tensor; an unknown one keeps its name, which no rule matches."""
        inner, outer = _BLOCK.fullmatch(name), _OUTER.fullmatch(name)
        if inner and inner[2] in self.layer:
            return f"{self.layers}.{inner[1]}.{self.layer[inner[2]]}.{inner[3]}"
        if outer and outer[1] in self.outer:
            return f"{self.outer[outer[1]]}.{outer[2]}"
        return name

    def stored_name(self, published: str) -> str:
        """The reverse of `published_name`."""
        stem, _, end = published.rpartition(".")
        for stored, published_stem in self.outer.items():
            if stem == published_stem:
                return f"{stored}.{end}"
        number, _, inner_name = stem.removeprefix(f"{self.layers}.").partition(".")
        for stored, published_stem in self.layer.items():
            if inner_name == published_stem:
                return f"blk.{number}.{stored}.{end}"
        raise UserError(
            f"GGUF has no name for tensor {published!r} of family {self.family}; save it as a folder instead"
        )

    def is_transposed(self, name: str) -> bool:
        inner = _BLOCK.fullmatch(name)
        return bool(inner) and inner[2] in self.transposed and inner[3] == "weight"

    def is_offset(self, name: str) -> bool:
        return self.offset and name.endswith("norm.weight")


DIALECTS = {
    "llama": Dialect("llama", interleaved=True),
    "qwen2": Dialect("qwen2"),
    "qwen3": Dialect("qwen3"),
    "phi3": Dialect("phi3", layer=PHI3_LAYER),
    "gemma": Dialect("gemma", offset=True),
    "gemma2": Dialect("gemma2", layer=GEMMA2_LAYER, offset=True),
    "gemma3": Dialect("gemma3_text", layer=GEMMA2_LAYER, offset=True),
    "gpt2": Dialect(
        "gpt2",
        rotary=False,
        layers="transformer.h",
        sizes=GPT2_SIZES,
        outer=GPT2_OUTER,
        layer=GPT2_LAYER,
        transposed=frozenset(("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    ),
}
# Families that can be written, with their architecture: llama.cpp has Mistral's layers under Llama's name.
WRITABLE_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def find_dialect(values: Mapping[str, Any], source: str) -> tuple[str, Dialect]:
    """Return the architecture that a file names, and its dialect."""
    name = values.get("general.architecture")
    if not isinstance(name, str) or name not in DIALECTS:
        known = ", ".join(sorted(DIALECTS))
        hint = nearest(str(name), DIALECTS)
        raise UserError(f"{source}: unknown architecture {str(name)[:80]!r}; {hint} (known: {known})")
    return name, DIALECTS[name]


class RotaryValues(NamedTuple):
    values: dict[str, Any]  # below the architecture's name
    tensors: dict[str, Tensor]


def rotary_values(rotary: RotaryConfig, head_size: int, context: int) -> RotaryValues:
    """Return values and tensors that express `rotary`. UserError for a scaling that GGUF cannot store."""
    values: dict[str, Any] = {"rope.freq_base": float(rotary.theta)}
    scaling = rotary.scaling
    if scaling is None:
        return RotaryValues(values, {})
    if isinstance(scaling, LinearScaling):
        return RotaryValues({**values, "rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}, {})
    if isinstance(scaling, YarnScaling) and scaling == YarnScaling(scaling.factor, scaling.original):
        scaling_values = {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        return RotaryValues({**values, **scaling_values, "rope.scaling.original_context_length": scaling.original}, {})
    if isinstance(scaling, Llama3Scaling) or _is_length_independent(scaling):
        plain = Rotary(RotaryConfig(rotary.theta), head_size).frequencies
        scaled = Rotary(rotary, head_size).frequencies
        return RotaryValues(values, {FACTORS: (plain / scaled).to(torch.float32)})
    raise UserError(f"GGUF cannot store rotary positions scaled by {type(scaling).__name__}; export a folder instead")


def _is_length_independent(scaling: Any) -> bool:
    """Whether these factors apply to all lengths, as in a file."""
    return isinstance(scaling, LongRopeScaling) and scaling.short == scaling.long and scaling.attention_factor == 1.0


_MAX_FACTORS = 1 << 14  # at most half of a head's features
# Gemma's largest models divide their scores by the width over the heads, the others by the size of a head.
_WIDE_SCORES = {"gemma2": 46, "gemma3_text": 62}  # layers in the largest models


class GgufContents(Protocol):
    """The common interface of a file being read and one being written."""

    @property
    def source(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> Tensor: ...


def read_values(file: GgufContents, architecture: str, dialect: Dialect) -> dict[str, Any]:
    """Return the settings from the folder that a file was made from, including "model_type"."""
    prefix = f"{architecture}."
    values = {key.removeprefix(prefix): value for key, value in file.values.items() if key.startswith(prefix)}
    if values.get("expert_count"):
        raise UserError(f"{file.source} has {values['expert_count']} experts, which are not supported in GGUF")
    settings: dict[str, Any] = {setting: values[key] for key, setting in dialect.sizes.items() if key in values}
    settings["model_type"] = dialect.family
    settings["tie_word_embeddings"] = "output.weight" not in file.names()
    if "token_embd.weight" in file.names():
        settings["vocab_size"] = file.shape("token_embd.weight")[0]
    if dialect.rotary:
        settings |= _attention(file, values, settings)
        settings |= _rotary(file, values, settings)
    settings |= {f"{role}_token_id": file.values.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return settings


def _attention(file: GgufContents, values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    sizes = type(width) is int and type(heads) is int and heads > 0
    derived: dict[str, Any] = {}
    if "sliding_window" in settings:  # otherwise the family's default applies
        derived["sliding_window"] = settings["sliding_window"] or None
    if "head_dim" not in settings and sizes:
        derived["head_dim"] = width // heads  # type: ignore[operator]
    family = settings["model_type"]
    if family == "llama":
        derived["attention_bias"] = "blk.0.attn_q.bias" in file.names()
        derived["mlp_bias"] = "blk.0.ffn_gate.bias" in file.names()
        if derived.get("sliding_window") is not None:
            derived["model_type"] = "mistral"
    if family in _WIDE_SCORES and sizes:
        wide = settings.get("num_hidden_layers") == _WIDE_SCORES[family]
        derived["query_pre_attn_scalar"] = width // heads if wide else settings.get("head_dim", width // heads)  # type: ignore[operator]
    return derived


def _rotary(file: GgufContents, values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return rope_parameters, and for Phi-3 the length it was first trained on."""
    base = values.get("rope.freq_base", 10000.0)
    parameters = {"rope_theta": base, **_scaling(file, values, settings)}
    size = settings.get("head_dim") or 0
    rotated = values.get("rope.dimension_count", size)
    if rotated != size and type(rotated) is int and type(size) is int and size > 0:
        parameters["partial_rotary_factor"] = rotated / size
    if settings["model_type"] == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": parameters, "sliding_attention": local}}
    original = values.get("rope.scaling.original_context_length")
    return {"rope_parameters": parameters} | (
        {} if original is None else {"original_max_position_embeddings": original}
    )


def _scaling(file: GgufContents, values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    context = settings.get("max_position_embeddings")
    if FACTORS in file.names():  # Llama 3.1's scaling as a factor per frequency
        factors = _factors(file, FACTORS)
        parameters = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return {"rope_type": "longrope", "original_max_position_embeddings": context, **parameters}
    if SHORT_FACTORS in file.names() and LONG_FACTORS in file.names():
        parameters = {"short_factor": _factors(file, SHORT_FACTORS), "long_factor": _factors(file, LONG_FACTORS)}
        return {"rope_type": "longrope", "attention_factor": values.get("rope.scaling.attn_factor"), **parameters}
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    kind = values.get("rope.scaling.type", "linear" if factor else "none")  # older files only have a factor
    if kind == "none":
        return {"rope_type": "default"}
    return {"rope_type": kind, "factor": factor}


def _factors(file: GgufContents, name: str) -> list[float]:
    count = math.prod(file.shape(name))
    if count > _MAX_FACTORS:
        raise UserError(f"{file.source}: {name} has {count} factors, more than a head has features; get the file again")
    return file.get(name).flatten().tolist()
