"""Recipes for image-text matching and captioning, and how the generic ones scale with images, text and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from headway.codecs.image_processor import read_image
from headway.data import SplitConfig
from headway.domains.image_text.captioned_images import CaptionColumns, open_captions
from headway.domains.image_text.captioning import CaptionFilesConfig, EmojiCaptionsConfig, ScenesConfig
from headway.domains.image_text.emoji import EmojiPairsConfig
from headway.domains.image_text.task import ImageTextAugmentConfig, ImageTextConfig
from headway.errors import UserError
from headway.learn import CosineConfig, MuonConfig, Recipe, Task, TrainConfig, WSDConfig, examples
from headway.learn.plan.scale import DataSettings, Descent, Scale, ScalingLaw, held_out_shares, lookup
from headway.learn.recipe import generic
from headway.nn.mixers import AttentionConfig, PointwiseConfig
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
from headway.nn.models.pooled import PooledHeadConfig
from headway.nn.models.presets import clip
from headway.nn.models.two_tower import HEAD
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.norm import LayerNormConfig, RMSNormConfig
from headway.nn.parts.positions import RotaryConfig
from headway.visibility import Causal, Full, Pattern

if TYPE_CHECKING:
    from headway.domains.image_text.captioning import CaptionDataset


# The maximum attention score of normalised queries and keys; with the usual scale, scores in small heads stay below 5.
_MAX_SCORE = 12.0


def captioner(
    width: int, depth: tuple[int, int], heads: int, size: int, patch: int, vocab_size: int, dropout: float = 0.0
) -> CaptionerConfig:
    """A small captioner that learns fast: a convolutional stem, then tower and decoder of `depth` layers with RMSNorm
    without weights, QK-norm, squared ReLU and no biases; residual branches and head are initialised to zero. The
    decoder uses RoPE, the tower learned positions.
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
            scale=_MAX_SCORE * heads / width,
        )
        block = BlockConfig(mixer, None, MLPConfig(activation="relu_squared", bias=False), norm, dropout=dropout)
        return StackConfig(cycle((block,), count), norm)

    embed = PatchEmbedConfig((patch, patch), (size, size), tokens=0, norm=norm, dropout=dropout, stem="convolutional")
    tower_init = replace(init, embedding=0.2)  # positions matter less than content
    tower = TransformerConfig(width, 0, None, stack(depth[0], Full(), None), embed, {}, "none", tower_init)
    decoder = TransformerConfig(
        width,
        vocab_size,
        None,
        stack(depth[1], Causal(), RotaryConfig(theta=1000.0)),
        TokenEmbedConfig(norm=norm, dropout=dropout),
        tie="none",
        init=init,
    )
    return CaptionerConfig(tower, decoder)


def additive(model: CaptionerConfig, cells: int, levels: int, hidden: int) -> CaptionerConfig:
    """`model` for features that have to be combined in new ways, such as a colour and a shape that never occur together
    in training. The stem separates edges from colours, and only edges pass through a nonlinear layer. After it, the
    model adds vectors by attention and linear layers alone; feed-forward layers learn which features occur together.
    """

    def without_feed_forward(part: TransformerConfig) -> TransformerConfig:
        blocks = tuple(replace(block, feed_forward=None) for block in part.stack.blocks)
        return replace(part, stack=replace(part.stack, blocks=blocks))

    embed = replace(model.images, stem="histograms", cells=cells, levels=levels, hidden=hidden)
    tower = replace(without_feed_forward(model.tower), embed=embed)
    projector = replace(model.projector, layers=1)
    return replace(model, tower=tower, decoder=without_feed_forward(model.decoder), projector=projector)


def caption() -> Recipe:
    """Your own images with captions."""
    return generic(
        "caption",
        "image_text",
        "images with captions: .csv, .tsv or .jsonl with path and caption",
        model=captioner(width=256, depth=(4, 4), heads=8, size=128, patch=16, vocab_size=4000, dropout=0.1),
        task=CaptionFilesConfig(shift=8),
        optim=MuonConfig(lr=0.01, adam_lr=1.5e-3, weight_decay=0.01),
        train=TrainConfig(steps=3000, batch_size=32, evaluate_limit=500),
        expected="about an hour on 2 cores; better with a pretrained tower and decoder",
    )


def scenes() -> Recipe:
    """A controlled test with known correct captions and combinations that never occur in training."""
    return Recipe(
        name="scenes",
        domain="image_text",
        description="generated scenes of one to three coloured shapes and their arrangement",
        data=(),
        model=additive(captioner(96, depth=(2, 2), heads=4, size=64, patch=16, vocab_size=24), 8, 8, hidden=192),
        task=ScenesConfig(codec="word", size=None, goal="exact_match", noise=0.5),
        optim=MuonConfig(lr=0.01, adam_lr=1.5e-3),
        schedule=WSDConfig(warmup=50, decay=0.7),
        train=TrainConfig(steps=2500, batch_size=64, evaluate_every=500, evaluate_limit=200),
        expected="99 % exact matches in 3 minutes on one core, also for unseen pairs of colour and shape",
    )


