"""NomicBERT (Nussbaum et al. 2024) and GTE (Zhang et al. 2024, mGTE): BERT with rotary positions, gated feed-forward
layers and token types. NomicBERT has no biases; GTE has all but those of gate and up.

Both were published with code of their own, with other settings in config.json, and model_type "new" for GTE. That form
is read as well.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from headway.formats.families.bert import IS_CAUSAL, encoder_rows, masked_rules, read_classifier
from headway.formats.families.llama import TABLE as LLAMA
from headway.formats.families.llama import first_rotary
from headway.formats.heads import POOLER, architecture, classifier, label_settings, pooler
from headway.formats.setting_table import POSITIONS, SettingTable
from headway.formats.settings import Settings, published_context, rope_parameters
from headway.formats.tensor_rules import (
    Family,
    SwappedHalves,
    TensorRule,
    Unsplit,
    block_rules,
    linear,
    linears,
    rule,
    tied_copy,
)
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    HeadConfig,
    PooledHeadConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformConfig,
    TransformerConfig,
    VocabularyHeadConfig,
)
from headway.nn.parts.feedforward import GatedConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.nn.parts.scaling import LinearScaling
from headway.visibility import Full

_BLOCK = BlockConfig(AttentionConfig(pattern=Full()), feed_forward=GatedConfig(), placement="post")
TABLE = SettingTable(
    TransformerConfig(stack=StackConfig((_BLOCK,), norm=None), embed=TokenEmbedConfig(norm=LayerNormConfig())),
    {
        "vocab_size": ("vocab_size", 30528),
        **encoder_rows(0.0, "block.norm.eps embed.norm.eps"),
        "head_dim": LLAMA.rows["head_dim"],
        "max_position_embeddings": ("context", 2048, POSITIONS),
        "type_vocab_size": ("embed.types", 2),
        "classifier_dropout": ("", float),
        "tie_word_embeddings": ("", True),
    },
)
# NomicBERT's own settings by those of transformers, and what its others have to be.
_OWN = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
    "rope_theta": "rotary_emb_base",
}
_NOMIC_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("swiglu",),
    "rotary_emb_fraction": (1.0,),
    "scale_attn_weights": (True,),
    **dict.fromkeys(("rotary_scaling_factor", "rotary_emb_scale_base"), ()),
    **dict.fromkeys(("causal", "prenorm", "parallel_block", "use_rms_norm", "rotary_emb_interleaved"), (False,)),
    **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), (False,)),
    "scale_attn_by_inverse_layer_idx": (False,),
    "num_experts": (0,),
}
_GTE_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "layer_norm_type": ("layer_norm",),
    "pack_qkv": (True,),
    **dict.fromkeys(("logn_attention_scale", "logn_attention_clip1"), (False,)),
}


def read(name: str, theta: float, settings: Settings, names: Collection[str]) -> TransformerConfig:
    """`name` is the family's, and `theta` that of its rotary positions unless the file has another."""
    own = {new: settings.values[old] for new, old in _OWN.items() if settings.values.get(old) is not None}
    settings = replace(settings, values={**settings.values, **own})
    settings.require("tie_word_embeddings", True)
    rotary = read_rotary(settings, theta)
    biases = ("block.mixer.qkv_bias", "block.mixer.out_bias", "block.feed_forward.down_bias")
    fields = {
        "block.mixer.rotary": rotary,
        **dict.fromkeys(biases, name == "gte"),
        "context": settings.served_positions(rotary),
        "heads": read_heads(name, settings, names),
    }
    return TABLE.read(settings, fields)


def read_rotary(settings: Settings, theta: float) -> RotaryConfig:
    """GTE's own code scales by fixed NTK (Su 2023): theta times s, and frequencies divided by s^(2 / R)."""
    scaling = settings.part("rope_scaling")
    if scaling.values.get("type") != "ntk":
        return settings.rotary(theta)
    scaling.require("mixed_b")
    size = settings.get("hidden_size", int) // settings.get("num_attention_heads", int)
    factor, theta = scaling.positive("factor"), settings.get("rope_theta", float, theta)
    return RotaryConfig(theta * factor, scaling=LinearScaling(factor ** (2 / size)))


def read_heads(name: str, settings: Settings, names: Collection[str]) -> dict[str, HeadConfig]:
    heads = read_classifier(settings, classifier(settings, names, "classifier.weight"))
    if {"cls.predictions.bias", "lm_head.decoder.bias"} & {*names}:
        norm = LayerNormConfig(settings.get("layer_norm_eps", float))
        activation = "gelu" if name == "gte" else settings.activation("hidden_act")
        heads["vocabulary"] = VocabularyHeadConfig(bias=True, transform=TransformConfig(activation, norm))
    if f"{name}.pooler.dense.weight" in names and "classes" not in heads:
        heads["pooled"] = POOLER
    return heads


