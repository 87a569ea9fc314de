"""A module of the user's, in the folder that commands run from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def own_module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, with a module that can be imported anew."""
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    return folder
