"""Marian (Junczys-Dowmunt et al. 2018), as in the OPUS-MT models: the transformer of 2017, with a bias on the logits,
and positions with sines before cosines. Decoding starts with the padding token.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from headway.formats.families.bart import (
    ALIASES,
    DEFAULTS,
    LOGITS_BIAS,
    OLDER,
    head_rules,
    read_encoder_decoder,
    shared_settings,
    shared_table,
    stack_rules,
)
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, rule, tied_copy
from headway.nn.models import EncoderDecoderConfig, TokenEmbedConfig
from headway.nn.parts.positions import SinusoidalConfig


def read(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
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


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        **shared_settings(config),
        "pad_token_id": config.vocab_size - 1,
        "decoder_start_token_id": config.vocab_size - 1,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.tie == "all",
    }


def rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    return [
        *(shared_table() if config.tie == "all" else two_tables()),
        *stack_rules(config.encoder.stack, "encoder"),
        *stack_rules(config.decoder.stack, "decoder"),
        *head_rules(config),
    ]


def two_tables() -> list[TensorRule]:
    return [
        rule("decoder.embed.table", "model.decoder.embed_tokens.weight"),
        rule("encoder.embed.table", "model.encoder.embed_tokens.weight"),
        tied_copy("decoder.embed.table", "lm_head.weight"),
    ]


FAMILY = Family(
    "marian",
    read,
    write,
    rules,
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
