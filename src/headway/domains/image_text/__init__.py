"""Images and their texts: CLIP, SigLIP and image captioning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.image_text.pair_inference import Image, Matches

__all__ = ["RECIPES", "TASKS", "VERBS", "Image", "Matches"]
RECIPES = ("image-text", "emoji-clip", "caption", "scenes", "emoji-caption")
TASKS = {
    "captions": "captioning",
    "emoji": "emoji",
    "emoji_captions": "captioning",
    "image_text": "task",
    "scenes": "captioning",
}
VERBS = {"caption": "is_captioner", "embed": "is_two_tower", "evaluate": "is_two_tower", "match": "is_two_tower"}
lazy_exports(__name__, {".pair_inference": ("Image", "Matches")})