def emoji_caption() -> Recipe:
    """1,391 emoji are few for a model from scratch: many held-out names are words that do not occur in training."""
    return Recipe(
        name="emoji-caption",
        domain="image_text",
        description="emoji and their names",
        data=("emoji",),
        model=captioner(width=128, depth=(3, 3), heads=4, size=64, patch=8, vocab_size=600, dropout=0.2),
        task=EmojiCaptionsConfig(codec="bpe", size=600, shift=4, split=SplitConfig(validation=0.05, test=0.1)),
        optim=MuonConfig(lr=0.01, adam_lr=1.5e-3, weight_decay=0.05),
        schedule=WSDConfig(warmup=50, decay=0.6),
        train=TrainConfig(steps=1500, batch_size=32),
        expected="10 minutes on one core; names of unseen emoji cannot be learned (chrF 12, no exact match)",
    )


def towers(width: int, depth: int, heads: int, patch: int, size: int, dropout: float = 0.1) -> TwoTowerConfig:
    """Small towers to train from scratch. With the usual initial weights of 0.02, their embeddings would be nearly
    equal (mean cosine 0.9998 between emoji), and so would the gradients.
    """
    sizes = (width, depth, heads)
    model = clip(sizes, sizes, width, patch, size, 1, 64, dropout)
    init = InitConfig(matrices="fan_in", residual="same", embedding=None)
    return replace(model, left=replace(model.left, init=init), right=replace(model.right, init=init))


def histogram_towers(width: int, size: int, cells: int, dropout: float) -> TwoTowerConfig:
    """Towers for some hundred images, too few to learn edges from pixels or the order of words: an image is one patch
    of `size` pixels, described by histograms, and a text is the mean of its tokens.
    """
    model = towers(width, 1, 1, size, size, dropout)
    left, right, norm = model.left, model.right, LayerNormConfig()
    embed = PatchEmbedConfig(
        (size, size), (size, size), tokens=0, norm=norm, dropout=dropout, stem="histograms", cells=cells
    )
    head = PooledHeadConfig(width, pool="mean", bias=False)
    block = BlockConfig(PointwiseConfig(), feed_forward=None, placement="none", dropout=dropout)
    return replace(
        model,
        left=replace(left, embed=embed, heads={HEAD: head}),
        right=replace(right, stack=StackConfig((block,), None), embed=TokenEmbedConfig(), heads={HEAD: head}),
    )


def image_text() -> Recipe:
    """Any images with captions."""
    return generic(
        "image-text",
        "image_text",
        "images with captions: .csv, .tsv or .jsonl with path and caption (and language)",
        model=towers(192, 4, 3, 16, 96),
        task=ImageTextConfig(augment=ImageTextAugmentConfig(shift=0.1, zoom=0.1)),
        optim=MuonConfig(lr=0.02, weight_decay=0.05, adam_lr=2e-3, adam_betas=(0.9, 0.98)),
        train=TrainConfig(steps=2000, batch_size=64),
        expected="an hour from scratch for a few thousand images; better with --from a published CLIP or SigLIP",
    )


def emoji_clip() -> Recipe:
    """Emoji and their names in English, German, French, Spanish and Czech."""
    return Recipe(
        name="emoji-clip",
        domain="image_text",
        description="1,546 emoji with names in five languages: a small CLIP from scratch",
        data=("emoji",),
        model=histogram_towers(256, 64, 8, 0.1),
        task=EmojiPairsConfig(
            captions=12,
            loss="tokens",
            codec="word",
            size=8000,
            augment=ImageTextAugmentConfig(shift=0.1, zoom=0.1, light=0.1),
        ),
        optim=MuonConfig(lr=0.02, adam_lr=4e-3, adam_betas=(0.9, 0.98)),
        schedule=CosineConfig(warmup=0.05, floor=0.0),
        train=TrainConfig(steps=200, batch_size=256, evaluate_every=100),
        expected="recall@1 23 %, @5 53 % for 156 names (chance: 0.6 and 3 %) in half a minute on one core",
    )


RECIPES = (image_text, emoji_clip, caption, scenes, emoji_caption)


_SHAPES = ((64, 2, 2), (96, 2, 3), (128, 3, 4), (192, 4, 6), (256, 4, 8), (384, 6, 12), (512, 8, 16), (768, 12, 24))
_VOCABULARIES = ((3e4, 400), (1e5, 600), (5e5, 1000), (2e6, 2000), (2e7, 4000), (math.inf, 8000))  # characters, tokens
_RESOLUTIONS = ((10, 48, 8), (60, 64, 8), (240, 96, 16), (math.inf, 128, 16))  # (minutes, image side, patch side)
_MIN_PATCHES, _MIN_PATCH = 6, 2  # minimum patches per side, unless patches would be smaller than this
_MAX_SAMPLED = 32  # images whose size is sampled


