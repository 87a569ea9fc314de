"""Llama (Touvron et al. 2023): RMS norms, rotary positions in halves, gated SiLU, grouped heads.

Many families differ from it only slightly: they start from the tables here, and their modules contain the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from headway.errors import UserError
from headway.formats.heads import PublishedClasses, head_rules, read_heads, write_heads
from headway.formats.setting_table import ACTIVATION, SettingKind, SettingTable
from headway.formats.settings import Settings, published_activation, published_context, rope_parameters
from headway.formats.tensor_rules import (
    Family,
    Interleaved,
    StackedRows,
    TensorRule,
    TensorTransform,
    block_rules,
    expect,
    linear,
    linears,
    rule,
)
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig
from headway.nn.models.block import Placement
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import GatedConfig, hidden_width
from headway.nn.parts.norm import LayerNormConfig, RMSNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal, Full, Local

TABLE = SettingTable(
    TransformerConfig(
        stack=StackConfig(
            (BlockConfig(AttentionConfig(), feed_forward=GatedConfig(), norm=RMSNormConfig()),), RMSNormConfig()
        )
    ),
    {
        "vocab_size": ("vocab_size", int),
        "hidden_size": ("width", int),
        "intermediate_size": ("block.feed_forward.hidden", int),
        "num_hidden_layers": ("depth", int),
        "num_attention_heads": ("block.mixer.heads", int),
        "num_key_value_heads": ("block.mixer.kv_heads", int, SettingKind(lambda s, name: s.get(name, int, _heads(s)))),
        "head_dim": (
            "block.mixer.head_size",
            int,
            SettingKind(lambda s, name: s.get(name, int, s.get("hidden_size", int) // _heads(s))),
        ),
        "hidden_act": ("block.feed_forward.activation", "silu", ACTIVATION),
        "max_position_embeddings": ("context", 2048),
        "rms_norm_eps": ("stack.norm.eps block.norm.eps", 1e-6),
        "attention_dropout": ("block.mixer.dropout", float, SettingKind(lambda s, name: s.get(name, float, 0.0))),
        "tie_word_embeddings": ("", False),
    },
)
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
IS_CAUSAL = "is_causal"  # of all decoders in transformers

# Published names of a layer's norms, by placement.
NORMS: dict[Placement, dict[str, str]] = {
    "pre": {"mix.before": "input_layernorm", "feed.before": "post_attention_layernorm"},
    "branch": {"mix.after": "post_attention_layernorm", "feed.after": "post_feedforward_layernorm"},
    "sandwich": {
        "mix.before": "input_layernorm",
        "mix.after": "post_attention_layernorm",
        "feed.before": "pre_feedforward_layernorm",
        "feed.after": "post_feedforward_layernorm",
    },
}


def read(settings: Settings, names: Collection[str]) -> TransformerConfig:
    """Llama itself: all layers are alike."""
    config = read_plain(settings)
    fraction = first_rotary(config).fraction
    if fraction != 1.0:
        raise UserError(
            f"{settings.source}: partial_rotary_factor is {fraction}; this family rotates whole heads (1.0)"
        )
    return config


def read_plain(settings: Settings) -> TransformerConfig:
    """Read the settings that most families of this kind share; each family then changes the layers."""
    rotary, bias = settings.rotary(), settings.get("attention_bias", bool, False)
    fields = {
        "context": settings.served_positions(rotary),
        "block.mixer.rotary": rotary,
        "block.mixer.qkv_bias": bias,
        "block.mixer.out_bias": bias,
        "block.feed_forward.bias": settings.get("mlp_bias", bool, False),
    }
    return TABLE.read(settings, {**fields, **read_heads(settings)})


def _heads(settings: Settings) -> int:
    return settings.get("num_attention_heads", int)


def with_blocks(config: TransformerConfig, change: Callable[[int, BlockConfig], BlockConfig]) -> TransformerConfig:
    """Return `config` with each layer changed, depending on its index."""
    blocks = tuple(change(i, block) for i, block in enumerate(config.stack.blocks))
    return replace(config, stack=replace(config.stack, blocks=blocks))


def with_mixers(config: TransformerConfig, **changes: Any) -> TransformerConfig:
    """Return `config` with the same changes to the attention of every layer."""
    return with_blocks(config, lambda i, block: replace(block, mixer=replace(attention(block), **changes)))


def without_feed_biases(config: TransformerConfig) -> TransformerConfig:
    """Return `config` for families whose feed-forwards have no biases, whatever mlp_bias is."""
    return with_blocks(config, lambda _, block: replace(block, feed_forward=replace(gated(block), bias=False)))


def with_windows(config: TransformerConfig, windows: list[int | None]) -> TransformerConfig:
    """Return `config` with an attention window per layer; None attends to everything before."""
    patterns = [Causal(window) for window in windows]
    return with_blocks(config, lambda i, block: replace(block, mixer=replace(attention(block), pattern=patterns[i])))


def attention(block: BlockConfig) -> AttentionConfig:
    return expect(block.mixer, AttentionConfig)


def shared_window(settings: Settings) -> list[int | None]:
    """Return the attention window that all layers share (Mistral)."""
    return [settings.optional("sliding_window", int)] * settings.get("num_hidden_layers", int)


def windows_by_layer(settings: Settings) -> list[int | None]:
    """Return the window of each layer: `layer_types` names the sliding layers, unless `use_sliding_window` is false.

    Without `layer_types`, layers from `max_window_layers` on slide (Qwen).
    """
    depth, window = settings.get("num_hidden_layers", int), settings.optional("sliding_window", int)
    kinds = layer_types(settings, depth) if "layer_types" in settings else None
    if window is None or not settings.get("use_sliding_window", bool, True):
        if kinds is not None and SLIDING_ATTENTION in kinds:
            raise UserError(
                f"{settings.source}: layer_types has {SLIDING_ATTENTION!r}, but there is no window; set "
                "sliding_window (and "
                f"use_sliding_window), or make all layers {FULL_ATTENTION!r}"
            )
        return [None] * depth
    if kinds is not None:
        return [window if kind == SLIDING_ATTENTION else None for kind in kinds]
    first = settings.get("max_window_layers", int, 0)
    return [window if i >= first else None for i in range(depth)]


def layer_types(settings: Settings, depth: int) -> list[str]:
    """Return the kind of each layer. UserError for an unknown kind, or if there are too few."""
    kinds = settings.get("layer_types", list[str])[:depth]
    for kind in kinds:
        if kind not in (FULL_ATTENTION, SLIDING_ATTENTION):
            raise UserError(
                f"{settings.source}: layer_types has {kind!r}; use {FULL_ATTENTION!r} or {SLIDING_ATTENTION!r}"
            )
    if len(kinds) < depth:
        raise UserError(f"{settings.source}: layer_types names {len(kinds)} of {depth} layers; name all of them")
    return kinds


def write(name: str, classes: PublishedClasses, config: TransformerConfig) -> dict[str, Any]:
    """The reverse of `read_plain`, without biases and windows, which not all families have."""
    block = config.stack.blocks[0]
    mixer, feed, rotary = attention(block), gated(block), first_rotary(config)
    others = {
        "intermediate_size": hidden_width(feed.hidden, feed.ratio, config.width),
        "num_key_value_heads": mixer.kv_heads or mixer.heads,
        "head_dim": mixer.head_size or config.width // mixer.heads,
        "hidden_act": published_activation(feed.activation),
        "max_position_embeddings": published_context(config.context, rotary),
        "rope_parameters": rope_parameters(rotary),
    }
    return {"model_type": name, **write_heads(config, classes), **TABLE.write(config, others)}


def write_layer_norms(name: str, config: TransformerConfig, eps: str, stem: str) -> dict[str, Any]:
    """`write` for a family with layer norms and without head_dim; `eps` is its name for their epsilon."""
    rms = replace(config, stack=replace(config.stack, norm=RMSNormConfig()))
    settings = write(name, PublishedClasses.of(stem), rms)
    del settings["rms_norm_eps"], settings["head_dim"]
    return {**settings, eps: expect(config.stack.norm, LayerNormConfig).eps}


def gated(block: BlockConfig) -> GatedConfig:
    """Return the feed-forward of a layer, or of each of its experts."""
    feed = block.feed_forward
    return expect(feed.expert if isinstance(feed, ExpertsConfig) else feed, GatedConfig)


def first_rotary(config: TransformerConfig) -> RotaryConfig:
    """Return the rotary positions from the first layer that has them."""
    rotaries = (attention(block).rotary for block in config.stack.blocks)
    return expect(next((rotary for rotary in rotaries if rotary is not None), None), RotaryConfig)


def write_biases(config: TransformerConfig) -> dict[str, Any]:
    return {**write_attention_bias(config), "mlp_bias": gated(config.stack.blocks[0]).bias}


def write_attention_bias(config: TransformerConfig) -> dict[str, Any]:
    """One setting for queries, keys, values and outputs."""
    return {"attention_bias": attention(config.stack.blocks[0]).qkv_bias}


def write_window(config: TransformerConfig) -> dict[str, Any]:
    """The reverse of `shared_window`."""
    return {"sliding_window": windows_of(config)[0]}


def write_windows(config: TransformerConfig) -> dict[str, Any]:
    """The reverse of `windows_by_layer`."""
    windows = windows_of(config)
    window = next((size for size in windows if size is not None), None)
    return {
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "layer_types": [FULL_ATTENTION if size is None else SLIDING_ATTENTION for size in windows],
    }


def write_layer_types(config: TransformerConfig) -> dict[str, Any]:
    """The windows of families in which a layer's kind alone decides."""
    settings = write_windows(config)
    del settings["use_sliding_window"]
    return settings


