"""Published families, one file of rules each; `model_type` of a config.json finds them.

A family is a module here with a constant FAMILY, or FAMILIES where several share their rules.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from headway.checkpoints.rules import Family
from headway.checkpoints.settings import Settings
from headway.errors import UserError, nearest


@cache
def families() -> dict[str, Family]:
    """All families by their model_type."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        part = import_module(f"{__name__}.{module.name}")
        for family in getattr(part, "FAMILIES", None) or (part.FAMILY,):
            found[family.name] = family
    return found


def find_family(settings: Settings) -> Family:
    """The family of a config.json. Raises UserError for one that is not known, naming the known ones."""
    name = settings.get("model_type", str)
    known = families()
    if name not in known:
        listed = ", ".join(sorted(known))
        raise UserError(f"{settings.source}: there is no family {name!r}; {nearest(name, known)} (known: {listed})")
    return known[name]
