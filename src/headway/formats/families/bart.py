"""BART (Lewis et al. 2019): the transformer of 2017 with learned positions from 2 on and normalised embeddings.

Marian (Junczys-Dowmunt et al. 2018), as in the OPUS-MT models: the transformer of 2017, with a bias on the logits, and
positions with sines before cosines. Decoding starts with the padding token.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, SingleRow, TensorRule, expect, layers, linear, rule, tied_copy
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
from headway.nn.parts.positions import LearnedConfig, SinusoidalConfig
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


def read_bart(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", ["BartForConditionalGeneration"], ["BartModel"])
    settings.require("tie_word_embeddings", True)
    settings.require("normalize_before", False)
    settings.require("add_final_layer_norm", False)
    embed = TokenEmbedConfig(
        LearnedConfig(offset=2),
        LayerNormConfig(),
        scaled=settings.get("scale_embedding", bool),
        dropout=settings.get("dropout", float),
    )
    encoder, decoder = read_encoder_decoder(settings, embed, LOGITS_BIAS in names)
    return EncoderDecoderConfig(encoder, decoder, "all")


def read_encoder_decoder(
    settings: Settings, embed: EmbedConfig, logits_bias: bool, placement: Literal["pre", "post"] = "post"
) -> tuple[TransformerConfig, TransformerConfig]:
    """Return encoder and decoder, of the same width and vocabulary. Norms before each layer need one after the last."""
    norm = LayerNormConfig() if placement == "pre" else None

    def build_transformer(name: str, pattern: Pattern) -> TransformerConfig:
        heads = {"vocabulary": VocabularyHeadConfig(bias=logits_bias)} if pattern.causal else {}
        return TransformerConfig(
            settings.get("d_model", int),
            settings.get("vocab_size", int),
            settings.max_positions("max_position_embeddings"),
            StackConfig(cycle((block(name, pattern),), settings.get(f"{name}_layers", int)), norm=norm),
            embed,
            dict(heads),
        )

    def block(name: str, pattern: Pattern) -> BlockConfig:
        return replace(read_block(settings, name, pattern), placement=placement)

    return build_transformer("encoder", Full()), build_transformer("decoder", Causal())


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


def write_bart(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        **shared_settings(config),
    }


def shared_settings(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The settings that BART shares with Marian."""
    embed = expect(config.encoder.embed, TokenEmbedConfig)
    block = config.encoder.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    settings: dict[str, Any] = {
        "is_encoder_decoder": True,
        "vocab_size": config.encoder.vocab_size,
        "d_model": config.width,
        "max_position_embeddings": config.context,
        "activation_function": published_activation(feed.activation),
        "dropout": embed.dropout,
        "attention_dropout": attention.dropout,
        "activation_dropout": feed.dropout,
        "scale_embedding": embed.scaled,
        "tie_word_embeddings": True,
    }
    return settings | stack_settings(config)


def stack_settings(config: EncoderDecoderConfig) -> dict[str, int]:
    """The settings of the encoder and the decoder, which have separate names."""
    settings: dict[str, int] = {}
    for name, component in (("encoder", config.encoder), ("decoder", config.decoder)):
        first = component.stack.blocks[0]
        inner = expect(first.feed_forward, MLPConfig)
        settings |= {
            f"{name}_layers": len(component.stack.blocks),
            f"{name}_attention_heads": expect(first.mixer, AttentionConfig).heads,
            f"{name}_ffn_dim": hidden_width(inner.hidden, inner.ratio, config.width),
        }
    return settings


def bart_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    tensor_rules = shared_table()
    for component, part in (("encoder", config.encoder), ("decoder", config.decoder)):
        tensor_rules.append(rule(f"{component}.embed.positions.table", f"model.{component}.embed_positions.weight"))
        tensor_rules += linear(f"{component}.embed.norm", f"model.{component}.layernorm_embedding")
        tensor_rules += stack_rules(part.stack, component)
    return [*tensor_rules, *head_rules(config)]


def shared_table() -> list[TensorRule]:
    """One table for source, target and head; some files store copies of it."""
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    table = "decoder.embed.table"
    return [rule(table, "model.shared.weight"), *(tied_copy(table, name) for name in copies)]


