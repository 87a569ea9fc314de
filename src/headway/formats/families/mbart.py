"""Relatives of BART with norms before each layer and after the last: mBART (Liu et al. 2020), with learned positions;
M2M-100 (Fan et al. 2020) and NLLB (2022), with sinusoidal positions from 2 on; Pegasus (Zhang et al. 2019), with
sinusoidal positions. All share one table, and decoding starts with a token that the file names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from headway.formats.families.bart import (
    ALIASES,
    OLDER,
    PARTS,
    bart_rules,
    head_rules,
    read_plain,
    setting_table,
    shared_table,
    stack_rules,
    write_plain,
)
from headway.formats.setting_table import SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect
from headway.nn.models import EmbedConfig, EncoderDecoderConfig, TokenEmbedConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig, SinusoidalConfig

_STEMS = {"mbart": "MBart", "m2m_100": "M2M100", "pegasus": "Pegasus"}  # beginnings of transformers' classes
_FIRST = 2  # number of the first position of M2M-100 and mBART: after that of the padding token


def read(name: str, table: SettingTable, settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", *([f"{_STEMS[name]}{end}"] for end in ("ForConditionalGeneration", "Model")))
    if name != "m2m_100":
        return read_plain(table, settings, names)
    half = settings.get("d_model", int) // 2
    # tensor2tensor's wavelengths end at 10,000; those of 2017 end one step before.
    inclusive = 10000.0 ** (half / max(1, half - 1))
    positions = SinusoidalConfig(inclusive, interleaved=False, offset=_FIRST)
    return read_plain(table, settings, names, {f"{part}.embed.positions": positions for part in PARTS})


def sinusoidal_rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    expect(expect(config.encoder.embed, TokenEmbedConfig).positions, SinusoidalConfig)
    return [
        *shared_table(),
        *stack_rules(config.encoder.stack, "encoder"),
        *stack_rules(config.decoder.stack, "decoder"),
        *head_rules(config),
    ]


def _family(name: str, embed: EmbedConfig, tokens: Mapping[str, int], **defaults: Any) -> Family:
    table, positions = setting_table(embed, "pre", **defaults), (r"\.embed_positions\.weights?$",)
    return Family(
        name,
        partial(read, name, table),
        partial(write_plain, table, name, f"{_STEMS[name]}ForConditionalGeneration"),
        bart_rules if name == "mbart" else sinusoidal_rules,
        renames=((r"^(?=(shared|encoder|decoder)\.)", "model."),),
        aliases=ALIASES,
        ignored=(*OLDER, "normalize_embedding"),
        skipped=() if name == "mbart" else positions,
        defaults={**table.defaults, "eos_token_id": 2, "pad_token_id": 1, **tokens},
    )


_SINES = TokenEmbedConfig(SinusoidalConfig(interleaved=False))
_M2M: dict[str, Any] = {"vocab_size": 128112, "activation_function": "relu", "scale_embedding": True}
FAMILIES = (
    _family("mbart", TokenEmbedConfig(LearnedConfig(_FIRST), LayerNormConfig()), {"bos_token_id": 0}),
    _family("m2m_100", _SINES, {"bos_token_id": 0, "decoder_start_token_id": 2}, **_M2M, attention_dropout=0.1),
    _family("pegasus", _SINES, {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}),
)
