"""The package `gguf`, which is optional: it knows how blocks are quantised, and writes files."""

from __future__ import annotations

from types import ModuleType

from headway.errors import UserError


def gguf() -> ModuleType:
    try:
        import gguf as package
    except ImportError:
        raise UserError(
            "this .gguf file needs the package gguf, which is not installed; pip install 'headway[gguf]'"
        ) from None
    return package


def quants() -> ModuleType:
    return gguf().quants
