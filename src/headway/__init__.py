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
    from headway.attending import Attention
    from headway.compare import Comparison, compare
    from headway.domains.audio import Segment, Transcribing, Transcription
    from headway.domains.image_text import Matches
    from headway.domains.masked import Candidate
    from headway.domains.understanding import TaggedWords
    from headway.domains.vision import Look
    from headway.errors import ConfigError, SomeFailedError, UserError
    from headway.exchange import Quantized, export, quantize
    from headway.fitting import Plan
    from headway.generate import Completion, Limits, Sampling, SearchConfig
    from headway.listing import presets, recipes
    from headway.train import Recipe, Run

__all__ = [
    "Attention",
    "Candidate",
    "Comparison",
    "Completion",
    "ConfigError",
    "Limits",
    "Look",
    "Matches",
    "Model",
    "Plan",
    "Quantized",
    "Recipe",
    "Run",
    "Sampling",
    "SearchConfig",
    "Segment",
    "SomeFailedError",
    "TaggedWords",
    "Transcribing",
    "Transcription",
    "UserError",
    "__version__",
    "compare",
    "export",
    "load",
    "plan",
    "presets",
    "quantize",
    "recipes",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "Model": "headway.api",
    "load": "headway.api",
    "plan": "headway.api",
    "train": "headway.api",
    "Comparison": "headway.compare",
    "compare": "headway.compare",
    "Segment": "headway.domains.audio",
    "Transcribing": "headway.domains.audio",
    "Transcription": "headway.domains.audio",
    "Matches": "headway.domains.image_text",
    "Candidate": "headway.domains.masked",
    "TaggedWords": "headway.domains.understanding",
    "Look": "headway.domains.vision",
    "ConfigError": "headway.errors",
    "SomeFailedError": "headway.errors",
    "UserError": "headway.errors",
    "Quantized": "headway.exchange",
    "export": "headway.exchange",
    "quantize": "headway.exchange",
    "Plan": "headway.fitting",
    "Completion": "headway.generate",
    "Limits": "headway.generate",
    "Sampling": "headway.generate",
    "SearchConfig": "headway.generate",
    "presets": "headway.listing",
    "recipes": "headway.listing",
    "Recipe": "headway.train",
    "Run": "headway.train",
    "Attention": "headway.attending",
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
    """Keeps `headway.train`, `compare` and `recipes` functions although submodules have the same names.

    Importing a submodule sets it as an attribute of its parent, which would hide the function after
    the first use. `from headway.train import Trainer` works all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
