"""Functions and classes of the user's own modules, which only the user may name: importing them runs their code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from headway.errors import UserError, nearest


def import_user_callable(name: str, noun: str, missing_is_none: bool = False) -> Callable[..., Any] | None:
    """Import the user's module:name, from the current folder or an installed module."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        imported = import_module(module)
    except Exception as error:  # a module may raise anything
        raise UserError(
            f"{noun} {name!r}: the module {module!r} cannot be imported ({first_line(error)}); "
            "run from the folder that contains it, or install it"
        ) from error
    target = getattr(imported, attribute, None)
    if target is None and not missing_is_none:
        raise UserError(f"the module {module!r} has no {attribute!r}; {nearest(attribute, dir(imported))}")
    if target is not None and not callable(target):
        raise UserError(
            f"{noun} {name!r} is a {type(target).__name__}, which is not callable; name a class or a function"
        )
    return target


def first_line(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error) or type(error).__name__).split("\n")[0].rstrip(". ")
