"""How models of a user's images and captions are fitted to their number, the amount of text and the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from headway.codecs.processor import read_image
from headway.domains.image_text.caption_config import FilesConfig
from headway.domains.image_text.data import CaptionColumns, Captions, read_captions
from headway.domains.image_text.task import ImageTextConfig
from headway.errors import UserError
from headway.learn import Recipe, Task, examples
from headway.learn.scale import Law, Scale, Settings, Settled, Shapes, below

if TYPE_CHECKING:
    from headway.domains.image_text.captioning import ImagesToCaption

_SHAPES = ((64, 2, 2), (96, 2, 3), (128, 3, 4), (192, 4, 6), (256, 4, 8), (384, 6, 12), (512, 8, 16), (768, 12, 24))
_VOCABULARIES = ((3e4, 400), (1e5, 600), (5e5, 1000), (2e6, 2000), (2e7, 4000), (math.inf, 8000))  # characters, symbols
_SIDES = ((10, 48, 8), (60, 64, 8), (240, 96, 16), (math.inf, 128, 16))  # minutes, pixels of a side, those of a patch
_IN_A_ROW, _FINEST = 6, 2  # patches at least, as far as they do not become smaller than so many pixels
_LOOKED_AT = 32  # images whose size is looked at
_LEFT_OUT = ((4, 0.0), (15, 0.1), (math.inf, 0.2))  # epochs, and dropout up to them


@dataclass(frozen=True)
class CaptionedScale(Scale):
    """Image and text by models of the same size; vocabularies that grow with the text, so that symbols are seen often.
    The law is that of images with classes, with less worth of what is repeated, as texts are not changed.
    """

    law: Law = field(default_factory=lambda: Law(0.1, 6.3, 0.3, 10.5, 0.35, repeats=25.0, excess=15.0))
    batch: str = "train.batch_size"
    least: int = 16
    most: int = 512
    noise: float = 0.5
    unit: str = "image"
    shapes: Shapes = _SHAPES

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        found = read_captions(paths, self.columns(recipe))
        side, patch = resolution(_longest(found), minutes)
        letters = sum(map(len, found.texts))
        symbols = below(_VOCABULARIES, letters)
        shares = self.held_out(len(found.images))
        settings = {"task.size": symbols, **shares, **self.shaped(side, patch)}
        long = letters / len(found.texts)
        told = f"{len(found.images):,} images with {len(found.texts):,} texts of {long:.0f} characters"
        return Settled(
            settings, f"{told}: a vocabulary of {symbols:,}, and {side} x {side} pixels in patches of {patch}"
        )

    def columns(self, recipe: Recipe) -> CaptionColumns:
        """What the recipe calls the columns of tables."""
        raise NotImplementedError

    def shaped(self, side: int, patch: int) -> Settings:
        """The model's images, in pixels."""
        raise NotImplementedError

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        return {"model.dropout": next(share for most, share in _LEFT_OUT if epochs <= most)}


@dataclass(frozen=True)
class ContrastScale(CaptionedScale):
    """The images of a batch are told apart, so that it grows further, but never beyond all there are."""

    least: int = 32
    noise: float = 2.0

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        found = super().settle(recipe, paths, minutes)
        images = len(read_captions(paths, self.columns(recipe)).images)
        settings = {"train.batch_size": _first_batch(images), "task.augment.light": 0.1}
        return Settled({**found.settings, **settings}, found.reason)

    def columns(self, recipe: Recipe) -> CaptionColumns:
        task = cast(ImageTextConfig, recipe.task)
        return CaptionColumns(task.image, task.caption, task.language)

    def shaped(self, side: int, patch: int) -> Settings:
        return {"model.left.embed.size": [side, side], "model.left.embed.patch": [patch, patch]}

    def sizes(self, recipe: Recipe) -> Sequence[Settings]:
        return [{**sizes, "model.shared": sizes["model.width"]} for sizes in super().sizes(recipe)]


@dataclass(frozen=True)
class CaptionScale(CaptionedScale):
    """Images are moved by a sixteenth of their sides. Counted are symbols, of which a caption has about ten."""

    law: Law = field(default_factory=lambda: Law(0.1, 6.3, 0.3, 23.0, 0.35, repeats=25.0, excess=15.0))
    noise: float = 1.6
    unit: str = "symbol"

    def columns(self, recipe: Recipe) -> CaptionColumns:
        task = cast(FilesConfig, recipe.task)
        return CaptionColumns(task.path, task.caption)

    def shaped(self, side: int, patch: int) -> Settings:
        size = {"model.tower.embed.size": [side, side], "model.tower.embed.patch": [patch, patch]}
        return {**size, "task.shift": side // 16}

    def amount(self, task: Task) -> int:
        examples = cast("ImagesToCaption", cast(Task, task).examples)
        return sum(len(examples.ids[row]) + 1 for row in examples.splits.rows("train").tolist())


def resolution(longest: int, minutes: float) -> tuple[int, int]:
    """The side that images are read in, no larger than theirs, and that of patches, several of which are in a row."""
    side, patch = next((side, patch) for most, side, patch in _SIDES if minutes <= most)
    while patch > _FINEST and min(side, longest) < _IN_A_ROW * patch:
        patch //= 2
    return min(side, -(-longest // patch) * patch), patch


def _longest(found: Captions) -> int:
    """The median of images' longer sides, of some that can be read: the task says what is wrong with others."""
    sides = []
    for row in examples.spread(np.arange(len(found.images)), _LOOKED_AT).tolist():
        with suppress(UserError):
            sides.append(max(read_image(found.images[row].path).shape[:2]))
    return int(np.median(sides)) if sides else 1 << 12


def _first_batch(images: int) -> int:
    """Of the measurements: no more images than there will surely be to train on."""
    return int(min(64, max(2, 2 ** int(math.log2(max(1, images) / 2)))))


SCALES = {"image-text": ContrastScale(), "caption": CaptionScale()}
