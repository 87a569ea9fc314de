"""Architectures of .gguf files: the published family of each, its settings, and the names of its tensors.

Tensors are named by their place in headway's model, so one table serves all architectures. llama.cpp changes some of
them: rotary pairs are interleaved (llama), norms include the 1 that others add (gemma), all experts are one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from headway.errors import UserError, nearest
from headway.formats.families import llama
from headway.formats.gguf.file import GgufFile
from headway.formats.tensor_rules import Family, Interleaved, StackedRows, TensorRule, TensorTransform, Unsplit, rule
from headway.nn.models import TransformerConfig

# Keys below the architecture's name, and the matching settings of a config.json.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "use_parallel_residual": "use_parallel_residual",
}
GPT2_SIZES = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
# Stored names, without ".weight" and ".bias", by the names of headway's tensors.
OUTER = {
    "embed": "token_embd",
    "embed.positions": "position_embd",
    "embed.types": "token_types",
    "embed.norm": "token_embd_norm",
    "stack.norm": "output_norm",
    "heads.vocabulary.project": "output",
}
LAYER = {
    "mix.before": "attn_norm",
    "mix.after": "post_attention_norm",
    "feed.before": "ffn_norm",
    "feed.after": "post_ffw_norm",
    "mix.last": "attn_output_norm",
    "feed.last": "layer_output_norm",
    "mixer.qkv": "attn_{q,k,v}",
    "mixer.qk_norm.q": "attn_q_norm",
    "mixer.qk_norm.k": "attn_k_norm",
    "mixer.out": "attn_output",
    "feed_forward.gate_up": "ffn_{gate,up}",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.shared.gate_up": "ffn_{gate,up}_shexp",
    "feed_forward.shared.down": "ffn_down_shexp",
    "feed_forward.shared_gate": "ffn_gate_inp_shexp",
    "feed_forward.experts.{}.gate_up": "ffn_{gate,up}_exps.{}",
    "feed_forward.experts.{}.down": "ffn_down_exps.{}",
}
# Layers whose parts may be stored as one tensor.
FUSED_QKV = {"mixer.qkv": "attn_qkv"}
FUSED = {**FUSED_QKV, "feed_forward.gate_up": "ffn_up"}
_TARGET = re.compile(r"(?:stack\.blocks\.(\d+)\.)?(.+)\.(weight|bias|table)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# Factors of rotary frequencies, stored as tensors in GGUF and as settings in config.json.
FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


class SharedGate:
    """The gate of a shared expert: a matrix of one row, which llama.cpp stores as a vector when it quantises."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0].reshape(1, -1)]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor]


