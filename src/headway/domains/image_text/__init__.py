"""Images and texts that say what they show: CLIP and SigLIP, and captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.image_text.caption import LONGEST, caption
    from headway.domains.image_text.caption_config import CaptionsConfig
    from headway.domains.image_text.data import Captions, read_captions
    from headway.domains.image_text.emoji import EmojiPairsConfig
    from headway.domains.image_text.task import ImageTextConfig, published_task
    from headway.domains.image_text.use import Image, Matches, embed, match

__all__ = [
    "LONGEST",
    "RECIPES",
    "TASKS",
    "Captions",
    "CaptionsConfig",
    "EmojiPairsConfig",
    "Image",
    "ImageTextConfig",
    "Matches",
    "caption",
    "embed",
    "match",
    "published_task",
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
lazily(
    __name__,
    {
        ".caption": ("LONGEST", "caption"),
        ".caption_config": ("CaptionsConfig",),
        ".data": ("Captions", "read_captions"),
        ".emoji": ("EmojiPairsConfig",),
        ".task": ("ImageTextConfig", "published_task"),
        ".use": ("Image", "Matches", "embed", "match"),
    },
)
