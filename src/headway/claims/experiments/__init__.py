"""The experiments, one module each with a constant CLAIM. They are discovered without registration."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module

from headway.claims.claim import Claim
from headway.errors import UserError, nearest


@cache
def claims() -> dict[str, Claim]:
    """All claims by name, in numerical order."""
    all_claims = [import_module(f"{__name__}.{module.name}").CLAIM for module in pkgutil.iter_modules(__path__)]
    return {claim.name: claim for claim in sorted(all_claims, key=lambda claim: claim.number)}


def select_claims(names: Sequence[str]) -> list[Claim]:
    """The claims with these names or numbers, or all claims if there are none. Raises UserError with the nearest
    name.
    """
    known = claims()
    names_by_number = {str(claim.number): claim.name for claim in known.values()}
    selected = []
    for name in names or known:
        full_name = names_by_number.get(name, name)
        if full_name not in known:
            raise UserError(f"unknown claim {name!r}; {nearest(name, known)}")
        selected.append(known[full_name])
    return list(dict.fromkeys(selected))
