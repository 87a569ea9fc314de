"""Functions and classes of the user's own modules, which only the user may name: importing them runs their code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

from headway.errors import UserError, nearest


def import_user_callable(name: str, noun: str, missing_is_none: bool = False) -> Callable[..., Any] | None:
    """Import the user's module:name, from the current folder or an installed module. Other files of the folder replace
    no modules with their names.
    """
    module, _, attribute = name.partition(":")
    package, folder = module.partition(".")[0], os.getcwd()
    if package != "headway" and folder not in sys.path:
        sys.path.append(folder)
    try:
        spec = None if package in sys.modules else PathFinder.find_spec(package, [folder])
        if spec is not None and spec.loader is not None:  # the folder is the last one in which `import_module` looks
            sys.modules[package] = module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[package])
            except BaseException:
                del sys.modules[package]
                raise
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
