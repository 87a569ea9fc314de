"""GPT-2 (Radford et al. 2019): linear layers stored transposed; the tanh approximation of GELU."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, TensorRule, Transposed, Unsplit, expect, layers, linear, rule
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TokenEmbedConfig, TransformerConfig, cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.norm import LayerNormConfig
from headway.nn.parts.positions import LearnedConfig

ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SUMMARY = ("summary_activation", "summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels")
SUMMARY += ("summary_type", "summary_use_proj")  # settings of a second head, which is not supported
OLDER = ("n_ctx", "n_special", "predict_special_tokens")  # no longer used by any class


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    width = settings.get("n_embd", int)
    block, norm = read_block(settings, width)
    return TransformerConfig(
        width,
        settings.get("vocab_size", int),
        settings.max_positions("n_positions"),
        StackConfig(cycle((block,), settings.get("n_layer", int)), norm),
        TokenEmbedConfig(positions=LearnedConfig(), dropout=settings.get("embd_pdrop", float)),
        *read_heads(settings),
    )


def read_block(settings: Settings, width: int) -> tuple[BlockConfig, LayerNormConfig]:
    """Return a layer, and the norm after the last one."""
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("scale_attn_weights", True)
    settings.require("add_cross_attention", False)
    norm = LayerNormConfig(settings.get("layer_norm_epsilon", float))
    hidden = settings.optional("n_inner", int) or 4 * width
    feed = MLPConfig(hidden=hidden, activation=settings.activation("activation_function"))
    mixer = AttentionConfig(settings.get("n_head", int), dropout=settings.get("attn_pdrop", float))
    return BlockConfig(mixer, None, feed, norm, dropout=settings.get("resid_pdrop", float)), norm


def write(config: TransformerConfig) -> dict[str, Any]:
    embed = expect(config.embed, TokenEmbedConfig)
    return {
        "model_type": "gpt2",
        **write_heads(config, PublishedClasses("GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2Model")),
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_positions": config.context,
        **stack_settings(config),
        "embd_pdrop": embed.dropout,
    }


def stack_settings(config: TransformerConfig) -> dict[str, Any]:
    """The settings of the layers in a config.json."""
    block = config.stack.blocks[0]
    attention, feed = expect(block.mixer, AttentionConfig), expect(block.feed_forward, MLPConfig)
    return {
        "n_layer": len(config.stack.blocks),
        "n_head": attention.heads,
        "n_inner": feed.hidden if feed.hidden is not None else round(feed.ratio * config.width),
        "activation_function": published_activation(feed.activation),
        "layer_norm_epsilon": expect(block.norm, LayerNormConfig).eps,
        "attn_pdrop": attention.dropout,
        "resid_pdrop": block.dropout,
    }


def rules(config: TransformerConfig) -> list[TensorRule]:
    return [
        rule("embed.table", "transformer.wte.weight"),
        rule("embed.positions.table", "transformer.wpe.weight"),
        *stack_rules(config, "transformer"),
        *head_rules(config),
    ]


def stack_rules(config: TransformerConfig, prefix: str) -> list[TensorRule]:
    """The layers and the final norm, under `prefix`."""

    def layer(i: int) -> list[TensorRule]:
        target, source = f"stack.blocks.{i}", f"{prefix}.h.{i}"
        return [
            *linear(f"{target}.mix.before", f"{source}.ln_1"),
            *conv(f"{target}.mixer.qkv", f"{source}.attn.c_attn"),
            *conv(f"{target}.mixer.out", f"{source}.attn.c_proj"),
            *linear(f"{target}.feed.before", f"{source}.ln_2"),
            *conv(f"{target}.feed_forward.up", f"{source}.mlp.c_fc"),
            *conv(f"{target}.feed_forward.down", f"{source}.mlp.c_proj"),
        ]

    return [*layers(len(config.stack.blocks), layer), *linear("stack.norm", f"{prefix}.ln_f")]


def conv(target: str, source: str) -> list[TensorRule]:
    """A layer with a transposed weight (Conv1D); query, key and value are fused there as here."""
    return [
        rule(f"{target}.weight", f"{source}.weight", transform=Transposed()),
        rule(f"{target}.bias", f"{source}.bias", transform=Unsplit()),
    ]


FAMILY = Family(
    "gpt2",
    read,
    write,
    rules,
    renames=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
    skipped=(r"\.attn\.(bias|masked_bias)$",),
    aliases=ALIASES,
    ignored=(*SUMMARY, *OLDER),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
)
