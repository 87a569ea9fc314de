"""Whisper (Radford et al. 2022): log-mel frames to text. Keys have no bias, and the encoder's positions are a table of
sinusoids stored with the weights.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families.bart import ALIASES, stack_settings
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, FlattenedRows, TensorRule, expect, layers, linear, rule, tied_copy
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    BlockConfig,
    EncoderDecoderConfig,
    FramesEmbedConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    cycle,
)
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Causal, Full, Pattern

AUGMENTATION = ("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks")
AUGMENTATION += ("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks", "median_filter_width")
TAPS = 3  # of both convolutions
DEFAULTS: dict[str, Any] = {
    "vocab_size": 51865,
    "num_mel_bins": 80,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "d_model": 384,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "scale_embedding": False,
    "tie_word_embeddings": True,
    "decoder_start_token_id": 50257,
    "pad_token_id": 50256,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}


def read(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", ["WhisperForConditionalGeneration"], ["WhisperModel"])
    settings.require("scale_embedding", False)
    settings.require("tie_word_embeddings", True)
    rate, width = settings.get("dropout", float), settings.get("d_model", int)
    encoder = TransformerConfig(
        width,
        0,
        settings.get("max_source_positions", int),
        read_stack(settings, "encoder", Full()),
        FramesEmbedConfig(settings.get("num_mel_bins", int), dropout=rate),  # GELU, independent of the layers
        {},
    )
    decoder = TransformerConfig(
        width,
        settings.get("vocab_size", int),
        settings.max_positions("max_target_positions"),
        read_stack(settings, "decoder", Causal()),
        TokenEmbedConfig(LearnedConfig(), dropout=rate),
    )
    return EncoderDecoderConfig(encoder, decoder, "head")


def read_stack(settings: Settings, component: str, pattern: Pattern) -> StackConfig:
    heads, rate = settings.get(f"{component}_attention_heads", int), settings.get("attention_dropout", float)
    feed = MLPConfig(
        hidden=settings.get(f"{component}_ffn_dim", int),
        activation=settings.activation("activation_function"),
        dropout=settings.get("activation_dropout", float),
    )
    mixer = AttentionConfig(heads, pattern=pattern, qkv_bias=(True, False, True), dropout=rate)
    cross = CrossAttentionConfig(heads, kv_bias=(False, True), dropout=rate) if pattern.causal else None
    block = BlockConfig(mixer, cross, feed, dropout=settings.get("dropout", float))
    return StackConfig(cycle((block,), settings.get(f"{component}_layers", int)))


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    frames = expect(config.encoder.embed, FramesEmbedConfig)
    block = config.encoder.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    settings: dict[str, Any] = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "num_mel_bins": frames.bands,
        "d_model": config.width,
        "max_source_positions": config.encoder.context,
        "max_target_positions": config.context,
        "activation_function": published_activation(feed.activation),
        "dropout": frames.dropout,
        "attention_dropout": attention.dropout,
        "activation_dropout": feed.dropout,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "pad_token_id": min(DEFAULTS["pad_token_id"], config.vocab_size - 1),  # transformers requires a valid id
    }
    return settings | stack_settings(config)


def rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    table = "decoder.embed.table"
    return [
        *convolution("encoder.embed.first", "model.encoder.conv1"),
        *convolution("encoder.embed.second", "model.encoder.conv2"),
        rule("encoder.embed.positions.table", "model.encoder.embed_positions.weight"),
        *stack_rules(config.encoder.stack, "encoder"),
        rule(table, "model.decoder.embed_tokens.weight"),
        tied_copy(table, "proj_out.weight"),
        rule("decoder.embed.positions.table", "model.decoder.embed_positions.weight"),
        *stack_rules(config.decoder.stack, "decoder"),
    ]


def convolution(target: str, source: str) -> list[TensorRule]:
    return [
        rule(f"{target}.product.weight", f"{source}.weight", transform=FlattenedRows((-1, TAPS))),
        rule(f"{target}.product.bias", f"{source}.bias"),
    ]


def stack_rules(stack: StackConfig, component: str) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"{component}.stack.blocks.{i}", f"model.{component}.layers.{i}"
        self_attention = f"{source}.self_attn"
        return [
            rule(f"{target}.mixer.qkv.weight", *(f"{self_attention}.{name}_proj.weight" for name in "qkv")),
            rule(f"{target}.mixer.qkv.bias", f"{self_attention}.q_proj.bias", f"{self_attention}.v_proj.bias"),
            *linear(f"{target}.mixer.out", f"{self_attention}.out_proj"),
            *linear(f"{target}.mix.before", f"{source}.self_attn_layer_norm"),
            *(cross_rules(target, source) if stack.blocks[i].cross is not None else []),
            *linear(f"{target}.feed_forward.up", f"{source}.fc1"),
            *linear(f"{target}.feed_forward.down", f"{source}.fc2"),
            *linear(f"{target}.feed.before", f"{source}.final_layer_norm"),
        ]

    return [*layers(len(stack.blocks), layer), *linear(f"{component}.stack.norm", f"model.{component}.layer_norm")]


def cross_rules(target: str, source: str) -> list[TensorRule]:
    read = f"{source}.encoder_attn"
    return [
        *linear(f"{target}.cross.q", f"{read}.q_proj"),
        rule(f"{target}.cross.kv.weight", f"{read}.k_proj.weight", f"{read}.v_proj.weight"),
        rule(f"{target}.cross.kv.bias", f"{read}.v_proj.bias"),
        *linear(f"{target}.cross.out", f"{read}.out_proj"),
        *linear(f"{target}.read.before", f"{read}_layer_norm"),
    ]


FAMILY = Family(
    "whisper",
    read,
    write,
    rules,
    renames=((r"^(?=(encoder|decoder)\.)", "model."),),
    defaults=DEFAULTS,
    aliases={**ALIASES, "num_key_value_heads": "encoder_attention_heads"},
    ignored=AUGMENTATION,
)
