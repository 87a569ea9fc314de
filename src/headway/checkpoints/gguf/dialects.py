"""How GGUF says what a published folder says: the names of settings and tensors, architecture by architecture.

A file is read as if it were the folder it was made from: values become the settings of a config.json, tensors get their
published names, and the family does the rest. What llama.cpp changes on the way is said here: interleaved rotary pairs
(llama), norms with their 1 added (gemma), and linear layers turned round (gpt2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.errors import UserError, nearest

# Values by their key below the architecture's name, and the setting of a config.json that each is.
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
# Factors of rotary frequencies, which GGUF keeps among the tensors and config.json among the settings.
FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class Dialect:
    """One architecture: the `family` it is read as, and what its names are.

    `interleaved`: rotary pairs of queries and keys lie side by side. `offset`: norms hold their scale with the 1 that
    the published tensor leaves out. `turned`: layers whose published weight has its inputs in rows.
    """

    family: str
    layers: str = "model.layers"
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    rotary: bool = True
    interleaved: bool = False
    offset: bool = False
    turned: frozenset[str] = frozenset()

    def published(self, name: str) -> str:
        """The published name of a tensor; what has none keeps its own, and no rule will know it."""
        inner, outer = _BLOCK.fullmatch(name), _OUTER.fullmatch(name)
        if inner and inner[2] in self.layer:
            return f"{self.layers}.{inner[1]}.{self.layer[inner[2]]}.{inner[3]}"
        if outer and outer[1] in self.outer:
            return f"{self.outer[outer[1]]}.{outer[2]}"
        return name

    def own(self, published: str) -> str:
        """`published` the other way."""
        stem, _, end = published.rpartition(".")
        for ours, theirs in self.outer.items():
            if stem == theirs:
                return f"{ours}.{end}"
        number, _, rest = stem.removeprefix(f"{self.layers}.").partition(".")
        for ours, theirs in self.layer.items():
            if rest == theirs:
                return f"blk.{number}.{ours}.{end}"
        raise UserError(
            f"GGUF has no name for tensor {published!r} of family {self.family}; save it as a folder instead"
        )

    def is_turned(self, name: str) -> bool:
        inner = _BLOCK.fullmatch(name)
        return bool(inner) and inner[2] in self.turned and inner[3] == "weight"

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
        turned=frozenset(("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    ),
}
# What is written, and as which architecture: llama.cpp has Mistral's layers under Llama's name.
WRITTEN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def find_dialect(values: Mapping[str, Any], source: str) -> tuple[str, Dialect]:
    """The architecture that a file names, and how it is read."""
    name = values.get("general.architecture")
    if not isinstance(name, str) or name not in DIALECTS:
        known = ", ".join(sorted(DIALECTS))
        hint = nearest(str(name), DIALECTS)
        raise UserError(f"{source}: there is no architecture {str(name)[:80]!r} here; {hint} (known: {known})")
    return name, DIALECTS[name]
