"""Relatives of BART with norms before each layer and after the last: mBART (Liu et al. 2020), with learned positions;
M2M-100 (Fan et al. 2020) and NLLB (2022), with sinusoidal positions from 2 on; Pegasus (Zhang et al. 2019), with
sinusoidal positions. All share one table, and decoding starts with a token that the file names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from headway.formats.families.bart import (
    ALIASES,
    DEFAULTS,
    LOGITS_BIAS,
    OLDER,
    bart_rules,
    head_rules,
    read_encoder_decoder,
    shared_settings,
    shared_table,
    stack_rules,
)
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect
from headway.nn.models import EncoderDecoderConfig, TokenEmbedConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig, SinusoidalConfig

_STEMS = {"mbart": "MBart", "m2m_100": "M2M100", "pegasus": "Pegasus"}  # beginnings of transformers' classes
_FIRST = 2  # number of the first position of M2M-100 and mBART: after that of the padding token


def read(name: str, settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", *([f"{_STEMS[name]}{end}"] for end in ("ForConditionalGeneration", "Model")))
    settings.require("tie_word_embeddings", True)
    settings.require("normalize_before", True)
    settings.require("add_final_layer_norm", True)
    half = settings.get("d_model", int) // 2
    # tensor2tensor's wavelengths end at 10,000; those of 2017 end one step before.
    inclusive = 10000.0 ** (half / max(1, half - 1))
    embed = {
        "mbart": TokenEmbedConfig(LearnedConfig(_FIRST), LayerNormConfig()),
        "m2m_100": TokenEmbedConfig(SinusoidalConfig(inclusive, interleaved=False, offset=_FIRST)),
        "pegasus": TokenEmbedConfig(SinusoidalConfig(interleaved=False)),
    }[name]
    embed = replace(embed, scaled=settings.get("scale_embedding", bool), dropout=settings.get("dropout", float))
    encoder, decoder = read_encoder_decoder(settings, embed, LOGITS_BIAS in names, "pre")
    return EncoderDecoderConfig(encoder, decoder, "all")


def write(name: str, config: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "model_type": name,
        "architectures": [f"{_STEMS[name]}ForConditionalGeneration"],
        **shared_settings(config),
    }


def sinusoidal_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    expect(expect(config.encoder.embed, TokenEmbedConfig).positions, SinusoidalConfig)
    stacks = (("encoder", config.encoder.stack), ("decoder", config.decoder.stack))
    return [
        *shared_table(),
        *(each for component, stack in stacks for each in stack_rules(stack, component)),
        *head_rules(config),
    ]


def _family(name: str, **defaults: Any) -> Family:
    positions = () if name == "mbart" else (r"\.embed_positions\.weights?$",)
    return Family(
        name,
        partial(read, name),
        partial(write, name),
        bart_rules if name == "mbart" else sinusoidal_rules,
        renames=((r"^(?=(shared|encoder|decoder)\.)", "model."),),
        aliases=ALIASES,
        ignored=(*OLDER, "normalize_embedding"),
        skipped=positions,
        defaults={**DEFAULTS, "eos_token_id": 2, "pad_token_id": 1, **defaults},
    )


FAMILIES = (
    _family("mbart", vocab_size=50265, bos_token_id=0),
    _family(
        "m2m_100", vocab_size=128112, bos_token_id=0, activation_function="relu", scale_embedding=True,
        attention_dropout=0.1, decoder_start_token_id=2,
    ),
    _family("pegasus", vocab_size=50265, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0),
)  # fmt: skip
