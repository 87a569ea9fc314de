"""Images: classification, embeddings, attention maps, and learning from unlabelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.vision.attribution import ImageAttention
    from headway.predict.image_inputs import Image

__all__ = ["RECIPES", "TASKS", "VERBS", "Image", "ImageAttention"]
RECIPES = ("vision", "fashion-mnist", "digits", "masked-images")
TASKS = {"vision": "task", "masked_images": "masked_images"}
VERBS = {"classify": "is_vision_classifier", "embed": "is_vision", "look": "is_vision"}
lazy_exports(__name__, {".attribution": ("Image", "ImageAttention")})