def bidirectional(config: TransformerConfig, reach: Callable[[int], int] = int) -> TransformerConfig:
    """Return `config` with attention in both directions; `reach` is how far on each side, by window."""
    windows = windows_of(config)
    patterns = [Full() if window is None else Local(reach(window)) for window in windows]
    return with_blocks(config, lambda i, block: replace(block, mixer=replace(attention(block), pattern=patterns[i])))


def causal(config: TransformerConfig, window: Callable[[int], int] = int) -> TransformerConfig:
    """The reverse of `bidirectional`: `window` by how far a layer attends on each side."""
    patterns = (attention(block).pattern for block in config.stack.blocks)
    return with_windows(config, [window(part.reach) if isinstance(part, Local) else None for part in patterns])


def windows_of(config: TransformerConfig) -> list[int | None]:
    return [expect(attention(block).pattern, Causal).window for block in config.stack.blocks]


def rules(
    config: TransformerConfig,
    attend: Callable[[AttentionConfig], list[TensorRule]] | None = None,
    feed: Callable[[BlockConfig], list[TensorRule]] | None = None,
    norms: Mapping[Placement, Mapping[str, str]] = NORMS,
) -> list[TensorRule]:
    """Return the tensors of a configuration; `attend`, `feed` and `norms` override those of a layer for families that
    store them differently.
    """

    def layer(block: BlockConfig) -> list[TensorRule]:
        if block.placement not in norms:
            raise UserError(f"placement {block.placement!r} has no published names; choose from {', '.join(norms)}")
        return [
            *linears(norms[block.placement], bias=False),
            *(attend or attention_rules)(attention(block)),
            *(feed or gated_rules)(block),
        ]

    return [
        rule("embed.table", "model.embed_tokens.weight"),
        *block_rules(config.stack, "model.layers.{}.", layer),
        rule("stack.norm.weight", "model.norm.weight"),
        *head_rules(config),
    ]


