"""GPT (Radford et al. 2018): post-norm layers without a final norm; its "gelu" is the tanh approximation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.errors import UserError, nearest
from headway.formats.families.gpt2 import ALIASES, OLDER, SUMMARY, conv
from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, TensorRule, expect, layers, linear, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import ActivationName, MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig

ACTIVATIONS: dict[str, ActivationName] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
PUBLISHED_ACTIVATIONS: dict[ActivationName, str] = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
CLASSES = PublishedClasses("OpenAIGPTLMHeadModel", "OpenAIGPTForSequenceClassification", "OpenAIGPTModel")


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    activation = settings.get("afn", str)
    if activation not in ACTIVATIONS:
        raise UserError(f"{settings.source}: afn is {activation!r}; {nearest(activation, ACTIVATIONS)}")
    block = BlockConfig(
        AttentionConfig(settings.get("n_head", int), dropout=settings.get("attn_pdrop", float)),
        None,
        MLPConfig(activation=ACTIVATIONS[activation]),
        LayerNormConfig(settings.get("layer_norm_epsilon", float)),
        "post",
        dropout=settings.get("resid_pdrop", float),
    )
    return TransformerConfig(
        settings.get("n_embd", int),
        settings.get("vocab_size", int),
        settings.max_positions("n_positions"),
        StackConfig(cycle((block,), settings.get("n_layer", int)), None),
        TokenEmbedConfig(positions=LearnedConfig(), dropout=settings.get("embd_pdrop", float)),
        *read_heads(settings),
    )


def write(config: TransformerConfig) -> dict[str, Any]:
    block = config.stack.blocks[0]
    mixer, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    return {
        "model_type": "openai-gpt",
        **write_heads(config, CLASSES),
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_positions": config.context,
        "n_layer": len(config.stack.blocks),
        "n_head": mixer.heads,
        "afn": PUBLISHED_ACTIVATIONS[feed.activation],
        "layer_norm_epsilon": expect(block.norm, LayerNormConfig).eps,
        "attn_pdrop": mixer.dropout,
        "resid_pdrop": block.dropout,
        "embd_pdrop": expect(config.embed, TokenEmbedConfig).dropout,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"transformer.h.{i}"
        return [
            *conv(f"{target}.mixer.qkv", f"{source}.attn.c_attn"),
            *conv(f"{target}.mixer.out", f"{source}.attn.c_proj"),
            *linear(f"{target}.mix.last", f"{source}.ln_1"),
            *conv(f"{target}.feed_forward.up", f"{source}.mlp.c_fc"),
            *conv(f"{target}.feed_forward.down", f"{source}.mlp.c_proj"),
            *linear(f"{target}.feed.last", f"{source}.ln_2"),
        ]

    return [
        rule("embed.table", "transformer.tokens_embed.weight"),
        rule("embed.positions.table", "transformer.positions_embed.weight"),
        *layers(len(config.stack.blocks), layer),
        *head_rules(config),
    ]


FAMILY = Family(
    "openai-gpt",
    read,
    write,
    rules,
    renames=((r"^(?=(tokens_embed|positions_embed|h)\.)", "transformer."),),
    skipped=(r"\.attn\.bias$", r"position_ids$"),
    aliases=ALIASES,
    ignored=(*SUMMARY, *OLDER),
    defaults={
        "vocab_size": 40478,
        "n_positions": 512,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "afn": "gelu",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
)
