"""Images: classification, embeddings, and attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.vision.looking import Look
    from headway.domains.vision.use import Image, embed

__all__ = ["RECIPES", "TASKS", "VERBS", "Image", "Look", "embed"]
RECIPES = ("vision", "fashion-mnist", "digits")
TASKS = {"vision": "task"}
VERBS = {"classify": "is_vision_classifier", "embed": "is_vision", "look": "is_vision"}
lazily(__name__, {".looking": ("Look",), ".use": ("Image", "embed")})
