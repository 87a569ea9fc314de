"""Models that answer: taught by conversations, and by choices between two answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.chat.config import ChatConfig, InstructConfig, PreferenceConfig
    from headway.domains.chat.talk import Talk

__all__ = ["RECIPES", "TASKS", "VERBS", "ChatConfig", "InstructConfig", "PreferenceConfig", "Talk"]
RECIPES = ("instruct", "preference")
TASKS = {"instruct": "config", "preference": "config"}
VERBS = {"chat": "is_causal", "chat_stream": "is_causal", "talk": "is_causal"}
lazily(__name__, {".config": ("ChatConfig", "InstructConfig", "PreferenceConfig"), ".talk": ("Talk",)})
