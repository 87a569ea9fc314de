"""Images and their texts: CLIP, SigLIP and image captioning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.image_text.captioned_images import Captions, read_captions
    from headway.domains.image_text.emoji import EmojiPairsConfig
    from headway.domains.image_text.pair_inference import Image, Matches
    from headway.domains.image_text.task import ImageTextConfig

__all__ = [
    "RECIPES",
    "TASKS",
    "VERBS",
    "Captions",
    "EmojiPairsConfig",
    "Image",
    "ImageTextConfig",
    "Matches",
    "read_captions",
]
RECIPES = ("image-text", "emoji-clip", "caption", "scenes", "emoji-caption")
TASKS = {
    "captions": "caption_config",
    "emoji": "emoji",
    "emoji_captions": "caption_config",
    "image_text": "task",
    "scenes": "caption_config",
}
VERBS = {"caption": "is_captioner", "embed": "is_two_tower", "evaluate": "is_two_tower", "match": "is_two_tower"}
lazy_exports(
    __name__,
    {
        ".captioned_images": ("Captions", "read_captions"),
        ".emoji": ("EmojiPairsConfig",),
        ".task": ("ImageTextConfig",),
        ".pair_inference": ("Image", "Matches"),
    },
)
