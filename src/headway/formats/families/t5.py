"""T5 (Raffel et al. 2020): relative positions, RMS norms and no biases; scores are not divided by sqrt(head size).

Version 1.0 shares one table among source, target and head, and scales the tied head by 1 / sqrt(width). Version 1.1
(also Flan-T5) has gated feed-forwards and an untied head. mT5 (Xue et al. 2020) and ByT5 (2021) are of version 1.1;
in umT5 (Chung et al. 2023) each layer has relative positions of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from headway.formats.settings import Settings, published_activation
from headway.formats.tensor_rules import Family, TensorRule, expect, layers, linear, rule, tied_copy, vocabulary
from headway.nn.mixers import AttentionConfig, CrossAttentionConfig
from headway.nn.models import (
    BlockConfig,
    EncoderDecoderConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    VocabularyHeadConfig,
    cycle,
)
from headway.nn.models.score_biases import RelativeConfig
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, MLPConfig, hidden_width
from headway.nn.parts.norm import RMSNormConfig
from headway.visibility import Causal, Full, Pattern

BIAS = "relative"  # the Stack's name for the bias that its layers share; the file stores it in layer 0
_STEMS = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}  # beginnings of transformers' classes


def read(name: str, settings: Settings, names: Collection[str]) -> EncoderDecoderConfig:
    settings.require("architectures", [f"{_STEMS[name]}ForConditionalGeneration"], ["T5WithLMHeadModel"])
    depth = settings.get("num_layers", int)
    width, vocab_size = settings.get("d_model", int), settings.get("vocab_size", int)
    default = "scale_decoder_outputs" not in settings.values and settings.get("tie_word_embeddings", bool)
    # null means false in transformers; mT5 never scales
    scaled = name != "mt5" and settings.get("scale_decoder_outputs", bool, default)
    # Later files of version 1.1 claim a tied head but contain a separate one.
    tied = settings.get("tie_word_embeddings", bool) and (scaled or "lm_head.weight" not in names)
    embed = TokenEmbedConfig(dropout=settings.get("dropout_rate", float))
    head = VocabularyHeadConfig(scale=width**-0.5 if scaled else 1.0)
    return EncoderDecoderConfig(
        TransformerConfig(width, vocab_size, None, read_stack(settings, depth, Full(), name == "umt5"), embed, {}),
        TransformerConfig(
            width,
            vocab_size,
            None,
            read_stack(settings, settings.get("num_decoder_layers", int, depth), Causal(), name == "umt5"),
            embed,
            {"vocabulary": head},
        ),
        "all" if tied else "embeddings",
    )


def read_stack(settings: Settings, depth: int, pattern: Pattern, bias_per_layer: bool) -> StackConfig:
    heads, size = settings.get("num_heads", int), settings.get("d_kv", int)
    norm, rate = RMSNormConfig(settings.get("layer_norm_epsilon", float)), settings.get("dropout_rate", float)
    bias = RelativeConfig(
        heads,
        settings.get("relative_attention_num_buckets", int),
        settings.get("relative_attention_max_distance", int),
        both_ways=not pattern.causal,
    )
    mixer = AttentionConfig(
        heads,
        head_size=size,
        pattern=pattern,
        qkv_bias=False,
        out_bias=False,
        scale=1.0,
        bias=BIAS,
        dropout=rate,
    )
    cross = CrossAttentionConfig(
        heads, head_size=size, q_bias=False, kv_bias=False, out_bias=False, scale=1.0, dropout=rate
    )
    block = BlockConfig(mixer, cross if pattern.causal else None, read_feed(settings), norm, dropout=rate)
    if not bias_per_layer:
        return StackConfig(cycle((block,), depth), norm, {BIAS: bias})
    blocks = tuple(replace(block, mixer=replace(mixer, bias=f"{BIAS}{i}")) for i in range(depth))
    return StackConfig(blocks, norm, {f"{BIAS}{i}": bias for i in range(depth)})


def read_feed(settings: Settings) -> FeedForwardConfig:
    """`feed_forward_proj` is an activation, optionally after "gated-"; a gated "gelu" is the tanh approximation."""
    hidden, rate = settings.get("d_ff", int), settings.get("dropout_rate", float)
    projection = settings.get("feed_forward_proj", str)
    name = {"gated-gelu": "gelu_new"}.get(projection, projection.removeprefix("gated-"))
    activation = Settings({"feed_forward_proj": name}, settings.source).activation("feed_forward_proj")
    gated = projection.startswith("gated-")
    settings.require("is_gated_act", gated)  # written and read by transformers
    settings.require("dense_act_fn", name)
    if gated:
        return GatedConfig(hidden, activation=activation, dropout=rate)
    return MLPConfig(hidden, activation=activation, bias=False, dropout=rate)


def write(name: str, config: EncoderDecoderConfig) -> dict[str, Any]:
    encoder, decoder = config.encoder.stack, config.decoder.stack
    block, embed = encoder.blocks[0], expect(config.encoder.embed, TokenEmbedConfig)
    mixer, norm = expect(block.mixer, AttentionConfig), expect(block.norm, RMSNormConfig)
    bias = expect(next(iter(encoder.biases.values())), RelativeConfig)
    head = expect(config.decoder.heads["vocabulary"], VocabularyHeadConfig)
    return {
        "model_type": name,
        "architectures": [f"{_STEMS[name]}ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "d_kv": mixer.head_size or config.width // mixer.heads,
        "num_layers": len(encoder.blocks),
        "num_decoder_layers": len(decoder.blocks),
        "num_heads": mixer.heads,
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.reach,
        "dropout_rate": embed.dropout,
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": config.tie == "all",
        **({} if name == "mt5" else {"scale_decoder_outputs": head.scale != 1.0}),
        **write_feed(block.feed_forward, config.width),
    }


def write_feed(feed: FeedForwardConfig | None, width: int) -> dict[str, Any]:
    if isinstance(feed, GatedConfig):
        name = "gelu" if feed.activation == "gelu_tanh" else published_activation(feed.activation)
        return {"d_ff": hidden_width(feed.hidden, feed.ratio, width), "feed_forward_proj": f"gated-{name}"}
    plain = expect(feed, MLPConfig)
    hidden = hidden_width(plain.hidden, plain.ratio, width)
    return {"d_ff": hidden, "feed_forward_proj": published_activation(plain.activation)}


def rules(config: EncoderDecoderConfig) -> list[TensorRule]:
    table = "decoder.embed.table"
    return [
        rule(table, "shared.weight"),
        tied_copy(table, "encoder.embed_tokens.weight"),
        tied_copy(table, "decoder.embed_tokens.weight"),
        *stack_rules(config.encoder.stack, "encoder"),
        *stack_rules(config.decoder.stack, "decoder"),
        vocabulary(config, table, "lm_head.weight", "decoder.heads.vocabulary"),
    ]


def stack_rules(stack: StackConfig, component: str) -> list[TensorRule]:
    def layer(i: int) -> list[TensorRule]:
        target, source = f"{component}.stack.blocks.{i}", f"{component}.block.{i}.layer"
        cross = stack.blocks[i].cross is not None
        last, inputs = (2 if cross else 1), ("wi_0", "wi_1") if gated else ("wi",)
        dense = f"{source}.{last}.DenseReluDense"
        into = "gate_up" if gated else "up"
        return [
            rule(f"{target}.mix.before.weight", f"{source}.0.layer_norm.weight"),
            *linear(f"{target}.mixer.qkv", *(f"{source}.0.SelfAttention.{name}" for name in "qkv"), bias=False),
            *linear(f"{target}.mixer.out", f"{source}.0.SelfAttention.o", bias=False),
            *(cross_rules(target, f"{source}.1") if cross else []),
            rule(f"{target}.feed.before.weight", f"{source}.{last}.layer_norm.weight"),
            *linear(f"{target}.feed_forward.{into}", *(f"{dense}.{name}" for name in inputs), bias=False),
            *linear(f"{target}.feed_forward.down", f"{dense}.wo", bias=False),
        ]

    gated = isinstance(stack.blocks[0].feed_forward, GatedConfig)
    return [
        *(
            rule(
                f"{component}.stack.biases.{name}.table",
                f"{component}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight",
            )
            for i, name in enumerate(stack.biases)
        ),
        *layers(len(stack.blocks), layer),
        rule(f"{component}.stack.norm.weight", f"{component}.final_layer_norm.weight"),
    ]


def cross_rules(target: str, source: str) -> list[TensorRule]:
    return [
        rule(f"{target}.read.before.weight", f"{source}.layer_norm.weight"),
        *linear(f"{target}.cross.q", f"{source}.EncDecAttention.q", bias=False),
        *linear(f"{target}.cross.kv", f"{source}.EncDecAttention.k", f"{source}.EncDecAttention.v", bias=False),
        *linear(f"{target}.cross.out", f"{source}.EncDecAttention.o", bias=False),
    ]


def _family(name: str, **defaults: Any) -> Family:
    return Family(
        name,
        partial(read, name),
        partial(write, name),
        rules,
        aliases={
            "hidden_size": "d_model",
            "num_attention_heads": "num_heads",
            "num_hidden_layers": "num_layers",
            "head_dim": "d_kv",
        },
        ignored=("n_positions",),
        skipped=(r"\.EncDecAttention\.relative_attention_bias\.weight$",),  # unused tensors of older files
        defaults={
            "vocab_size": 32128,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_heads": 8,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "dropout_rate": 0.1,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
            **defaults,
        },
    )


_LATER: dict[str, Any] = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
_LATER |= {"feed_forward_proj": "gated-gelu"}
FAMILIES = (_family("t5"), _family("mt5", **_LATER), _family("umt5", **_LATER))
