"""T5Gemma (Zhang et al. 2025): an encoder and a decoder of Gemma 2 layers, of equal or different sizes. Cross-attention
is a branch of its own, with norms before and after it, and the encoder attends in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from headway.formats.families import gemma, llama
from headway.formats.heads import PublishedClasses
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, block_rules, expect, linears, rule, vocabulary
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import BlockConfig, EncoderDecoderConfig, StackConfig, TokenEmbedConfig, TransformerConfig
from headway.visibility import Causal, Full, Local, Pattern

CLASS = "T5GemmaForConditionalGeneration"
DEFAULTS: dict[str, Any] = {
    **llama.TABLE.defaults,
    **gemma.GEMMA2_DEFAULTS,
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_NORMS = {
    "mix.before": "pre_self_attn_layernorm",
    "mix.after": "post_self_attn_layernorm",
    "feed.before": "pre_feedforward_layernorm",
    "feed.after": "post_feedforward_layernorm",
}
_CROSS_NORMS = {"read.before": "pre_cross_attn_layernorm", "read.after": "post_cross_attn_layernorm"}
_CROSS = {"cross.q": "cross_attn.q_proj", "cross.kv": "cross_attn.{k,v}_proj", "cross.out": "cross_attn.o_proj"}


def read(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", [CLASS])
    parts = []
    for name in ("encoder", "decoder"):
        part = settings.part(name)
        values = {**DEFAULTS, **part.values, "attention_dropout": settings.get("attention_dropout", float)}
        config = gemma.read_sandwich(replace(part, values=values), every=2)
        rate = settings.get("dropout_rate", float)
        config = llama.with_blocks(config, lambda i, block: replace(block, dropout=rate))  # noqa: B023
        parts.append(replace(config, embed=replace(expect(config.embed, TokenEmbedConfig), dropout=rate)))
    tied = settings.get("tie_word_embeddings", bool)
    encoder = _with_patterns(replace(parts[0], heads={}, tie="none"), _in_both_directions)
    decoder = llama.with_blocks(parts[1], lambda i, block: replace(block, cross=_cross(llama.attention(block))))
    return EncoderDecoderConfig(encoder, replace(decoder, tie="head"), "head" if tied else "none")


def _in_both_directions(pattern: Pattern) -> Pattern:
    window = expect(pattern, Causal).window
    return Full() if window is None else Local(window)


def _with_patterns(config: TransformerConfig, change: Callable[[Pattern], Pattern]) -> TransformerConfig:
    def layer(i: int, block: BlockConfig) -> BlockConfig:
        mixer = llama.attention(block)
        return replace(block, mixer=replace(mixer, pattern=change(mixer.pattern)))

    return llama.with_blocks(config, layer)


def _cross(mixer: AttentionConfig) -> CrossAttentionConfig:
    """Cross-attention has the sizes of the decoder's self-attention, and no positions."""
    bias = bool(mixer.qkv_bias)
    return CrossAttentionConfig(
        mixer.heads,
        mixer.kv_heads,
        mixer.head_size,
        q_bias=bias,
        kv_bias=bias,
        out_bias=bias,
        scale=mixer.scale,
        soft_cap=mixer.soft_cap,
        dropout=mixer.dropout,
    )


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    causal = lambda pattern: Causal(pattern.reach) if isinstance(pattern, Local) else Causal()  # noqa: E731
    encoder = replace(config.encoder, heads=config.decoder.heads)
    return {
        "model_type": "t5gemma",
        "architectures": [CLASS],
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tie == "head",
        "vocab_size": config.vocab_size,
        "encoder": _write_part(_with_patterns(encoder, causal)),
        "decoder": _write_part(config.decoder),
    }


def _write_part(config: TransformerConfig) -> dict[str, Any]:
    classes = PublishedClasses.of("T5Gemma")
    settings = llama.write("t5_gemma_module", classes, replace(config, tie="head"))
    del settings["architectures"]
    return {**settings, **llama.write_attention_bias(config), **gemma.write_scores(config)}


def rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    def layer(block: BlockConfig) -> list[TensorRule]:
        mixer = llama.attention(block)
        cross = [*linears(_CROSS_NORMS, bias=False), *linears(_CROSS, bias=bool(mixer.qkv_bias))]
        return [
            *linears(_NORMS, bias=False),
            *(cross if block.cross is not None else []),
            *llama.attention_rules(mixer),
            *llama.gated_rules(block),
        ]

    def part(name: str, stack: StackConfig) -> list[TensorRule]:
        return [
            rule(f"{name}.embed.table", f"model.{name}.embed_tokens.weight"),
            *block_rules(stack, f"model.{name}.layers.{{}}.", layer, f"{name}.stack"),
            rule(f"{name}.stack.norm.weight", f"model.{name}.norm.weight"),
        ]

    return [
        *part("encoder", config.encoder.stack),
        *part("decoder", config.decoder.stack),
        vocabulary(config, "decoder.embed.table", "lm_head.out_proj.weight", "decoder.heads.vocabulary"),
    ]


FAMILY = Family(
    "t5gemma",
    read,
    write,
    rules,
    defaults={"dropout_rate": 0.0, "attention_dropout": 0.0, "tie_word_embeddings": True},
    ignored=("vocab_size", "cross_attention_hidden_size", "classifier_dropout_rate", "initializer_range"),
    towers=("encoder", "decoder"),
)
