"""Models that answer: trained on conversations, and on preferences between two answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.chat.predictors import Talk

__all__ = ["RECIPES", "TASKS", "VERBS", "Talk"]
RECIPES = ("instruct", "preference")
TASKS = {"instruct": "task", "preference": "preference"}
VERBS = {"chat": "is_causal", "chat_stream": "is_causal", "talk": "is_causal"}
lazily(__name__, {".predictors": ("Talk",)})
