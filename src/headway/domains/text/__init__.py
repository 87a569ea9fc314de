"""Language models of text: characters, bytes, words or subwords."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.text.task import LanguageConfig, NextToken, language_task

__all__ = ["RECIPES", "TASKS", "LanguageConfig", "NextToken", "language_task"]
RECIPES = ("shakespeare", "text")
TASKS = {"language": "task"}
lazily(__name__, {".task": ("LanguageConfig", "NextToken", "language_task")})
