"""The domains of headway. Each is a package that is imported when one of its recipes or tasks is named.

Each package lists in RECIPES the names of the recipes that its `recipes` module builds, and in TASKS the module that
registers each task. VERBS maps each model verb that it implements to the predicate in `headway.nn.models.kinds` that
selects suitable models; its `predictors` module has a function for each verb. SCALES in its `recipes` module describes
how auto-scaled recipes grow with data and time.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from headway.errors import UserError, logger, nearest

if TYPE_CHECKING:  # torch takes seconds to import, and a chess engine must answer sooner
    from headway.learn import Recipe
    from headway.learn.scaling import Scale

_LOG = logger(__name__)


@cache
def recipe_domains() -> dict[str, str]:
    """The domain of each recipe, by recipe name. Imports only the name lists of the domains."""
    return {name: domain for domain in _domains() for name in import_module(f"{__name__}.{domain}").RECIPES}


@cache
def tasks() -> dict[str, str]:
    """The module that registers each kind of task."""
    packages = {domain: import_module(f"{__name__}.{domain}") for domain in _domains()}
    return {
        kind: f"{__name__}.{domain}.{module}"
        for domain, package in packages.items()
        for kind, module in package.TASKS.items()
    }


class VerbProvider(NamedTuple):
    """The module that implements a verb for models that satisfy a predicate in `headway.nn.models.kinds`."""

    module: str
    predicate: str


@cache
def verbs() -> dict[str, tuple[VerbProvider, ...]]:
    """The providers of each model verb."""
    providers: dict[str, list[VerbProvider]] = {}
    for domain in _domains():
        package = f"{__name__}.{domain}"
        for verb, predicate in getattr(import_module(package), "VERBS", {}).items():
            providers.setdefault(verb, []).append(VerbProvider(f"{package}.predictors", predicate))
    return {verb: tuple(verb_providers) for verb, verb_providers in providers.items()}


def recipes() -> dict[str, Recipe]:
    """All recipes by name, except those from domains that cannot be imported. Does not build models."""
    all_recipes: dict[str, Recipe] = {}
    for domain in _domains():
        try:
            all_recipes |= {name: make() for name, make in _makers(domain).items()}
        except ImportError as error:
            _LOG.warning("cannot import domain %s: %s", domain, error)
    return all_recipes


def recipe(name: str) -> Recipe:
    """The recipe with this name. Raises UserError that suggests the nearest name if it does not exist."""
    if name not in recipe_domains():
        raise UserError(f"there is no recipe {name!r}; {nearest(name, recipe_domains())}")
    return _makers(recipe_domains()[name])[name]()


def scale_of(name: str) -> Scale | None:
    """How the generic recipe with this name grows with data and time; None for a recipe of fixed size."""
    if name not in recipe_domains():
        return None
    return getattr(import_module(f"{__name__}.{recipe_domains()[name]}.recipes"), "SCALES", {}).get(name)


@cache
def _domains() -> tuple[str, ...]:
    for folder in __path__:
        os.scandir(folder).close()  # raises if no more files can be opened; pkgutil would silently find nothing
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


@cache
def _makers(domain: str) -> dict[str, Callable[[], Recipe]]:
    return {make().name: make for make in import_module(f"{__name__}.{domain}.recipes").RECIPES}


__all__ = ["VerbProvider", "recipe", "recipe_domains", "recipes", "scale_of", "tasks", "verbs"]