def write(name: str, stem: str, config: TransformerConfig) -> dict[str, Any]:
    head, rotary = config.heads.get("classes") or config.heads.get("tags"), first_rotary(config)
    others = {
        "max_position_embeddings": published_context(config.context, rotary),
        "classifier_dropout": head.dropout if isinstance(head, PooledHeadConfig) else None,
        "tie_word_embeddings": True,
        "rope_parameters": rope_parameters(rotary),
    }
    settings = {**TABLE.write(config, others), **label_settings(config.heads)}
    return {"model_type": name, "architectures": architecture(stem, config.heads), **settings}


def nomic_rules(config: TransformerConfig) -> list[TensorRule]:
    names = {"mixer.out": "attn.out_proj", "feed_forward.down": "mlp.fc2"}
    layer = [
        *linear("mixer.qkv", "attn.Wqkv", bias=False, transform=Unsplit()),
        *linear("feed_forward.gate_up", "mlp.fc12", "mlp.fc11", bias=False),
        *linears(names, bias=False),
        *linears({"mix.last": "norm1", "feed.last": "norm2"}),
    ]
    return [
        *linear("embed.norm", "nomic_bert.emb_ln"),
        *block_rules(config.stack, "nomic_bert.encoder.layers.{}.", lambda block: layer),
        *masked_rules(config, "cls.predictions", "transform.dense", "transform.layer_norm"),
        *shared_rules(config, "nomic_bert"),
    ]


def gte_rules(config: TransformerConfig) -> list[TensorRule]:
    names = {"mixer.out": "attention.o_proj", "feed_forward.down": "mlp.down_proj"}
    layer = [
        *linear("mixer.qkv", "attention.qkv_proj", transform=Unsplit()),
        *linear("feed_forward.gate_up", "mlp.up_gate_proj", bias=False, transform=SwappedHalves()),
        *linears(names | {"mix.last": "attn_ln", "feed.last": "mlp_ln"}),
    ]
    tensor_rules = [
        *linear("embed.norm", "gte.embeddings.LayerNorm"),
        *block_rules(config.stack, "gte.encoder.layer.{}.", lambda block: layer),
        *shared_rules(config, "gte"),
    ]
    if "vocabulary" in config.heads:
        target = "heads.vocabulary"
        tensor_rules += linears(
            {f"{target}.transform.dense": "lm_head.dense", f"{target}.transform.norm": "lm_head.norm"}
        )
        tensor_rules.append(rule(f"{target}.bias", "lm_head.decoder.bias"))
        tensor_rules.append(tied_copy("embed.table", "lm_head.decoder.weight"))
    return tensor_rules


def shared_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    tables = {"table": "word", "types.table": "token_type"} if config.embed.types else {"table": "word"}
    return [
        *(rule(f"embed.{table}", f"{prefix}.embeddings.{name}_embeddings.weight") for table, name in tables.items()),
        *pooler(config.heads, f"{prefix}.pooler.dense", {"classes": "classifier", "tags": "classifier"}),
    ]


_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
_SKIPPED = (r"\.rotary_emb\.inv_freq$", r"\.embeddings\.position_ids$")
_UNUSED = (
    "dense_seq_output embd_pdrop fused_bias_fc fused_dropout_add_ln max_trained_positions pad_vocab_size_multiple "
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj use_flash_attn "
    "use_xentropy"
)
_NOMIC = Family(
    "nomic_bert",
    partial(read, "nomic_bert", 1e3),
    partial(write, "nomic_bert", "NomicBert"),
    nomic_rules,
    renames=((r"^bert\.", "nomic_bert."), (r"^(?=(embeddings|emb_ln|encoder|pooler)\.)", "nomic_bert.")),
    skipped=_SKIPPED,
    older=("auto_map", *_ROTARY, *_OWN.values(), *_NOMIC_FIXED),
    fixed=_NOMIC_FIXED,
    ignored=(IS_CAUSAL, *_UNUSED.split()),
    defaults={**TABLE.defaults, "hidden_act": "silu"},
)
_GTE = Family(
    "gte",
    partial(read, "gte", 1.6e5),
    partial(write, "gte", "Gte"),
    gte_rules,
    renames=((r"^new\.", "gte."), (r"^(?=(embeddings|encoder|pooler)\.)", "gte.")),
    skipped=_SKIPPED,
    older=_ROTARY,
    ignored=(IS_CAUSAL,),
    defaults={
        **TABLE.defaults,
        "vocab_size": 250048,
        "max_position_embeddings": 8192,
        "type_vocab_size": 1,
        "hidden_dropout_prob": 0.1,
    },
)
_NEW = replace(
    _GTE,
    name="new",
    read=partial(read, "gte", 1e4),
    older=("auto_map", *_ROTARY, *_GTE_FIXED),
    fixed=_GTE_FIXED,
    ignored=(IS_CAUSAL, "unpad_inputs", "use_memory_efficient_attention"),
    defaults={**_GTE.defaults, "vocab_size": 30528, "max_position_embeddings": 2048},
)
FAMILIES = (_NOMIC, _GTE, _NEW)
