"""Published families, one file of rules each, looked up by the `model_type` of a config.json.

A family is a module here with a constant FAMILY, or FAMILIES if several share their rules.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from headway.errors import UserError, nearest
from headway.formats.lerobot import POLICIES
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family


@cache
def families() -> dict[str, Family]:
    """Return all families by model_type."""
    by_name: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        part = import_module(f"{__name__}.{module.name}")
        for family in getattr(part, "FAMILIES", None) or (part.FAMILY,):
            by_name[family.name] = family
    return by_name


def find_family(settings: Settings) -> Family:
    """Return the family of a config.json. Raises UserError for an unknown one, listing the known ones."""
    known = families()
    if "model_type" not in settings and "type" in settings:  # LeRobot's name for it
        name = settings.get("type", str)
        if name not in POLICIES:
            raise UserError(
                f"{settings.source}: policies of type {name!r} are not supported; use {' or '.join(POLICIES)}"
            )
        return known[name]
    name = settings.get("model_type", str)
    if name not in known:
        listed = ", ".join(sorted(known))
        raise UserError(f"{settings.source}: unknown family {name!r}; {nearest(name, known)} (known: {listed})")
    return known[name]
