"""Settings of a whole model at once (`--set model.depth=4`): they apply to every layer, and to both parts of a pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from headway.config import from_dict, setting, shortcuts
from headway.errors import ConfigError, InapplicableError
from headway.nn.mixers import BidirectionalConfig, MixerConfig, RecurrenceConfig
from headway.nn.models.act import ActConfig
from headway.nn.models.block import BlockConfig
from headway.nn.models.captioner import CaptionerConfig
from headway.nn.models.encoder_decoder import EncoderDecoderConfig, StateBridgeConfig
from headway.nn.models.patches import PatchEmbedConfig
from headway.nn.models.stack import StackConfig, cycle
from headway.nn.models.transformer import TransformerConfig
from headway.nn.models.two_tower import HEAD, TwoTowerConfig

# A transformer.


@setting(TransformerConfig, "width")
def _width(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Width of all layers, and of the embedding and heads around them."""
    return replace(model, width=positive_int("model.width", value))


@setting(TransformerConfig, "depth")
def _depth(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Number of blocks; their pattern is repeated or cut."""
    return replace(model, stack=depth(model.stack, value))


@setting(TransformerConfig, "heads")
def _heads(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Heads of every attention layer; key and value heads keep their ratio."""
    if isinstance(value, dict):
        raise ConfigError(f"model.heads is {value!r}; set the number of attention heads")
    return replace(model, stack=heads(model.stack, value))


@setting(TransformerConfig, "mixer")
def _mixer(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Kind of every mixer, by name or as JSON; settings that both kinds have are kept."""
    changed = replace(model, stack=mixer(model.stack, value))
    if any(block.mixer.reads_memory for block in changed.stack.blocks):
        raise ConfigError(
            f"model.mixer={value!r} reads the output of an encoder, and this model has no encoder; choose another "
            "mixer, or a recipe with an encoder and a decoder, such as translation"
        )
    return changed


@setting(TransformerConfig, "dropout")
def _dropout(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Dropout rate of every branch and of the embedding."""
    return replace(model, stack=dropout(model.stack, value), embed=model.embed.with_dropout(value))


@setting(TransformerConfig, "drop_path")
def _drop_path(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Stochastic depth rate in the last block; it grows linearly from 0 in the first."""
    rate = from_dict(float, value, "model.drop_path")
    if not 0 <= rate < 1:
        raise ConfigError(f"model.drop_path is {rate}; set a probability below 1, such as 0.1")
    blocks = model.stack.blocks
    last = max(1, len(blocks) - 1)
    changed = tuple(replace(block, drop_path=rate * i / last) for i, block in enumerate(blocks))
    return replace(model, stack=replace(model.stack, blocks=changed))


@setting(TransformerConfig, "layer_scale")
def _layer_scale(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Initial value of a trained gain on every branch; none: no gain."""
    start = from_dict(float | None, value, "model.layer_scale")  # type: ignore[arg-type]
    blocks = tuple(replace(block, layer_scale=start) for block in model.stack.blocks)
    return replace(model, stack=replace(model.stack, blocks=blocks))


@setting(TransformerConfig, "size")
def _size(model: TransformerConfig, value: Any) -> TransformerConfig:
    """Height and width of the images in pixels, or one number for both."""
    if not isinstance(model.embed, PatchEmbedConfig):
        raise ConfigError(f"model.size={value!r}: this model does not take images; remove the setting")
    sizes = value if isinstance(value, (list, tuple)) else [value, value]
    if len(sizes) != 2:
        raise ConfigError(f"model.size is {value!r}; set height and width, or one number for both")
    height, width = (positive_int("model.size", size) for size in sizes)
    return replace(model, embed=replace(model.embed, size=(height, width)))


# Two transformers: one value for both or, as a list, one for each.


def _for_both_parts(parts: tuple[str, str], name: str, model: Any, value: Any) -> Any:
    pair = value if isinstance(value, list) and len(value) == 2 else (value, value)
    change = shortcuts(TransformerConfig)[name]
    return replace(model, **{part: change(getattr(model, part), part_value) for part, part_value in zip(parts, pair)})


_MAX_DEPTH = 10_000  # blocks in a stack
_PAIRED_SETTINGS = ("width", "depth", "heads", "mixer", "dropout", "drop_path")
_PAIRED_PARTS: dict[type, tuple[tuple[str, str], tuple[str, ...]]] = {
    EncoderDecoderConfig: (("encoder", "decoder"), ("width", "depth", "heads", "dropout")),
    TwoTowerConfig: (("left", "right"), _PAIRED_SETTINGS),
    CaptionerConfig: (("tower", "decoder"), _PAIRED_SETTINGS),
}
for _kind, (_parts, _names) in _PAIRED_PARTS.items():
    for _name in _names:
        setting(_kind, _name)(partial(_for_both_parts, _parts, _name))


# An encoder and a decoder.


@setting(EncoderDecoderConfig, "mixer")
def _mixers(model: EncoderDecoderConfig, value: Any) -> EncoderDecoderConfig:
    """A mixer that reads the encoder's output also replaces the cross-attention; the encoder then gets a GRU."""
    config, encoder_mixer = from_dict(MixerConfig, value, "model.mixer"), value
    if config.reads_memory:
        encoder_mixer = {"kind": "gru", "cells": getattr(config, "cells", None)}
        model = _cross(model, None)
    encoder = replace(model.encoder, stack=mixer(model.encoder.stack, encoder_mixer))
    return replace(model, encoder=encoder, decoder=replace(model.decoder, stack=mixer(model.decoder.stack, value)))


@setting(EncoderDecoderConfig, "cells")
def _cells(model: EncoderDecoderConfig, value: Any) -> EncoderDecoderConfig:
    """Units of all recurrences and the summary, and half as many in a maxout (as in the 2014 papers)."""
    count = positive_int("model.cells", value)
    encoder, decoder = (replace(part, stack=cells(part.stack, count)) for part in (model.encoder, model.decoder))
    changed = {
        name: replace(head, maxout=max(1, count // 2)) if getattr(head, "maxout", None) else head
        for name, head in decoder.heads.items()
    }
    bridge = model.bridge
    if isinstance(bridge, StateBridgeConfig) and bridge.summary is not None:
        bridge = replace(bridge, summary=count)
    return replace(model, encoder=encoder, decoder=replace(decoder, heads=changed), bridge=bridge)


@setting(EncoderDecoderConfig, "cross")
def _cross(model: EncoderDecoderConfig, value: Any) -> EncoderDecoderConfig:
    """none removes the cross-attention from the decoder."""
    if value is not None:
        raise ConfigError(f"model.cross is {value!r}; use none, which removes the decoder's cross-attention")
    blocks = tuple(replace(block, cross=None) for block in model.decoder.stack.blocks)
    return replace(model, decoder=replace(model.decoder, stack=replace(model.decoder.stack, blocks=blocks)))


@setting(EncoderDecoderConfig, "vocab_size")
def _all_vocab_sizes(model: EncoderDecoderConfig, value: Any) -> EncoderDecoderConfig:
    """Size of the vocabulary; set from the data."""
    size = positive_int("model.vocab_size", value)
    return replace(
        model, encoder=replace(model.encoder, vocab_size=size), decoder=replace(model.decoder, vocab_size=size)
    )


@setting(EncoderDecoderConfig, "context")
def _all_context(model: EncoderDecoderConfig, value: Any) -> EncoderDecoderConfig:
    """Maximum positions per row."""
    size = _context(value)
    return replace(model, encoder=replace(model.encoder, context=size), decoder=replace(model.decoder, context=size))


def _context(value: Any) -> int | None:
    return None if value is None else positive_int("model.context", value)


# Two towers, or a tower and a decoder: vocabulary and context are the text's.


@setting(TwoTowerConfig, "shared")
def _shared(model: TwoTowerConfig, value: Any) -> TwoTowerConfig:
    """Output width of every head that projects into the shared space."""
    width = positive_int("model.shared", value)
    return replace(model, left=_projecting(model.left, width), right=_projecting(model.right, width))


def _projecting(tower: TransformerConfig, width: int) -> TransformerConfig:
    head: Any = tower.heads[HEAD]
    if getattr(head, "outputs", None) is None:
        return tower
    return replace(tower, heads={**tower.heads, HEAD: replace(head, outputs=width)})


@setting(TwoTowerConfig, "vocab_size")
def _text_vocab_size(model: TwoTowerConfig, value: Any) -> TwoTowerConfig:
    return replace(model, right=replace(model.right, vocab_size=positive_int("model.vocab_size", value)))


@setting(TwoTowerConfig, "context")
def _text_context(model: TwoTowerConfig, value: Any) -> TwoTowerConfig:
    return replace(model, right=replace(model.right, context=_context(value)))


@setting(CaptionerConfig, "vocab_size")
def _caption_vocab_size(model: CaptionerConfig, value: Any) -> CaptionerConfig:
    return replace(model, decoder=replace(model.decoder, vocab_size=positive_int("model.vocab_size", value)))


@setting(CaptionerConfig, "context")
def _caption_context(model: CaptionerConfig, value: Any) -> CaptionerConfig:
    size = _context(value)
    return replace(model, decoder=replace(model.decoder, context=None if size is None else size + model.prefix))


# A policy that predicts action chunks has three stacks: encoder, decoder and posterior.

_STACKS = ("encoder", "decoder", "posterior")


def _stacks(model: ActConfig, change: Callable[[StackConfig, Any], StackConfig], *values: Any) -> ActConfig:
    pairs = zip(_STACKS, values if len(values) == 3 else 3 * values)
    return replace(model, **{name: change(getattr(model, name), value) for name, value in pairs})


@setting(ActConfig, "depth")
def _act_depth(model: ActConfig, value: Any) -> ActConfig:
    depths = value if isinstance(value, list) else [value, value]
    if len(depths) not in (2, 3):
        raise ConfigError(
            f"model.depth is {value!r}; set a number, [encoder, decoder] or [encoder, decoder, posterior]"
        )
    return _stacks(model, depth, *(depths if len(depths) == 3 else [*depths, depths[0]]))


@setting(ActConfig, "heads")
def _act_heads(model: ActConfig, value: Any) -> ActConfig:
    return _stacks(model, heads, value)


@setting(ActConfig, "mixer")
def _act_mixer(model: ActConfig, value: Any) -> ActConfig:
    return _stacks(model, mixer, value)


@setting(ActConfig, "dropout")
def _act_dropout(model: ActConfig, value: Any) -> ActConfig:
    changed = _stacks(model, dropout, value)
    return replace(changed, observation=cast(Any, model.observation.with_dropout(float(value))))


# One stack.


def positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; set an integer above 0")
    return value


def depth(stack: StackConfig, value: Any) -> StackConfig:
    """Repeat or cut the pattern of blocks to `value` blocks."""
    count = positive_int("model.depth", value)
    if count > _MAX_DEPTH:
        raise ConfigError(f"model.depth is {count:,}; set at most {_MAX_DEPTH:,}")
    return replace(stack, blocks=cycle(stack.blocks, count))


def heads(stack: StackConfig, value: Any) -> StackConfig:
    """Give every attention layer `value` heads; key and value heads keep their ratio where it divides."""
    count = positive_int("model.heads", value)
    if not any(hasattr(part, "heads") for block in stack.blocks for part in (block.mixer, block.cross)):
        raise InapplicableError(f"model.heads={count}: this model has no attention heads; remove the setting")

    def change(block: BlockConfig) -> BlockConfig:
        cross = None if block.cross is None else _with_heads(block.cross, count)
        return replace(block, mixer=_with_heads(block.mixer, count), cross=cross)

    biases = {name: replace(bias, heads=count) for name, bias in stack.biases.items()}
    return replace(stack, blocks=tuple(map(change, stack.blocks)), biases=biases)


def _with_heads(part: Any, count: int) -> Any:
    if not hasattr(part, "heads"):
        return part
    kv_heads = getattr(part, "kv_heads", None)
    if kv_heads is None:
        return replace(part, heads=count)
    kv_heads = max(1, count * kv_heads // part.heads)
    return replace(part, heads=count, kv_heads=kv_heads)


def mixer(stack: StackConfig, value: Any) -> StackConfig:
    """Replace every mixer by one of another kind; fields with the same name and type (heads, pattern) are kept.

    A causal mixer that replaces a bidirectional one is run in both directions.
    """
    config = from_dict(MixerConfig, value, "model.mixer")
    explicit = set(value) if isinstance(value, dict) else set()

    def change(block: BlockConfig) -> BlockConfig:
        if type(block.mixer) is type(config) and not explicit:
            return block
        common = {name for name, _ in _fields(config) & _fields(block.mixer)}
        inherited = {name: getattr(block.mixer, name) for name in common - explicit}
        replacement = replace(config, **inherited)
        if (
            not block.mixer.causal and replacement.causal and not hasattr(replacement, "pattern")
        ):  # run in both directions
            if isinstance(replacement, RecurrenceConfig) and replacement.cells is None:
                replacement = replace(replacement, out=False)  # the projection that joins both directions suffices
            replacement = BidirectionalConfig(replacement)
        return replace(block, mixer=replacement)

    changed = replace(stack, blocks=tuple(map(change, stack.blocks)))
    if changed.causal != stack.causal:
        raise ConfigError(
            f"model.mixer={value!r} sees {'only earlier' if changed.causal else 'later'} tokens, unlike this model's "
            "stack; choose a mixer with the same direction"
        )
    return changed


def _fields(config: Any) -> set[tuple[str, str]]:
    """Names and types of a config's fields."""
    return {(field.name, str(field.type)) for field in dataclasses.fields(config)}


def cells(stack: StackConfig, value: int) -> StackConfig:
    """Give every recurrence `value` units. Raises InapplicableError if the stack has no recurrence."""
    blocks = tuple(replace(block, mixer=_with_cells(block.mixer, value)) for block in stack.blocks)
    inner = [b.mixer.mixer if isinstance(b.mixer, BidirectionalConfig) else b.mixer for b in blocks]
    if not any(hasattr(mixer, "cells") for mixer in inner):
        raise InapplicableError(f"model.cells={value}: no mixer of this model has cells; remove the setting")
    return replace(stack, blocks=blocks)


def _with_cells(mixer: MixerConfig, value: int) -> MixerConfig:
    if isinstance(mixer, BidirectionalConfig):
        return replace(mixer, mixer=_with_cells(mixer.mixer, value))
    return replace(mixer, cells=value) if isinstance(mixer, RecurrenceConfig) else mixer


def dropout(stack: StackConfig, value: Any) -> StackConfig:
    """Set the dropout of every block's branches."""
    rate = from_dict(float, value, "model.dropout")
    blocks = tuple(replace(block, dropout=rate) for block in stack.blocks)
    return replace(stack, blocks=blocks)
