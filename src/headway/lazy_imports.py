"""Lazy imports: a package exports names and imports their modules at first use, with the garbage collector paused."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector inside the context. Importing torch and building a model creates hundreds of
    thousands of permanent objects; scanning them for garbage takes a fifth of a process's startup time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def lazy_exports(package: str, exports: Mapping[str, Sequence[str]]) -> None:
    """Let `package` export the names that its submodules define: {".use": ("classify",)}."""
    module = sys.modules[package]
    module.__dict__["_homes"] = {name: submodule for submodule, names in exports.items() for name in names}
    module.__class__ = _LazyModule


class _LazyModule(ModuleType):
    """A module with lazy exports. An export may have the name of a submodule, such as `fill`; importing the submodule
    sets an attribute of the package, which must not hide the export.
    """

    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:  # e.g. for hasattr and copy
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with gc_paused():
            value = getattr(import_module(self._homes[name], self.__name__), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
