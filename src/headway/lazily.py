"""Packages that give names without importing what these are made of before they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from headway.collector import resting


def lazily(package: str, homes: Mapping[str, Sequence[str]]) -> None:
    """Have `package` find the names that its modules, `homes`, bring: {".use": ("classify",)}."""
    module = sys.modules[package]
    module.__dict__["_homes"] = {name: home for home, names in homes.items() for name in names}
    module.__class__ = _Lazy


class _Lazy(ModuleType):
    """A name that is given and that of a submodule may be the same, such as `fill`. Importing a submodule sets it as
    an attribute of its package, which would hide what is given: here it does not.
    """

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:  # as hasattr and copy ask
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with resting():
            value = getattr(import_module(self._homes[name], self.__name__), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
