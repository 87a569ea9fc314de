"""Train, check, run and serve the whole transformer family and its ancestors from one small codebase.

    import headway as hw

    run = hw.train("shakespeare", minutes=5)
    model = hw.load("runs/shakespeare")
    print(model.generate("ROMEO:", max_new_tokens=100, temperature=0.8))

Importing the package is light: torch is loaded when one of these names is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.api import Model, load, plan, train
    from headway.errors import ConfigError, UserError
    from headway.train import Run

__all__ = ["ConfigError", "Model", "Run", "UserError", "__version__", "load", "plan", "train"]
__version__ = "0.1.0"

_HOMES = {
    "train": "headway.api",
    "load": "headway.api",
    "plan": "headway.api",
    "Model": "headway.api",
    "Run": "headway.train",
    "UserError": "headway.errors",
    "ConfigError": "headway.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headway' has no attribute {name!r}")
    from importlib import import_module

    from headway.collector import resting

    with resting():
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Face(ModuleType):
    """Keeps `headway.train` the function although a subpackage has the same name.

    Importing a subpackage sets it as an attribute of its parent, which would hide the function after
    the first use. `from headway.train import Trainer` works all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
