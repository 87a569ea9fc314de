"""From what a file says of itself to a model with room for its weights: nothing it says is believed unchecked."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from headway.checkpoints.rules import Family
from headway.checkpoints.settings import Settings
from headway.errors import UserError
from headway.models import ModelConfig, build

DEEPEST = 10_000  # layers
_DEPTHS = ("layer", "depth")  # what settings that say how many layers there are have in their names
_PER_BYTE = 4  # numbers that one byte of a file may hold: more than any quantisation packs
_NONSENSE = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)


def read_config(family: Family, settings: Settings, names: Collection[str]) -> ModelConfig:
    """The configuration that a file's settings mean. UserError where they fit no model (0 heads, say)."""
    for name, value in settings.values.items():
        deep = isinstance(value, int) and any(word in name for word in _DEPTHS)
        if deep and value > DEEPEST:
            raise UserError(f"{settings.source}: {name} is {value}; a model has {DEEPEST} layers at most")
    try:
        return family.read(settings, names)
    except _NONSENSE as error:
        raise UserError(_unfit(settings.source, family.name, error)) from error


def undrawn(config: ModelConfig, held: int, source: str) -> nn.Module:
    """The model of `config` with its weights undrawn, for a file of `held` bytes to fill.

    Its size is found without any memory first: a UserError where the file cannot hold that many numbers.
    """
    try:
        with torch.device("meta"):
            needed = sum(parameter.numel() for parameter in build(config, seed=None).parameters())
        if needed <= held * _PER_BYTE:
            return build(config, seed=None)
    except _NONSENSE as error:
        raise UserError(_unfit(source, "model", error)) from error
    raise UserError(
        f"{source}: the configuration asks for {needed} numbers, more than {held} bytes can hold; "
        "settings and weights do not belong together"
    )


def _unfit(source: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{source}: the settings fit no {name} ({reason}); get the file again"
