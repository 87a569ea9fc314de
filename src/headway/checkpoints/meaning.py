"""What a configuration computes, apart from how it is written: two that compute the same become equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from headway.mixers import AttentionConfig
from headway.models import ActConfig, TransformerConfig, TwoTowerConfig
from headway.parts.experts import ExpertsConfig
from headway.parts.feedforward import GatedConfig, MLPConfig
from headway.parts.init import InitConfig
from headway.parts.rotary import DynamicScaling, LongRopeScaling


def computed(config: Any, width: int = 0) -> Any:
    """`config` with what its defaults mean written out (head size, feed-forward width, ...).

    What only training uses is left at its default: dropout, initialisation (where learned numbers start, too), weights
    of auxiliary losses. No published
    family says all of it, and a trained model computes the same without.
    """
    if isinstance(config, Mapping):
        return {name: computed(part, width) for name, part in config.items()}
    if isinstance(config, tuple):
        return tuple(computed(part, width) for part in config)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    if isinstance(config, InitConfig):
        return InitConfig()
    if isinstance(config, (ActConfig, TransformerConfig)):
        width = config.width
    fields = [field.name for field in dataclasses.fields(config)]
    changes = {name: computed(getattr(config, name), width) for name in fields}
    changes |= {name: 0.0 for name in ("dropout", "drop_path") if name in changes}
    return dataclasses.replace(config, **{**changes, **_written_out(config, width)})


def _written_out(config: Any, width: int) -> dict[str, Any]:
    """The fields of one config whose values follow from others."""
    if isinstance(config, AttentionConfig):
        even = config.heads > 0 and width % config.heads == 0
        size = width // config.heads if config.head_size is None and even else config.head_size
        return {"kv_heads": config.kv_heads or config.heads, "head_size": size, "qkv_bias": _spread(config.qkv_bias)}
    if isinstance(config, (MLPConfig, GatedConfig)):
        hidden = config.hidden if config.hidden is not None else round(config.ratio * width)
        return {"hidden": hidden, "ratio": 0.0}
    if isinstance(config, ExpertsConfig):
        return {"balance": 0.0, "z_loss": 0.0}
    if isinstance(config, TwoTowerConfig):
        return {"scale": 0.0, "bias": None if config.bias is None else 0.0}
    if isinstance(config, (DynamicScaling, LongRopeScaling)):
        return {"length": config.length or config.original}
    return {}


def _spread(biased: bool | tuple[bool, bool, bool]) -> tuple[bool, bool, bool]:
    return (biased, biased, biased) if isinstance(biased, bool) else biased
