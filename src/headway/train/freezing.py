"""Which weights of a model are trained: those of its adapter, or all but those that a recipe freezes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from headway.errors import ConfigError, nearest
from headway.train.adapters import adapted
from headway.train.recipe import Recipe


def prepared(model: nn.Module, recipe: Recipe, fresh: Collection[str]) -> nn.Module:
    """`model` as the recipe trains it: with its adapter, beside which the parameters `fresh` are trained, and without
    what `train.frozen` names.
    """
    return freeze(adapted(model, recipe.adapter, fresh, recipe.train.seed), recipe.train.frozen)


def freeze(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Train no parameter that one of `names` means: a part of the model ("tower", "decoder.stack"), a parameter, or a
    pattern of either ("*.bias"). ConfigError for a name that means none.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        meant = [parameter for key, parameter in parameters.items() if _means(name, key)]
        if not meant:
            known = nearest(name, sorted({part for key in parameters for part in _parts(key)}))
            raise ConfigError(f"train.frozen: the model has no part {name!r}; {known}")
        for parameter in meant:
            parameter.requires_grad_(False)
    return model


def _means(name: str, key: str) -> bool:
    return any(fnmatchcase(part, name) for part in _parts(key))


def _parts(key: str) -> Iterable[str]:
    """A parameter and the parts of the model that hold it: decoder, decoder.stack, ..."""
    words = key.split(".")
    return (".".join(words[:count]) for count in range(1, len(words) + 1))
