"""The domains of headway. Each is a package that is imported when one of its recipes or tasks is named.

Each package lists in RECIPES the names of the recipes that its `recipes` module builds, and in TASKS the module that
registers each task. VERBS maps each model verb that it implements to the predicate in `headway.nn.models.kinds` that
selects suitable models; its `predictors` module has a function for each verb. SCALES in its `recipes` module describes
how auto-scaled recipes grow with data and time, and PRETRAINING how recipes are trained on unlabelled data first.

A domain may be in another Python package, whose entry points name its recipes and tasks:

    [project.entry-points."headway.domains"]
    tides = "headway_tides"

The package is imported when a recipe or a recipe.json uses one of these names, or when all recipes are listed.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple

from headway.errors import UserError, logger, nearest

if TYPE_CHECKING:  # torch takes seconds to import, and a chess engine must answer sooner
    from headway.learn import Recipe
    from headway.learn.plan.scale import Scale
    from headway.learn.pretraining import Pretraining

_LOG = logger(__name__)


@cache
def recipe_domains() -> dict[str, str]:
    """The domain of each recipe, by recipe name. Imports only the name lists of the built-in domains, so it also has
    the task names of domains in other packages, which are called by their package.
    """
    names = {name: domain for domain in _domains() for name in import_module(_package(domain)).RECIPES}
    return {**_external_names(), **names}


@cache
def tasks() -> dict[str, str]:
    """The module that registers each kind of task; in another package, its recipes do."""
    modules = {name: f"{package}.recipes" for name, package in _external_names().items()}
    for domain in _domains():
        package = _package(domain)
        modules |= {kind: f"{package}.{module}" for kind, module in import_module(package).TASKS.items()}
    return modules


class VerbProvider(NamedTuple):
    """The module that implements a verb for models that satisfy a predicate in `headway.nn.models.kinds`."""

    module: str
    predicate: str


def verbs() -> dict[str, tuple[VerbProvider, ...]]:
    """The providers of each model verb, in the built-in domains and in those that are imported from other packages."""
    external = [package for package in dict.fromkeys(_external_names().values()) if package in sys.modules]
    return _verbs((*_domains(), *external))


@cache
def _verbs(domains: tuple[str, ...]) -> dict[str, tuple[VerbProvider, ...]]:
    providers: dict[str, tuple[VerbProvider, ...]] = {}
    for package in map(_package, domains):
        for verb, predicate in getattr(import_module(package), "VERBS", {}).items():
            providers[verb] = (*providers.get(verb, ()), VerbProvider(f"{package}.predictors", predicate))
    return providers


def recipes() -> dict[str, Recipe]:
    """All recipes by name, except those from domains that cannot be imported. Does not build models."""
    all_recipes: dict[str, Recipe] = {}
    for domain in dict.fromkeys((*_external_names().values(), *_domains())):
        try:
            all_recipes |= {name: make() for name, make in _makers(domain).items()}
        except ImportError as error:
            _LOG.warning("cannot import domain %s: %s", domain, error)
    return all_recipes


def recipe(name: str) -> Recipe:
    """The recipe with this name. Raises UserError that suggests the nearest name if it does not exist."""
    if name not in recipe_domains():
        raise UserError(f"there is no recipe {name!r}; {nearest(name, recipe_domains())}")
    makers = _makers(recipe_domains()[name])
    if name not in makers:
        raise UserError(f"{name!r} is a task of {recipe_domains()[name]}, not a recipe; {nearest(name, makers)}")
    return makers[name]()


def scale_of(name: str) -> Scale | None:
    """How the generic recipe with this name grows with data and time; None for a recipe of fixed size."""
    if name not in recipe_domains():
        return None
    return getattr(import_module(f"{_package(recipe_domains()[name])}.recipes"), "SCALES", {}).get(name)


def pretraining_of(name: str) -> Pretraining | None:
    """How the recipe with this name is pre-trained; None if it cannot be."""
    if name not in recipe_domains():
        return None
    return getattr(import_module(f"{_package(recipe_domains()[name])}.recipes"), "PRETRAINING", {}).get(name)


@cache
def _domains() -> tuple[str, ...]:
    for folder in __path__:
        os.scandir(folder).close()  # raises if no more files can be opened; pkgutil would silently find nothing
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


@cache
def _external_names() -> dict[str, str]:
    """The package of each recipe and task in other packages."""
    return {entry.name: entry.value for entry in entry_points(group=__name__)}


def _package(domain: str) -> str:
    return f"{__name__}.{domain}" if domain in _domains() else domain


@cache
def _makers(domain: str) -> dict[str, Callable[[], Recipe]]:
    return {make().name: make for make in import_module(f"{_package(domain)}.recipes").RECIPES}


__all__ = ["VerbProvider", "pretraining_of", "recipe", "recipe_domains", "recipes", "scale_of", "tasks", "verbs"]
