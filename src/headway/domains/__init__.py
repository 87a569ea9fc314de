"""The domains that headway can learn: one folder per domain, imported when one of its recipes or tasks is named.

A folder's package lists its RECIPES, made by its module `recipes`, and its TASKS, each with the module that registers
it. If the domain implements verbs of a model, VERBS maps each to the predicate of `headway.nn.models.kinds` that
selects the models it supports; the module `predictors` has one function per verb. SCALES of the module `recipes` holds
the scaling rules of recipes that choose their own size.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from headway.errors import UserError, logger, nearest

if TYPE_CHECKING:  # torch takes seconds to import; a program that plays chess must answer sooner
    from headway.learn import Recipe
    from headway.learn.scale import Scale

_LOG = logger(__name__)


@cache
def homes() -> dict[str, str]:
    """The domain of each recipe, by its name. Imports only the names of a domain."""
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


class Serves(NamedTuple):
    """The module with the predictor of a verb, for models that satisfy a predicate of `headway.nn.models.kinds`."""

    module: str
    question: str


@cache
def verbs() -> dict[str, tuple[Serves, ...]]:
    """The providers of each verb of a model."""
    found: dict[str, list[Serves]] = {}
    for domain in _domains():
        package = f"{__name__}.{domain}"
        for verb, question in getattr(import_module(package), "VERBS", {}).items():
            found.setdefault(verb, []).append(Serves(f"{package}.predictors", question))
    return {verb: tuple(serving) for verb, serving in found.items()}


def recipes() -> dict[str, Recipe]:
    """All recipes by name, without those of domains that cannot be imported. Builds no model."""
    found: dict[str, Recipe] = {}
    for domain in _domains():
        try:
            found |= {name: make() for name, make in _makers(domain).items()}
        except ImportError as error:
            _LOG.warning("cannot import the domain %s: %s", domain, error)
    return found


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises UserError with the nearest name if there is no such recipe."""
    if name not in homes():
        raise UserError(f"there is no recipe {name!r}; {nearest(name, homes())}")
    return _makers(homes()[name])[name]()


def scale_of(name: str) -> Scale | None:
    """How the generic recipe of this name scales with data and time; None if its size is fixed."""
    if name not in homes():
        return None
    return getattr(import_module(f"{__name__}.{homes()[name]}.recipes"), "SCALES", {}).get(name)


@cache
def _domains() -> tuple[str, ...]:
    for folder in __path__:
        os.scandir(folder).close()  # raises if no more files can be opened; pkgutil would silently return nothing
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


@cache
def _makers(domain: str) -> dict[str, Callable[[], Recipe]]:
    return {make().name: make for make in import_module(f"{__name__}.{domain}.recipes").RECIPES}


__all__ = ["Serves", "homes", "recipe", "recipes", "scale_of", "tasks", "verbs"]
