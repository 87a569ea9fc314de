"""Language models of text: characters, bytes, words or subwords."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.text.task import LanguageConfig, NextToken, language_task

__all__ = ["RECIPES", "TASKS", "VERBS", "LanguageConfig", "NextToken", "language_task"]
RECIPES = ("shakespeare", "text")
TASKS = {"language": "task"}
VERBS = {
    "attention": "attends",
    "complete": "is_causal",
    "continuations": "is_causal",
    "evaluate": "is_causal",
    "generate": "is_causal",
    "generate_ids": "is_causal",
    "lens": "has_vocabulary",
    "logits": "has_vocabulary",
    "prompt_ids": "reads_prompts",
    "score": "is_causal",
    "session": "is_causal",
    "stream": "is_causal",
}
lazy_exports(__name__, {".task": ("LanguageConfig", "NextToken", "language_task")})