class OffsetNorm:
    """The scale of a norm, stored with the 1 that is added to it (Gemma)."""

    def slices(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [parts[0] - 1]

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        return [tensor + 1]


@dataclass(frozen=True)
class Dialect:
    """One architecture: the `family` it is read as, or one of `variants` if the file has a value for its key.

    `interleaved`: rotary pairs of queries and keys are adjacent. `offset`: norms include the 1 that is added to them.
    `fused`: stored names of layers that are one tensor. `fixed`: settings without a key, which llama.cpp never varies.
    `flags`: settings that are true if the first layer has a tensor, or lacks one with a leading "-". `constants`:
    values of keys whose setting is null. `windowed`: the window of attention is stored. `grouped`: there may be fewer
    key heads than query heads.
    """

    family: str
    variants: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    rotary: bool = True
    interleaved: bool = False
    offset: bool = False
    fused: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    windowed: bool = False
    grouped: bool = True

    def tensor_rules(
        self, family: Family, config: TransformerConfig, names: Collection[str] | None = None
    ) -> list[TensorRule]:
        """Return the rules of a file with tensors `names`, or of one to be written (None)."""
        mixer = llama.attention(config.stack.blocks[0])
        layer = {**LAYER, **self.fused}
        if names is not None and not self.interleaved:  # converters differ in whether they fuse these
            layer |= FUSED_QKV if "blk.0.attn_qkv.weight" in names else {"mixer.qkv": LAYER["mixer.qkv"]}
        interleaved = Interleaved((mixer.heads, mixer.kv_heads or mixer.heads, 0))
        transform: TensorTransform
        stored_rules = []
        for part in family.rules(config):
            match = None if part.is_copy else _TARGET.fullmatch(part.target)
            if match is None:
                continue
            number, stem, suffix = match.groups()
            expert = _EXPERT.search(f".{stem}")
            stem = stem if expert is None else stem.replace(f"experts.{expert[1]}.", "experts.{}.")
            stored = (OUTER if number is None else layer).get(stem)
            if stored is None:
                raise UserError(f"GGUF has no name for tensor {part.target!r}; save the model as a folder instead")
            stored = stored if expert is None else stored.replace("{}", expert[1])
            name = f"{'' if number is None else f'blk.{number}.'}{stored}.{suffix.replace('table', 'weight')}"
            if self.interleaved and stem == "mixer.qkv":
                transform = interleaved
            elif self.offset and stored.endswith("norm"):
                transform = OffsetNorm()
            elif stem == "feed_forward.shared_gate":
                transform = SharedGate()
            else:
                transform = StackedRows() if "{" in stored else Unsplit()
            stored_rules.append(rule(part.target, name, transform=transform))
        return stored_rules


_BIASES = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_gate.bias"}
_EPSILON = "attention.layer_norm_epsilon"
_NUM_EXPERTS = {**SIZES, "expert_count": "num_experts"}
_WINDOW = "attention.sliding_window"

DIALECTS = {
    "llama": Dialect(
        "llama", {"expert_count": "mixtral", _WINDOW: "mistral"}, interleaved=True, flags=_BIASES, windowed=True
    ),
    "qwen2": Dialect("qwen2"),
    "qwen3": Dialect("qwen3"),
    "qwen2moe": Dialect("qwen2_moe", sizes=_NUM_EXPERTS, fixed={"norm_topk_prob": False}),
    "qwen3moe": Dialect("qwen3_moe", fixed={"norm_topk_prob": True}),
    "olmo2": Dialect("olmo2", {_WINDOW: "olmo3"}, windowed=True),
    "olmoe": Dialect("olmoe", sizes=_NUM_EXPERTS, fixed={"norm_topk_prob": False}, grouped=False),
    "phi3": Dialect("phi3", fused=FUSED, constants={_WINDOW: 0}, windowed=True),
    "gemma": Dialect("gemma", offset=True),
    "gemma2": Dialect("gemma2", offset=True, windowed=True),
    "gemma3": Dialect("gemma3_text", offset=True, windowed=True),
    "smollm3": Dialect("smollm3", interleaved=True, flags=_BIASES),
    "stablelm": Dialect("stablelm", flags={"use_qkv_bias": "attn_q.bias", "use_parallel_residual": "-ffn_norm.weight"}),
    "starcoder2": Dialect("starcoder2", sizes={**SIZES, _EPSILON: "norm_epsilon"}),
    "gptneox": Dialect("gpt_neox", fused=FUSED_QKV),
    "bert": Dialect("bert", rotary=False, constants={"attention.causal": False}, windowed=True),
    "gpt2": Dialect("gpt2", rotary=False, sizes=GPT2_SIZES, fused=FUSED_QKV),
}
# Families that can be written, with their architecture.
WRITABLE_FAMILIES = {
    family: name for name, dialect in DIALECTS.items() for family in (dialect.family, *dialect.variants.values())
}


def find_dialect(values: Mapping[str, Any], source: str) -> tuple[str, Dialect]:
    """Return the architecture that a file names, and its dialect."""
    name = values.get("general.architecture")
    if not isinstance(name, str) or name not in DIALECTS:
        known = ", ".join(sorted(DIALECTS))
        hint = nearest(str(name), DIALECTS)
        raise UserError(f"{source}: unknown architecture {str(name)[:80]!r}; {hint} (known: {known})")
    return name, DIALECTS[name]


_EXPERTS = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.weight")
_OLDER_EXPERT = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight")
_MAX_EXPERTS = 1024  # per layer; the largest models have a few hundred


class ExpertWeights:
    """The tensors of a file, each expert of a layer as one (Weights); older files store them so."""

    def __init__(self, file: GgufFile) -> None:
        self.source = file.source
        self._file = file
        self._stored: dict[str, tuple[str, int | None]] = {}
        for name in file.names():
            shape, stack, older = file.shape(name), _EXPERTS.fullmatch(name), _OLDER_EXPERT.fullmatch(name)
            if stack is not None and len(shape) == 3:
                if shape[0] > _MAX_EXPERTS:
                    raise UserError(f"{self.source}: {name} has {shape[0]} experts, more than {_MAX_EXPERTS}")
                self._stored |= {f"{stack[1]}.{i}.weight": (name, i) for i in range(shape[0])}
            elif name not in (FACTORS, LONG_FACTORS, SHORT_FACTORS):  # read as settings
                self._stored[name if older is None else f"{older[1]}_exps.{older[2]}.weight"] = name, None

    def names(self) -> Collection[str]:
        return self._stored.keys()

    def get(self, name: str) -> Tensor:
        return self._file.get(*self._stored[name])

    def done(self, name: str) -> None:
        self._file.done(*self._stored[name])
