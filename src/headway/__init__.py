"""Train, check, run and serve the transformer family and its ancestors from one small codebase.

    import headway as hw

    run = hw.train("shakespeare", minutes=5)
    model = hw.load("runs/shakespeare")
    print(model.generate("ROMEO:", max_new_tokens=100, temperature=0.8))

Importing the package is fast: torch is imported when one of these names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.app.api import plan, plan_gpus, train
    from headway.app.compare import Comparison, compare
    from headway.app.conversion import QuantizationResult, export, quantize
    from headway.app.loading import load
    from headway.app.model import Model
    from headway.app.recipes import presets, recipes
    from headway.app.remote import RemoteModel, connect
    from headway.app.verification import Verification, verify
    from headway.codecs import Codec
    from headway.domains.agents.agent_policy import AgentPolicy
    from headway.domains.audio import Segment, Transcription, TranscriptionOptions
    from headway.domains.audio.transcriber import Transcriber
    from headway.domains.chat.predictors import Conversation
    from headway.domains.chess.games import ChessGame, ChessMove
    from headway.domains.chess.player import ChessPlayer
    from headway.domains.forecast.predictors import Forecast
    from headway.domains.image_text import Matches
    from headway.domains.masked import Candidate
    from headway.domains.robotics.policy import RobotController
    from headway.domains.understanding import Answer, RankedDocument, TaggedWords
    from headway.domains.vision import ImageAttention
    from headway.errors import ConfigError, PartialFailureError, UserError
    from headway.generate import Completion, Limits, Sampling, SearchConfig, Session
    from headway.learn import Recipe, Run
    from headway.learn.plan.plans import Plan
    from headway.predict.attention_maps import Attention
    from headway.predict.logit_lens import Lens

__all__ = [
    "AgentPolicy",
    "Answer",
    "Attention",
    "Candidate",
    "ChessGame",
    "ChessMove",
    "ChessPlayer",
    "Codec",
    "Comparison",
    "Completion",
    "ConfigError",
    "Conversation",
    "Forecast",
    "ImageAttention",
    "Lens",
    "Limits",
    "Matches",
    "Model",
    "PartialFailureError",
    "Plan",
    "QuantizationResult",
    "RankedDocument",
    "Recipe",
    "RemoteModel",
    "RobotController",
    "Run",
    "Sampling",
    "SearchConfig",
    "Segment",
    "Session",
    "TaggedWords",
    "Transcriber",
    "Transcription",
    "TranscriptionOptions",
    "UserError",
    "Verification",
    "__version__",
    "compare",
    "connect",
    "export",
    "load",
    "plan",
    "plan_gpus",
    "presets",
    "quantize",
    "recipes",
    "train",
    "verify",
]
__version__ = "0.1.0"

lazy_exports(
    __name__,
    {
        ".app.api": ("plan", "plan_gpus", "train"),
        ".app.compare": ("Comparison", "compare"),
        ".codecs": ("Codec",),
        ".domains.agents.agent_policy": ("AgentPolicy",),
        ".domains.audio.transcriber": ("Transcriber",),
        ".domains.chat.predictors": ("Conversation",),
        ".domains.chess.games": ("ChessGame", "ChessMove"),
        ".domains.chess.player": ("ChessPlayer",),
        ".domains.forecast.predictors": ("Forecast",),
        ".domains.robotics.policy": ("RobotController",),
        ".domains.audio": ("Segment", "TranscriptionOptions", "Transcription"),
        ".domains.image_text": ("Matches",),
        ".domains.masked": ("Candidate",),
        ".domains.understanding": ("Answer", "RankedDocument", "TaggedWords"),
        ".domains.vision": ("ImageAttention",),
        ".errors": ("ConfigError", "PartialFailureError", "UserError"),
        ".app.conversion": ("QuantizationResult", "export", "quantize"),
        ".learn.plan.plans": ("Plan",),
        ".generate": ("Completion", "Limits", "Sampling", "SearchConfig", "Session"),
        ".app.loading": ("load",),
        ".app.model": ("Model",),
        ".app.remote": ("RemoteModel", "connect"),
        ".app.recipes": ("presets", "recipes"),
        ".learn": ("Recipe", "Run"),
        ".predict.attention_maps": ("Attention",),
        ".predict.logit_lens": ("Lens",),
        ".app.verification": ("Verification", "verify"),
    },
)
