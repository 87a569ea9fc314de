"""The settings that change a whole stack at once: depth, heads, mixer, dropout, drop_path,
layer_scale.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from headway.config import from_dict
from headway.errors import ConfigError
from headway.mixers import BidirectionalConfig, MixerConfig, RecurrenceConfig
from headway.models.block import BlockConfig
from headway.models.stack import StackConfig, cycle


def whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; give a whole number above 0")
    return value


def depth(stack: StackConfig, value: Any) -> StackConfig:
    """The pattern of blocks repeated or cut to `value` blocks."""
    return dataclasses.replace(stack, blocks=cycle(stack.blocks, whole("model.depth", value)))


def heads(stack: StackConfig, value: Any) -> StackConfig:
    """Every attention with `value` heads; key and value heads keep their share where it divides."""
    count = whole("model.heads", value)
    if not any(hasattr(part, "heads") for block in stack.blocks for part in (block.mixer, block.cross)):
        raise ConfigError(f"model.heads={count}: this model has no heads; leave the setting out")

    def change(block: BlockConfig) -> BlockConfig:
        cross = None if block.cross is None else _with_heads(block.cross, count)
        return dataclasses.replace(block, mixer=_with_heads(block.mixer, count), cross=cross)

    biases = {name: dataclasses.replace(bias, heads=count) for name, bias in stack.biases.items()}
    return dataclasses.replace(stack, blocks=tuple(map(change, stack.blocks)), biases=biases)


def _with_heads(part: Any, count: int) -> Any:
    if not hasattr(part, "heads"):
        return part
    shared = getattr(part, "kv_heads", None)
    if shared is None:
        return dataclasses.replace(part, heads=count)
    shared = max(1, count * shared // part.heads)
    return dataclasses.replace(part, heads=count, kv_heads=shared)


def mixer(stack: StackConfig, value: Any) -> StackConfig:
    """Every mixer replaced by one of another kind; fields of the same name and type (heads, pattern) are kept.

    What can see earlier tokens only takes the place of what sees both ways by being bidirectional.
    """
    wanted = from_dict(MixerConfig, value, "model.mixer")
    given = set(value) if isinstance(value, dict) else set()

    def change(block: BlockConfig) -> BlockConfig:
        if type(block.mixer) is type(wanted) and not given:
            return block
        shared = {name for name, _ in _fields(wanted) & _fields(block.mixer)}
        kept = {name: getattr(block.mixer, name) for name in shared - given}
        new = dataclasses.replace(wanted, **kept)
        return dataclasses.replace(block, mixer=new if block.mixer.causal else _both_ways(new))

    changed = dataclasses.replace(stack, blocks=tuple(map(change, stack.blocks)))
    if changed.causal != stack.causal:
        raise ConfigError(
            f"model.mixer={value!r} sees {'only earlier' if changed.causal else 'later'} tokens, which this model's "
            "stack does not; choose a mixer of the same direction"
        )
    return changed


def _fields(config: Any) -> set[tuple[str, str]]:
    """Names and types."""
    return {(field.name, str(field.type)) for field in dataclasses.fields(config)}


def _both_ways(mixer: MixerConfig) -> MixerConfig:
    """`mixer` in both directions where it has no pattern that could let it see them."""
    if not mixer.causal or hasattr(mixer, "pattern"):
        return mixer
    if isinstance(mixer, RecurrenceConfig) and mixer.cells is None:
        mixer = dataclasses.replace(mixer, out=False)  # the projection that joins both directions is enough
    return BidirectionalConfig(mixer)


def cells(stack: StackConfig, value: int) -> StackConfig:
    """Every recurrence with so many units; ConfigError where there is none."""
    blocks = tuple(dataclasses.replace(block, mixer=_with_cells(block.mixer, value)) for block in stack.blocks)
    if not any(_has_cells(block.mixer) for block in blocks):
        raise ConfigError(f"model.cells={value}: no mixer here has cells; leave the setting out")
    return dataclasses.replace(stack, blocks=blocks)


def _has_cells(mixer: MixerConfig) -> bool:
    return hasattr(mixer.mixer if isinstance(mixer, BidirectionalConfig) else mixer, "cells")


def _with_cells(mixer: MixerConfig, value: int) -> MixerConfig:
    if isinstance(mixer, BidirectionalConfig):
        return dataclasses.replace(mixer, mixer=_with_cells(mixer.mixer, value))
    return dataclasses.replace(mixer, cells=value) if isinstance(mixer, RecurrenceConfig) else mixer


def dropout(stack: StackConfig, value: Any) -> StackConfig:
    """The dropout of every block's branches."""
    rate = from_dict(float, value, "model.dropout")
    blocks = tuple(dataclasses.replace(block, dropout=rate) for block in stack.blocks)
    return dataclasses.replace(stack, blocks=blocks)


def drop_path(stack: StackConfig, value: Any) -> StackConfig:
    """Stochastic depth that grows evenly from 0 in the first block to `value` in the last (Huang et al. 2016)."""
    rate = from_dict(float, value, "model.drop_path")
    if not 0 <= rate < 1:
        raise ConfigError(f"model.drop_path is {rate}; give a probability below 1, such as 0.1")
    last = max(1, len(stack.blocks) - 1)
    blocks = (dataclasses.replace(block, drop_path=rate * i / last) for i, block in enumerate(stack.blocks))
    return dataclasses.replace(stack, blocks=tuple(blocks))


def layer_scale(stack: StackConfig, value: Any) -> StackConfig:
    """A trained gain on every branch that starts at `value` (Touvron et al. 2021, CaiT: 0.1 to 1e-6); None for none."""
    start = from_dict(float | None, value, "model.layer_scale")  # type: ignore[arg-type]
    blocks = (dataclasses.replace(block, layer_scale=start) for block in stack.blocks)
    return dataclasses.replace(stack, blocks=tuple(blocks))
