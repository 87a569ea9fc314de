"""The domains of headway: one package each, imported when one of its recipes or tasks is named.

A package lists the names of its RECIPES, which its module `recipes` builds, and its TASKS with the module that
registers each. VERBS are the model verbs it implements, each with the predicate of `headway.nn.models.kinds` that
selects the models; its module `predictors` has a function for each verb. SCALES in its module `recipes` describes how
auto-scaled recipes grow with data and time.
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
    from headway.learn.scale import Scale

_LOG = logger(__name__)


@cache
def homes() -> dict[str, str]:
    """Return the domain of each recipe, by name. Imports only the domains' names."""
    return {name: domain for domain in _domains() for name in import_module(f"{__name__}.{domain}").RECIPES}


@cache
def tasks() -> dict[str, str]:
    """Return the module that registers each kind of task."""
    packages = {domain: import_module(f"{__name__}.{domain}") for domain in _domains()}
    return {
        kind: f"{__name__}.{domain}.{module}"
        for domain, package in packages.items()
        for kind, module in package.TASKS.items()
    }


class Serves(NamedTuple):
    """A predictor of a verb: its module, and the predicate of `headway.nn.models.kinds` for the models it serves."""

    module: str
    question: str


@cache
def verbs() -> dict[str, tuple[Serves, ...]]:
    """Return the predictors of each verb."""
    found: dict[str, list[Serves]] = {}
    for domain in _domains():
        package = f"{__name__}.{domain}"
        for verb, question in getattr(import_module(package), "VERBS", {}).items():
            found.setdefault(verb, []).append(Serves(f"{package}.predictors", question))
    return {verb: tuple(serving) for verb, serving in found.items()}


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, without building models; domains that cannot be imported are left out."""
    found: dict[str, Recipe] = {}
    for domain in _domains():
        try:
            found |= {name: make() for name, make in _makers(domain).items()}
        except ImportError as error:
            _LOG.warning("the domain %s is not available: %s", domain, error)
    return found


def recipe(name: str) -> Recipe:
    """Return a recipe by name. Raises UserError with the closest name if it does not exist."""
    if name not in homes():
        raise UserError(f"there is no recipe {name!r}; {nearest(name, homes())}")
    return _makers(homes()[name])[name]()


def scale_of(name: str) -> Scale | None:
    """Return how the generic recipe of this name grows with data and time; None for a recipe of fixed size."""
    if name not in homes():
        return None
    return getattr(import_module(f"{__name__}.{homes()[name]}.recipes"), "SCALES", {}).get(name)


@cache
def _domains() -> tuple[str, ...]:
    for folder in __path__:
        os.scandir(folder).close()  # raises if too many files are open; pkgutil would find nothing
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


@cache
def _makers(domain: str) -> dict[str, Callable[[], Recipe]]:
    return {make().name: make for make in import_module(f"{__name__}.{domain}.recipes").RECIPES}


__all__ = ["Serves", "homes", "recipe", "recipes", "scale_of", "tasks", "verbs"]
