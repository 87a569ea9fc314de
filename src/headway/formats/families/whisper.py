"""Whisper (Radford et al. 2022): log-mel frames to text. Keys have no bias, and the encoder's positions are a table of
sinusoids stored with the weights.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.families.bart import ALIASES, stack_rows
from headway.formats.setting_table import ACTIVATION, POSITIONS, SettingTable
from headway.formats.settings import Settings
from headway.formats.tensor_rules import (
    Family,
    FlattenedRows,
    TensorRule,
    block_rules,
    linear,
    linears,
    rule,
    tied_copy,
)
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    BlockConfig,
    EncoderDecoderConfig,
    FramesEmbedConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
)
from headway.nn.parts.positions import LearnedConfig
from headway.visibility import Full

AUGMENTATION = ("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks")
AUGMENTATION += ("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks", "median_filter_width")
TAPS = 3  # of both convolutions
_BIASES = (True, False, True)  # of query, key and value
_ENCODER = BlockConfig(AttentionConfig(pattern=Full(), qkv_bias=_BIASES))
_DECODER = BlockConfig(AttentionConfig(qkv_bias=_BIASES), CrossAttentionConfig(kv_bias=_BIASES[1:]))
TABLE = SettingTable(
    EncoderDecoderConfig(
        # The activation of the frames' embedding, GELU, does not depend on that of the layers.
        TransformerConfig(stack=StackConfig((_ENCODER,)), embed=FramesEmbedConfig(), heads={}),
        TransformerConfig(stack=StackConfig((_DECODER,)), embed=TokenEmbedConfig(LearnedConfig())),
        "head",
    ),
    {
        "vocab_size": ("decoder.vocab_size", 51865),
        "num_mel_bins": ("encoder.embed.bands", 80),
        "d_model": ("{encoder,decoder}.width", 384),
        "max_source_positions": ("encoder.context", 1500),
        "max_target_positions": ("decoder.context", 448, POSITIONS),
        "activation_function": ("{encoder,decoder}.block.feed_forward.activation", "gelu", ACTIVATION),
        "dropout": ("{encoder,decoder}.embed.dropout {encoder,decoder}.block.dropout", 0.0),
        "attention_dropout": ("{encoder,decoder}.block.mixer.dropout decoder.block.cross.dropout", 0.0),
        "activation_dropout": ("{encoder,decoder}.block.feed_forward.dropout", 0.0),
        "scale_embedding": ("", False),
        "tie_word_embeddings": ("", True),
        "pad_token_id": ("", 50256),
        **stack_rows(4, 6, 1536),
    },
)


def read(settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", ["WhisperForConditionalGeneration"], ["WhisperModel"])
    settings.require("scale_embedding", False)
    settings.require("tie_word_embeddings", True)
    return TABLE.read(settings)


def write(config: EncoderDecoderConfig) -> dict[str, Any]:
    pad = min(TABLE.defaults["pad_token_id"], config.vocab_size - 1)  # transformers requires a valid id
    others = {"scale_embedding": False, "tie_word_embeddings": True, "pad_token_id": pad}
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        **TABLE.write(config, others),
    }


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
    def layer(block: BlockConfig) -> list[TensorRule]:
        cross = [
            *linear("cross.q", "encoder_attn.q_proj"),
            rule("cross.kv.weight", "encoder_attn.{k,v}_proj.weight"),
            rule("cross.kv.bias", "encoder_attn.v_proj.bias"),
            *linears({"cross.out": "encoder_attn.out_proj", "read.before": "encoder_attn_layer_norm"}),
        ]
        return [
            rule("mixer.qkv.weight", "self_attn.{q,k,v}_proj.weight"),
            rule("mixer.qkv.bias", "self_attn.{q,v}_proj.bias"),
            *linears({"mixer.out": "self_attn.out_proj", "mix.before": "self_attn_layer_norm"}),
            *(cross if block.cross is not None else []),
            *linears({"feed_forward.up": "fc1", "feed_forward.down": "fc2", "feed.before": "final_layer_norm"}),
        ]

    return [
        *block_rules(stack, f"model.{component}.layers.{{}}.", layer, f"{component}.stack"),
        *linear(f"{component}.stack.norm", f"model.{component}.layer_norm"),
    ]


FAMILY = Family(
    "whisper",
    read,
    write,
    rules,
    renames=((r"^(?=(encoder|decoder)\.)", "model."),),
    defaults={**TABLE.defaults, "decoder_start_token_id": 50257, "bos_token_id": 50256, "eos_token_id": 50256},
    aliases={**ALIASES, "num_key_value_heads": "encoder_attention_heads"},
    ignored=AUGMENTATION,
)
