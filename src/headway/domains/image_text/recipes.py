"""Recipes of images and texts."""

from __future__ import annotations

from dataclasses import replace

from headway.domains.image_text.augment import ImageMovesConfig
from headway.domains.image_text.caption_recipes import CAPTIONS
from headway.domains.image_text.emoji import EmojiPairsConfig
from headway.domains.image_text.task import ImageTextConfig
from headway.models import TwoTowerConfig
from headway.models.clip import clip
from headway.parts.init import InitConfig
from headway.train import CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig

SCHEDULE = CosineConfig(warmup=0.05, floor=0.0)


def towers(width: int, depth: int, heads: int, patch: int, size: int, dropout: float = 0.1) -> TwoTowerConfig:
    """Small towers for those who start from scratch. With weights of the usual 0.02 their vectors would be all but
    equal (a mean cosine of 0.9998 between emoji), and so would gradients.
    """
    sizes = (width, depth, heads)
    model = clip(sizes, sizes, width, patch, size, 1, 64, dropout)
    init = InitConfig(matrices="fan_in", residual="same", embedding=None)
    return replace(model, left=replace(model.left, init=init), right=replace(model.right, init=init))


def image_text() -> Recipe:
    """Any images with captions."""
    return Recipe(
        name="image-text",
        domain="image_text",
        description="any images with captions: .csv, .tsv or .jsonl with path and caption (and language)",
        data=(),
        model=towers(192, 4, 3, 16, 96),
        task=ImageTextConfig(augment=ImageMovesConfig(shift=0.1, zoom=0.1)),
        optim=MuonConfig(lr=0.02, weight_decay=0.05, adam_lr=2e-3, adam_betas=(0.9, 0.98)),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=2000, batch_size=64),
        expected="an hour from scratch for some thousand images; better with --from a published CLIP or SigLIP",
    )


def emoji_clip() -> Recipe:
    """Emoji and what they are called in English, German, French, Spanish and Czech."""
    return Recipe(
        name="emoji-clip",
        domain="image_text",
        description="1,546 emoji with names in five languages: a small CLIP from scratch",
        data=("emoji",),
        model=towers(96, 2, 4, 8, 32),
        task=EmojiPairsConfig(captions=3, augment=ImageMovesConfig(shift=0.1, zoom=0.1, light=0.1)),
        optim=MuonConfig(lr=0.02, adam_lr=2e-3, adam_betas=(0.9, 0.98)),
        schedule=SCHEDULE,
        train=TrainConfig(steps=1200, batch_size=96, evaluate_every=150),
        expected="recall@1 8 %, @5 23 % of 156 names (chance 0.6 and 3 %) in 5 minutes of a core",
    )


RECIPES = (image_text, emoji_clip, *CAPTIONS)