def attention_rules(mixer: AttentionConfig, interleaved: bool = False) -> list[TensorRule]:
    """Query, key and value as separate tensors, with their norms if there are any. Rotary pairs may be adjacent in the
    file.
    """
    transform: TensorTransform = StackedRows()
    if interleaved and mixer.rotary is not None:
        transform = Interleaved((mixer.heads, mixer.kv_heads or mixer.heads, 0), mixer.rotary.fraction)
    return [
        *linear("mixer.qkv", "self_attn.{q,k,v}_proj", bias=bool(mixer.qkv_bias), transform=transform),
        *linear("mixer.out", "self_attn.o_proj", bias=mixer.out_bias),
        *(rule(f"mixer.qk_norm.{n}.weight", f"self_attn.{n}_norm.weight") for n in ("qk" if mixer.qk_norm else "")),
    ]


def gated_rules(block: BlockConfig) -> list[TensorRule]:
    names = {"feed_forward.gate_up": "mlp.{gate,up}_proj", "feed_forward.down": "mlp.down_proj"}
    return linears(names, bias=gated(block).bias)


def writer(
    name: str, classes: str | PublishedClasses, *writers: Callable[[TransformerConfig], dict[str, Any]]
) -> Callable[[TransformerConfig], dict[str, Any]]:
    """Return a family's `write`: `writers` return the settings that `write` here omits."""
    published = PublishedClasses.of(classes) if isinstance(classes, str) else classes

    def write_all(config: TransformerConfig) -> dict[str, Any]:
        settings = write(name, published, config)
        for more in writers:
            settings |= more(config)
        return settings

    return write_all


def family(
    name: str,
    read: Callable[[Settings, Collection[str]], TransformerConfig],
    write: Callable[[TransformerConfig], dict[str, Any]],
    rules: Callable[[TransformerConfig], list[TensorRule]] = rules,
    older: tuple[str, ...] = (),
    **defaults: Any,
) -> Family:
    """Return a family of this kind; `defaults` are those that differ from Llama's. `is_causal` false makes attention
    bidirectional, as in sentence encoders made of decoders.
    """

    def read_any(settings: Settings, names: Collection[str]) -> TransformerConfig:
        config = read(settings, names)
        return config if settings.get(IS_CAUSAL, bool, True) or not config.stack.causal else bidirectional(config)

    def write_any(config: TransformerConfig) -> dict[str, Any]:
        return write(config) if config.stack.causal else {**write(causal(config)), IS_CAUSAL: False}

    return Family(
        name,
        read_any,
        write_any,
        rules,
        renames=((r"^(?=(layers|embed_tokens|norm)\.)", "model."),),
        skipped=(r"\.rotary_emb\.inv_freq$",),
        ignored=(IS_CAUSAL,),
        defaults={**TABLE.defaults, **defaults},
        older=("rope_theta", "rope_scaling", "partial_rotary_factor", *older),
    )


FAMILY = family("llama", read, writer("llama", "Llama", write_biases))
