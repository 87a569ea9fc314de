"""Images and texts that say what they show: CLIP and SigLIP, and captions."""

from headway.domains.image_text.caption import caption
from headway.domains.image_text.caption_config import CaptionsConfig
from headway.domains.image_text.config import ImageTextConfig
from headway.domains.image_text.data import Captions, read_captions
from headway.domains.image_text.emoji import EmojiConfig
from headway.domains.image_text.recipes import RECIPES
from headway.domains.image_text.task import ImageText, published_task
from headway.domains.image_text.use import Image, Matches, embed, match

__all__ = [
    "RECIPES",
    "Captions",
    "CaptionsConfig",
    "EmojiConfig",
    "Image",
    "ImageText",
    "ImageTextConfig",
    "Matches",
    "caption",
    "embed",
    "match",
    "published_task",
    "read_captions",
]