def head_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    biased = expect(config.decoder.heads["vocabulary"], VocabularyHeadConfig).bias
    return [rule("decoder.heads.vocabulary.bias", LOGITS_BIAS, transform=SingleRow())] if biased else []


def stack_rules(stack: StackConfig, component: str) -> list[TensorRule]:
    side = "before" if stack.norm is not None else "last"  # where the norms of a layer are

    def layer(i: int) -> list[TensorRule]:
        target, source = f"{component}.stack.blocks.{i}", f"model.{component}.layers.{i}"
        return [
            *linear(f"{target}.mixer.qkv", *(f"{source}.self_attn.{name}_proj" for name in "qkv")),
            *linear(f"{target}.mixer.out", f"{source}.self_attn.out_proj"),
            *linear(f"{target}.mix.{side}", f"{source}.self_attn_layer_norm"),
            *(cross_rules(target, source, side) if stack.blocks[i].cross is not None else []),
            *linear(f"{target}.feed_forward.up", f"{source}.fc1"),
            *linear(f"{target}.feed_forward.down", f"{source}.fc2"),
            *linear(f"{target}.feed.{side}", f"{source}.final_layer_norm"),
        ]

    final = linear(f"{component}.stack.norm", f"model.{component}.layer_norm") if stack.norm is not None else []
    return [*layers(len(stack.blocks), layer), *final]


def cross_rules(target: str, source: str, side: str) -> list[TensorRule]:
    return [
        *linear(f"{target}.cross.q", f"{source}.encoder_attn.q_proj"),
        *linear(f"{target}.cross.kv", f"{source}.encoder_attn.k_proj", f"{source}.encoder_attn.v_proj"),
        *linear(f"{target}.cross.out", f"{source}.encoder_attn.out_proj"),
        *linear(f"{target}.read.{side}", f"{source}.encoder_attn_layer_norm"),
    ]


_BART = Family(
    "bart",
    read_bart,
    write_bart,
    bart_rules,
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


def read_marian(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", ["MarianMTModel"], ["MarianModel"])
    settings.require("tie_word_embeddings", True)
    settings.require("normalize_before", False)
    settings.require("normalize_embedding", False)
    settings.require("add_final_layer_norm", False)
    embed = TokenEmbedConfig(
        SinusoidalConfig(interleaved=False),
        scaled=settings.get("scale_embedding", bool),
        dropout=settings.get("dropout", float),
    )
    encoder, decoder = read_encoder_decoder(settings, embed, LOGITS_BIAS in names)
    if settings.get("share_encoder_decoder_embeddings", bool):
        return EncoderDecoderConfig(encoder, decoder, "all")
    decoder = replace(decoder, vocab_size=settings.get("decoder_vocab_size", int, decoder.vocab_size))
    return EncoderDecoderConfig(encoder, decoder, "head")


def write_marian(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        **shared_settings(config),
        "pad_token_id": config.vocab_size - 1,
        "decoder_start_token_id": config.vocab_size - 1,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.tie == "all",
    }


def marian_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    two_tables = [
        rule("decoder.embed.table", "model.decoder.embed_tokens.weight"),
        rule("encoder.embed.table", "model.encoder.embed_tokens.weight"),
        tied_copy("decoder.embed.table", "lm_head.weight"),
    ]
    return [
        *(shared_table() if config.tie == "all" else two_tables),
        *stack_rules(config.encoder.stack, "encoder"),
        *stack_rules(config.decoder.stack, "decoder"),
        *head_rules(config),
    ]


_MARIAN = Family(
    "marian",
    read_marian,
    write_marian,
    marian_rules,
    renames=((r"^(?=(shared|encoder|decoder)\.)", "model."),),
    aliases=ALIASES,
    ignored=(*OLDER, "decoder_vocab_size"),  # equals vocab_size unless there are two tables
    skipped=(r"\.embed_positions\.weight$",),
    defaults={
        **DEFAULTS,
        "vocab_size": 58101,
        "pad_token_id": 58100,
        "eos_token_id": 0,
        "decoder_start_token_id": 58100,
        "share_encoder_decoder_embeddings": True,
    },
)
FAMILIES = (_BART, _MARIAN)
