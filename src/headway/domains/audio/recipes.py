"""The recipes of the domain; docs/decisions/0010 says which are to come."""

from __future__ import annotations

from collections.abc import Callable

from headway.train import Recipe

RECIPES: tuple[Callable[[], Recipe], ...] = ()
