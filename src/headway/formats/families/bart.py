"""BART (Lewis et al. 2019): the transformer of 2017 with learned positions from 2 on and normalised embeddings."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.rules import Family, OneRow, TensorRule, copy, expect, layers, linear, rule
from headway.formats.settings import Settings, published_activation
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    BlockConfig,
    EmbedConfig,
    EncoderDecoderConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    VocabularyHeadConfig,
    cycle,
)
from headway.nn.parts.feedforward import MLPConfig, hidden_width
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Causal, Full, Pattern

DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "scale_embedding": False,
    "tie_word_embeddings": True,
}
ALIASES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
OLDER = ("add_bias_logits", "extra_pos_embeddings", "static_position_embeddings", "do_blenderbot_90_layernorm")
OLDER += ("student_encoder_layers", "student_decoder_layers", "replacing_rate")  # no longer used by any class
LOGITS_BIAS = "final_logits_bias"


def read(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.refuse("architectures", ["BartForConditionalGeneration"], ["BartModel"])
    settings.refuse("tie_word_embeddings", True)
    settings.refuse("normalize_before", False)
    settings.refuse("add_final_layer_norm", False)
    embed = TokenEmbedConfig(
        LearnedConfig(offset=2),
        LayerNormConfig(),
        scaled=settings.get("scale_embedding", bool),
        dropout=settings.get("dropout", float),
    )
    encoder, decoder = read_sides(settings, embed, LOGITS_BIAS in names)
    return EncoderDecoderConfig(encoder, decoder, "all")


def read_sides(
    settings: Settings, embed: EmbedConfig, logits_bias: bool
) -> tuple[TransformerConfig, TransformerConfig]:
    """Return encoder and decoder, of the same width and vocabulary."""

    def side(name: str, pattern: Pattern) -> TransformerConfig:
        heads = {"vocabulary": VocabularyHeadConfig(bias=logits_bias)} if pattern.causal else {}
        return TransformerConfig(
            settings.get("d_model", int),
            settings.get("vocab_size", int),
            settings.longest("max_position_embeddings"),
            StackConfig(cycle((read_block(settings, name, pattern),), settings.get(f"{name}_layers", int)), norm=None),
            embed,
            dict(heads),
        )

    return side("encoder", Full()), side("decoder", Causal())


def read_block(settings: Settings, name: str, pattern: Pattern) -> BlockConfig:
    heads, rate = settings.get(f"{name}_attention_heads", int), settings.get("attention_dropout", float)
    feed = MLPConfig(
        hidden=settings.get(f"{name}_ffn_dim", int),
        activation=settings.activation("activation_function"),
        dropout=settings.get("activation_dropout", float),
    )
    cross = CrossAttentionConfig(heads, dropout=rate) if pattern.causal else None
    mixer = AttentionConfig(heads, pattern=pattern, dropout=rate)
    return BlockConfig(mixer, cross, feed, LayerNormConfig(), placement="post", dropout=settings.get("dropout", float))


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        **written(config),
    }


def written(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The settings that BART shares with Marian."""
    embed = expect(config.encoder.embed, TokenEmbedConfig)
    block = config.encoder.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    found: dict[str, Any] = {
        "is_encoder_decoder": True,
        "vocab_size": config.encoder.symbols,
        "d_model": config.width,
        "max_position_embeddings": config.context,
        "activation_function": published_activation(feed.activation),
        "dropout": embed.dropout,
        "attention_dropout": attention.dropout,
        "activation_dropout": feed.dropout,
        "scale_embedding": embed.scaled,
        "tie_word_embeddings": True,
    }
    return found | sizes(config)


def sizes(config: EncoderDecoderConfig) -> dict[str, int]:
    """The settings of the encoder and the decoder, which have separate names."""
    found: dict[str, int] = {}
    for name, side in (("encoder", config.encoder), ("decoder", config.decoder)):
        first = side.stack.blocks[0]
        inner = expect(first.feed_forward, MLPConfig)
        found |= {
            f"{name}_layers": len(side.stack.blocks),
            f"{name}_attention_heads": expect(first.mixer, AttentionConfig).heads,
            f"{name}_ffn_dim": hidden_width(inner.hidden, inner.ratio, config.width),
        }
    return found


def rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    found = shared_table()
    for side, part in (("encoder", config.encoder), ("decoder", config.decoder)):
        found.append(rule(f"{side}.embed.positions.table", f"model.{side}.embed_positions.weight"))
        found += linear(f"{side}.embed.norm", f"model.{side}.layernorm_embedding")
        found += stack_rules(part.stack, side)
    return [*found, *head_rules(config)]


def shared_table() -> list[TensorRule]:
    """One table for source, target and head, of which some files store copies."""
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    table = "decoder.embed.table"
    return [rule(table, "model.shared.weight"), *(copy(table, each) for each in copies)]


def head_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    biased = expect(config.decoder.heads["vocabulary"], VocabularyHeadConfig).bias
    return [rule("decoder.heads.vocabulary.bias", LOGITS_BIAS, form=OneRow())] if biased else []


def stack_rules(stack: StackConfig, side: str) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        ours, theirs = f"{side}.stack.blocks.{i}", f"model.{side}.layers.{i}"
        return [
            *linear(f"{ours}.mixer.qkv", *(f"{theirs}.self_attn.{name}_proj" for name in "qkv")),
            *linear(f"{ours}.mixer.out", f"{theirs}.self_attn.out_proj"),
            *linear(f"{ours}.mix.last", f"{theirs}.self_attn_layer_norm"),
            *(cross_rules(ours, theirs) if stack.blocks[i].cross is not None else []),
            *linear(f"{ours}.feed_forward.up", f"{theirs}.fc1"),
            *linear(f"{ours}.feed_forward.down", f"{theirs}.fc2"),
            *linear(f"{ours}.feed.last", f"{theirs}.final_layer_norm"),
        ]

    return layers(len(stack.blocks), layer)


def cross_rules(ours: str, theirs: str) -> list[TensorRule]:
    return [
        *linear(f"{ours}.cross.q", f"{theirs}.encoder_attn.q_proj"),
        *linear(f"{ours}.cross.kv", f"{theirs}.encoder_attn.k_proj", f"{theirs}.encoder_attn.v_proj"),
        *linear(f"{ours}.cross.out", f"{theirs}.encoder_attn.out_proj"),
        *linear(f"{ours}.read.last", f"{theirs}.encoder_attn_layer_norm"),
    ]


FAMILY = Family(
    "bart",
    read,
    write,
    rules,
    renames=((r"^(?=(shared|encoder|decoder)\.)", "model."),),
    aliases=ALIASES,
    ignored=OLDER,
    defaults={
        **DEFAULTS,
        "vocab_size": 50265,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
)