class _CaptionSurvey(NamedTuple):
    """What the captions and a number of minutes determine."""

    num_images: int
    size: tuple[int, int]
    settings: dict[str, Any]
    patch: list[int]
    reason: str


def _survey(columns: CaptionColumns, paths: Sequence[Path], minutes: float) -> _CaptionSurvey:
    """Vocabularies grow with the text, so that tokens occur often."""
    captions = open_captions(paths, columns)
    if captions.prepared is not None:
        height, width, _ = captions.prepared.details["shape"]
        _, patch = resolution(max(height, width), minutes)
        patch = next(side for side in range(patch, 0, -1) if not height % side and not width % side)
    else:
        side, patch = resolution(longer_side([image.path for image in captions.images]) or 1 << 12, minutes)
        height = width = side
    num_characters = sum(map(len, captions.texts))
    vocab_size = lookup(_VOCABULARIES, num_characters)
    mean_length = num_characters / len(captions.texts)
    reason = (
        f"{len(captions.images):,} images with {len(captions.texts):,} texts of {mean_length:.0f} characters on "
        f"average: a vocabulary of {vocab_size:,}, {height} x {width} pixels in patches of {patch}"
    )
    settings = {"task.size": vocab_size, **held_out_shares(len(captions.images))}
    return _CaptionSurvey(len(captions.images), (height, width), settings, [patch, patch], reason)


def _contrast_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    task = cast(ImageTextConfig, recipe.task)
    survey = _survey(CaptionColumns(task.image, task.caption, task.language), paths, minutes)
    # For measuring throughput: not more images than training is certain to have.
    batch_size = int(min(64, max(2, 2 ** int(math.log2(max(1, survey.num_images) / 2)))))
    size = {"model.left.embed.size": list(survey.size), "model.left.embed.patch": survey.patch}
    settings = {**survey.settings, **size, "train.batch_size": batch_size, "task.augment.light": 0.1}
    return DataSettings(settings, survey.reason)


def _caption_settings(recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
    """Images are shifted by a sixteenth of their size."""
    task = cast(CaptionFilesConfig, recipe.task)
    survey = _survey(CaptionColumns(task.path, task.caption), paths, minutes)
    size = {"model.tower.embed.size": list(survey.size), "model.tower.embed.patch": survey.patch}
    return DataSettings({**survey.settings, **size, "task.shift": min(survey.size) // 16}, survey.reason)


def _caption_tokens(task: Task) -> int:
    captions = cast("CaptionDataset", task.examples)
    return sum(len(captions.ids[row]) + 1 for row in captions.splits.rows("train").tolist())


def longer_side(files: Sequence[Path], local: Callable[[Path], Path] = Path) -> int | None:
    """The median longer side of a sample of images; None if none can be read. The task reports unreadable ones. `local`
    returns a path at which an image can be read.
    """
    sides = []
    for row in examples.spread_evenly(np.arange(len(files)), _MAX_SAMPLED).tolist():
        with suppress(UserError):
            sides.append(max(read_image(local(files[row])).shape[:2]))
    return int(np.median(sides)) if sides else None


def resolution(max_side: int, minutes: float) -> tuple[int, int]:
    """The image side, at most that of the data, and the patch side, which leaves several patches per row."""
    side, patch = next((side, patch) for max_minutes, side, patch in _RESOLUTIONS if minutes <= max_minutes)
    while patch > _MIN_PATCH and min(side, max_side) < _MIN_PATCHES * patch:
        patch //= 2
    return min(side, -(-max_side // patch) * patch), patch


_BASE = Scale(  # image and text models of equal size
    # As for image classification, but repeated samples are worth less, because texts are not augmented.
    law=ScalingLaw(0.1, 6.3, 0.3, 10.5, 0.35, repeats=25.0, excess=15.0),
    batch_setting="train.batch_size",
    max_batch=512,
    calibrated=True,
    shapes=_SHAPES,
    dropout=((4, 0.0), (15, 0.1), (math.inf, 0.2)),
)
SCALES = {
    # The images in a batch are contrasted, so batches grow further, but never beyond the data set.
    "image-text": replace(
        _BASE,
        min_batch=32,
        noise_scale=2.0,
        width_settings=("model.width", "model.shared"),
        data_settings=_contrast_settings,
    ),
    # Targets are tokens, about ten per caption.
    "caption": replace(
        _BASE,
        law=ScalingLaw(0.1, 6.3, 0.3, 23.0, 0.35, repeats=25.0, excess=15.0),
        min_batch=16,
        noise_scale=1.6,
        descent=Descent(0.16, 0.48, 1.4),
        unique_targets=_caption_tokens,
        data_settings=_caption_settings,
    ),
}
