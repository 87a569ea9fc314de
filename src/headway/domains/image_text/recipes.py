"""Recipes of images with texts, and of captions."""

from __future__ import annotations

from dataclasses import replace

from headway.data import SplitConfig
from headway.domains.image_text.augment import ImageMovesConfig
from headway.domains.image_text.caption_config import EmojiConfig, FilesConfig, ScenesConfig
from headway.domains.image_text.emoji import EmojiPairsConfig
from headway.domains.image_text.task import ImageTextConfig
from headway.learn import CosineConfig, MuonConfig, Recipe, TrainConfig, WSDConfig
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    CaptionerConfig,
    PatchEmbedConfig,
    StackConfig,
    TokenEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
    cycle,
)
from headway.nn.models.presets import clip
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import RMSNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal, Full, Pattern

# The greatest score of normalised queries and keys; with the usual scale those of small heads stay below 5.
_SHARPEST = 12.0


def captioner(
    width: int, depth: tuple[int, int], heads: int, size: int, patch: int, symbols: int, dropout: float = 0.0
) -> CaptionerConfig:
    """Small ones that learn fast: a convolutional stem, then tower and decoder of `depth` layers with RMS norms without
    weights, normalised queries and keys, squared ReLU, no biases, and branches and head that start at zero. The
    decoder's positions are rotary, those of the tower learned.
    """
    norm = RMSNormConfig(weight=False)
    init = InitConfig(matrices="fan_in", residual="zero", embedding=1.0, head="zero")

    def stack(count: int, pattern: Pattern, rotary: RotaryConfig | None) -> StackConfig:
        mixer = AttentionConfig(
            heads,
            pattern=pattern,
            rotary=rotary,
            qk_norm=norm,
            qkv_bias=False,
            out_bias=False,
            scale=_SHARPEST * heads / width,
        )
        block = BlockConfig(mixer, None, MLPConfig(activation="relu_squared", bias=False), norm, dropout=dropout)
        return StackConfig(cycle((block,), count), norm)

    embed = PatchEmbedConfig((patch, patch), (size, size), tokens=0, norm=norm, dropout=dropout, stem="convolutional")
    seen = replace(init, embedding=0.2)  # places say less than what is there
    tower = TransformerConfig(width, 0, None, stack(depth[0], Full(), None), embed, {}, "none", seen)
    decoder = TransformerConfig(
        width,
        symbols,
        None,
        stack(depth[1], Causal(), RotaryConfig(theta=1000.0)),
        TokenEmbedConfig(norm=norm, dropout=dropout),
        tie="none",
        init=init,
    )
    return CaptionerConfig(tower, decoder)


def caption() -> Recipe:
    """Any images of the user's."""
    return Recipe(
        name="caption",
        domain="image_text",
        description="any images with captions: .csv, .tsv or .jsonl with path and caption",
        data=(),
        model=captioner(width=256, depth=(4, 4), heads=8, size=128, patch=16, symbols=4000, dropout=0.1),
        task=FilesConfig(shift=8),
        optim=MuonConfig(lr=0.01, adam_lr=1.5e-3, weight_decay=0.01),
        schedule=WSDConfig(warmup=0.02, decay=0.6),
        train=TrainConfig(steps=3000, batch_size=32, evaluate_limit=500),
        expected="about an hour on 2 cores; better in stages, from a tower and a decoder",
    )


def scenes() -> Recipe:
    """The controlled test: what is right is known, and so is what training never shows."""
    return Recipe(
        name="scenes",
        domain="image_text",
        description="drawn scenes of one to three coloured shapes and how they lie",
        data=(),
        model=captioner(width=96, depth=(2, 2), heads=4, size=64, patch=8, symbols=24),
        task=ScenesConfig(codec="word", size=None, goal="exact_match"),
        optim=MuonConfig(lr=0.01, adam_lr=1.5e-3),
        schedule=WSDConfig(warmup=50, decay=0.7),
        train=TrainConfig(steps=2500, batch_size=64, evaluate_every=500, evaluate_limit=200),
        expected="99 % to the letter in 15 minutes of a core; 42 % with pairs of colour and shape never shown",
    )


def emoji_caption() -> Recipe:
    """1,391 emoji are few for a model from scratch: many held-out names are words that training never saw."""
    return Recipe(
        name="emoji-caption",
        domain="image_text",
        description="emoji and their names",
        data=("emoji",),
        model=captioner(width=128, depth=(3, 3), heads=4, size=64, patch=8, symbols=600, dropout=0.2),
        task=EmojiConfig(codec="bpe", size=600, shift=4, split=SplitConfig(validation=0.05, test=0.1)),
        optim=MuonConfig(lr=0.01, adam_lr=1.5e-3, weight_decay=0.05),
        schedule=WSDConfig(warmup=50, decay=0.6),
        train=TrainConfig(steps=1500, batch_size=32),
        expected="10 minutes of a core; names of unseen emoji stay unknown (chrF 12, none to the letter)",
    )


CAPTIONS = (caption, scenes, emoji_caption)


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
