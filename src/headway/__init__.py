"""Train, check, run and serve the transformer family and its ancestors from one small codebase.

    import headway as hw

    run = hw.train("shakespeare", minutes=5)
    model = hw.load("runs/shakespeare")
    print(model.generate("ROMEO:", max_new_tokens=100, temperature=0.8))

Importing the package is fast: torch is imported when one of these names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.app.api import plan, train
    from headway.app.compare import Comparison, compare
    from headway.app.exchange import Quantized, export, quantize
    from headway.app.fitting import Plan
    from headway.app.loading import load
    from headway.app.model import Model
    from headway.app.recipes import presets, recipes
    from headway.app.remote import RemoteModel, connect
    from headway.attending import Attention
    from headway.domains.audio import Segment, Transcribing, Transcription
    from headway.domains.image_text import Matches
    from headway.domains.masked import Candidate
    from headway.domains.understanding import RankedDocument, TaggedWords
    from headway.domains.vision import Look
    from headway.errors import ConfigError, SomeFailedError, UserError
    from headway.generate import Completion, Limits, Sampling, SearchConfig
    from headway.learn import Recipe, Run
    from headway.verification import Verified, verify

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
    "RankedDocument",
    "Recipe",
    "RemoteModel",
    "Run",
    "Sampling",
    "SearchConfig",
    "Segment",
    "SomeFailedError",
    "TaggedWords",
    "Transcribing",
    "Transcription",
    "UserError",
    "Verified",
    "__version__",
    "compare",
    "connect",
    "export",
    "load",
    "plan",
    "presets",
    "quantize",
    "recipes",
    "train",
    "verify",
]
__version__ = "0.1.0"

lazily(
    __name__,
    {
        ".app.api": (
            "plan",
            "train",
        ),
        ".app.compare": (
            "Comparison",
            "compare",
        ),
        ".domains.audio": (
            "Segment",
            "Transcribing",
            "Transcription",
        ),
        ".domains.image_text": ("Matches",),
        ".domains.masked": ("Candidate",),
        ".domains.understanding": ("RankedDocument", "TaggedWords"),
        ".domains.vision": ("Look",),
        ".errors": (
            "ConfigError",
            "SomeFailedError",
            "UserError",
        ),
        ".app.exchange": (
            "Quantized",
            "export",
            "quantize",
        ),
        ".app.fitting": ("Plan",),
        ".generate": (
            "Completion",
            "Limits",
            "Sampling",
            "SearchConfig",
        ),
        ".app.loading": ("load",),
        ".app.model": ("Model",),
        ".app.remote": (
            "RemoteModel",
            "connect",
        ),
        ".app.recipes": (
            "presets",
            "recipes",
        ),
        ".learn": (
            "Recipe",
            "Run",
        ),
        ".attending": ("Attention",),
        ".verification": (
            "Verified",
            "verify",
        ),
    },
)
