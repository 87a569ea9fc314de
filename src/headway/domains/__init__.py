"""What headway can learn: a folder for each domain, and the recipes of all of them by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from headway.errors import UserError, nearest

if TYPE_CHECKING:  # torch takes seconds to import, and a program that plays chess is to answer before
    from headway.train import Recipe
    from headway.train.scale import Scale


@cache
def _makers() -> dict[str, Callable[[], Recipe]]:
    """Every folder here has its own in `recipes.RECIPES`; to import them registers their kinds of tasks."""
    found: dict[str, Callable[[], Recipe]] = {}
    for module in pkgutil.iter_modules(__path__):
        for make in import_module(f"{__name__}.{module.name}.recipes").RECIPES:
            found[make().name] = make
    return found


def recipes() -> dict[str, Recipe]:
    """All recipes by name. No model is built."""
    return {name: make() for name, make in _makers().items()}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises UserError with the nearest name for one that does not exist."""
    if name not in _makers():
        raise UserError(f"there is no recipe {name!r}; {nearest(name, _makers())}")
    return _makers()[name]()


def scale_of(name: str) -> Scale | None:
    """How the generic recipe of this name grows with data and time; None for one whose size is its own."""
    return _scales().get(name)


@cache
def _scales() -> dict[str, Scale]:
    """Those of the folders that have a module `scale` with SCALES."""
    found: dict[str, Scale] = {}
    for module in pkgutil.iter_modules(__path__):
        name = f"{__name__}.{module.name}.scale"
        if find_spec(name) is not None:
            found |= import_module(name).SCALES
    return found


__all__ = ["recipe", "recipes", "scale_of"]
