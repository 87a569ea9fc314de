"""Llama (Touvron et al. 2023): RMS norms, rotary positions in halves, gated SiLU, grouped heads.

What differs by settings only is here too: Mistral's window, Qwen2's biases, Qwen3's norms of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from headway.checkpoints.rules import Family, Rule, expect, layers, linear, rule, vocabulary
from headway.checkpoints.settings import Settings, published_activation, rope_parameters
from headway.mixers import AttentionConfig
from headway.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, VocabularyHeadConfig
from headway.parts.feedforward import GatedConfig
from headway.parts.norm import RMSNormConfig
from headway.parts.rotary import RotaryConfig
from headway.visibility import Causal

Attend = Callable[[Settings, AttentionConfig], AttentionConfig]
DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}


def read(attend: Attend, settings: Settings, names: Collection[str]) -> TransformerConfig:
    """`attend` adds to the plain attention what the family has of its own."""
    width, heads = settings.get("hidden_size", int), settings.get("num_attention_heads", int)
    norm = RMSNormConfig(settings.get("rms_norm_eps", float))
    plain = AttentionConfig(
        heads,
        kv_heads=settings.get("num_key_value_heads", int, heads),
        head_size=settings.get("head_dim", int, width // heads),
        rotary=settings.rotary(),
        qkv_bias=settings.get("attention_bias", bool, False),
        out_bias=settings.get("attention_bias", bool, False),
        dropout=settings.get("attention_dropout", float, 0.0),
    )
    mixer = attend(settings, plain)
    feed = GatedConfig(
        hidden=settings.get("intermediate_size", int),
        activation=settings.activation("hidden_act"),
        bias=settings.get("mlp_bias", bool, False),
    )
    windows = layer_windows(settings, settings.get("num_hidden_layers", int))
    blocks = tuple(BlockConfig(replace(mixer, pattern=Causal(window)), None, feed, norm) for window in windows)
    return TransformerConfig(
        width,
        settings.get("vocab_size", int),
        settings.get("max_position_embeddings", int),
        StackConfig(blocks, norm),
        TokenEmbedConfig(),
        {"vocabulary": VocabularyHeadConfig()},
        "head" if settings.get("tie_word_embeddings", bool) else "none",
    )


def layer_windows(settings: Settings, depth: int) -> list[int | None]:
    """The window of each layer, None where it sees everything before it.

    `layer_types` says which layers slide; without it all do where there is a window, unless `use_sliding_window` is
    false (Qwen), and with `max_window_layers` only those from there on.
    """
    window = settings.optional("sliding_window", int)
    if window is None or not settings.get("use_sliding_window", bool, True):
        return [None] * depth
    if "layer_types" in settings:
        kinds = settings.get("layer_types", list[str])
        return [window if kind == "sliding_attention" else None for kind in kinds[:depth]]
    first = settings.get("max_window_layers", int, 0) if "use_sliding_window" in settings else 0
    return [window if i >= first else None for i in range(depth)]


def write(name: str, architecture: str, config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, GatedConfig)
    norm, rotary = expect(block.norm, RMSNormConfig), expect(mixer.rotary, RotaryConfig)
    windows = windows_of(config)
    window = next((each for each in windows if each is not None), None)
    return {
        "model_type": name,
        "architectures": [architecture],
        "vocab_size": config.symbols,
        "hidden_size": config.width,
        "intermediate_size": feed.hidden if feed.hidden is not None else round(feed.ratio * config.width),
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads or mixer.heads,
        "head_dim": mixer.head_size or config.width // mixer.heads,
        "hidden_act": published_activation(feed.activation),
        "max_position_embeddings": config.context,
        "rms_norm_eps": norm.eps,
        "tie_word_embeddings": config.tie == "head",
        "attention_bias": mixer.qkv_bias,
        "mlp_bias": feed.bias,
        "attention_dropout": mixer.dropout,
        "rope_parameters": rope_parameters(rotary),
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "layer_types": ["full_attention" if each is None else "sliding_attention" for each in windows],
    }


def windows_of(config: TransformerConfig) -> list[int | None]:
    """`layer_windows` the other way."""
    mixers = [expect(block.mixer, AttentionConfig) for block in config.stack.blocks]
    return [expect(mixer.pattern, Causal).window for mixer in mixers]


def rules(config: TransformerConfig) -> list[Rule]:
    def layer(i: int) -> list[Rule]:
        ours, theirs = f"stack.blocks.{i}", f"model.layers.{i}"
        block = config.stack.blocks[i]
        mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, GatedConfig)
        qkv = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
        gate_up = [f"{theirs}.mlp.{name}_proj" for name in ("gate", "up")]
        return [
            rule(f"{ours}.mix.before.weight", f"{theirs}.input_layernorm.weight"),
            *linear(f"{ours}.mixer.qkv", *qkv, bias=bool(mixer.qkv_bias)),
            *linear(f"{ours}.mixer.out", f"{theirs}.self_attn.o_proj", bias=mixer.out_bias),
            *(query_key_norms(ours, theirs) if mixer.qk_norm else []),
            rule(f"{ours}.feed.before.weight", f"{theirs}.post_attention_layernorm.weight"),
            *linear(f"{ours}.feed_forward.gate_up", *gate_up, bias=feed.bias),
            *linear(f"{ours}.feed_forward.down", f"{theirs}.mlp.down_proj", bias=feed.bias),
        ]

    return [
        rule("embed.table", "model.embed_tokens.weight"),
        *layers(len(config.stack.blocks), layer),
        rule("stack.norm.weight", "model.norm.weight"),
        vocabulary(config, "embed.table", "lm_head.weight"),
    ]


def query_key_norms(ours: str, theirs: str) -> list[Rule]:
    return [rule(f"{ours}.mixer.qk_norm.{n}.weight", f"{theirs}.self_attn.{n}_norm.weight") for n in "qk"]


def _plain(settings: Settings, mixer: AttentionConfig) -> AttentionConfig:
    return mixer


def _qwen2(settings: Settings, mixer: AttentionConfig) -> AttentionConfig:
    return replace(mixer, qkv_bias=True, out_bias=False)


def _qwen3(settings: Settings, mixer: AttentionConfig) -> AttentionConfig:
    return replace(mixer, qk_norm=RMSNormConfig(settings.get("rms_norm_eps", float)))


def _family(name: str, architecture: str, attend: Attend, **defaults: Any) -> Family:
    return Family(
        name,
        partial(read, attend),
        partial(write, name, architecture),
        rules,
        renames=((r"^(?=(layers|embed_tokens|norm)\.)", "model."),),
        skipped=(r"\.rotary_emb\.inv_freq$",),
        defaults={**DEFAULTS, **defaults},
    )


FAMILIES = (
    _family("llama", "LlamaForCausalLM", _plain),
    _family("mistral", "MistralForCausalLM", _plain, max_position_embeddings=131072),
    _family("qwen2", "Qwen2ForCausalLM", _qwen2, max_position_embeddings=32768, use_sliding_window=False),
    _family("qwen3", "Qwen3ForCausalLM", _qwen3, max_position_embeddings=32768, use_sliding_window=False, head_dim=128),
)
