"""From what a file says of itself to a model with room for its weights: nothing it says is believed unchecked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from headway.errors import UserError
from headway.memory import check_room
from headway.models import ModelConfig, build

if TYPE_CHECKING:  # of published models, and our own are read by this too
    from headway.checkpoints.rules import Family
    from headway.checkpoints.settings import Settings

_DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_DEPTHS += ("n_encoder_layers", "n_decoder_layers", "n_vae_encoder_layers")
_DEPTHS += ("n_layer", "n_layers")  # settings that say how many layers there are
_EXPERTS, _MOST_EXPERTS = ("num_local_experts", "num_experts"), 1024
_PER_BYTE = 4  # numbers that one byte of a file may hold: more than any quantisation packs
_NONSENSE = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)


def read_config(family: Family, settings: Settings, names: Collection[str]) -> ModelConfig:
    """The configuration that a file's settings mean. UserError where they fit no model (0 heads, say)."""
    _check_counts(settings, len(names))
    try:
        return family.read(settings, names)
    except _NONSENSE as error:
        raise UserError(_unfit(settings.source, family.name, error)) from error


def _check_counts(settings: Settings, tensors: int) -> None:
    """What decides how many modules are made must be in proportion to the file."""
    towers = (part for part in settings.values.values() if isinstance(part, Mapping))  # of a model of several
    for values in (settings.values, *towers):
        for name in (*_DEPTHS, *_EXPERTS):
            count, most = values.get(name), _MOST_EXPERTS if name in _EXPERTS else tensors
            if isinstance(count, int) and count > most:
                raise UserError(
                    f"{settings.source}: {name} is {count}, too many for the {tensors} tensors that there are; "
                    "settings and weights do not belong together"
                )


def undrawn(config: ModelConfig, held: int, source: str, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of `config` with its weights undrawn, for a file of `held` bytes to fill in `dtype` (None: as stored).

    Its size is found without any memory first: a UserError where the file cannot hold that many numbers, or the memory
    that is free cannot.
    """
    try:
        with torch.device("meta"):
            needed = _numbers(build(config, seed=None))
        if needed <= held * _PER_BYTE:
            check_loading(source, held if dtype is None else needed * dtype.itemsize, dtype)
            return build(config, seed=None)
    except _NONSENSE as error:
        raise UserError(_unfit(source, "model", error)) from error
    raise UserError(
        f"{source}: the configuration asks for {needed} numbers, more than {held} bytes can hold; "
        "settings and weights do not belong together"
    )


def _numbers(model: nn.Module) -> int:
    """Of all that a file holds of a model, tied weights once."""
    return sum({id(each): each.numel() for each in model.state_dict(keep_vars=True).values()}.values())


def check_loading(source: str, size: int, dtype: torch.dtype | None) -> None:
    """UserError for weights of `size` bytes in `dtype` that do not fit into the memory that is free."""
    remedy = "use a machine with more, or a smaller model"
    if dtype == torch.float32:
        remedy = "open it in half of that with headway.checkpoints.open.open_model(path, torch.bfloat16), or " + remedy
    check_room(f"{source}", {"weights": size}, torch.device("cpu"), remedy)


def _unfit(source: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{source}: the settings fit no {name} ({reason}); get the file again"
