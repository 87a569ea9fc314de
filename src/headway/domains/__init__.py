"""What headway can learn: a folder for each domain, and the recipes of all of them by name."""

from __future__ import annotations

from collections.abc import Callable

from headway.domains import text, translation
from headway.errors import UserError, nearest
from headway.train import Recipe

_MAKERS: dict[str, Callable[[], Recipe]] = {
    maker.__name__.replace("_", "-"): maker for maker in (*text.RECIPES, *translation.RECIPES)
}


def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order in which they are listed. No model is built."""
    return {name: make() for name, make in _MAKERS.items()}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises UserError with the nearest name for one that does not exist."""
    if name not in _MAKERS:
        raise UserError(f"there is no recipe {name!r}; {nearest(name, _MAKERS)}")
    return _MAKERS[name]()


__all__ = ["recipe", "recipes"]
