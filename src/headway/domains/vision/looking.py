"""Attention attribution for images, and pictures of examples for the page of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.card import Card, shows
from headway.domains.vision.use import Image, coloured, number_type, processor_of
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate.prompts import device_of, evaluating
from headway.learn import examples
from headway.learn.report import Picture, Tile, tiled
from headway.nn.models import PatchEmbed, PooledHead, Transformer, attention_maps, kinds
from headway.nn.models.describe import rollout

if TYPE_CHECKING:
    from headway.domains.vision.task import Images
    from headway.learn.objectives.predictions import Prediction


_LEAST, _ALONE = 224, 448  # minimum shorter side of a picture in pixels, in a report and as its own file
_GAP, _LINE = 8, 26  # pixels between two images, and per line of text under them
_COLD, _HOT = np.array([18, 24, 60]), np.array([255, 214, 70])


@shows
@dataclass(frozen=True)
class Look:
    """The image as the model sees it, and each patch's weight in its prediction, from 0 to 1, with a maximum of 1."""

    pixels: UInt8[np.ndarray, "H W 3"]
    weights: Float[np.ndarray, "rows columns"]

    def card(self) -> Card:
        """Sizes, and how to display it."""
        shapes = [" x ".join(map(str, array.shape[:2])) for array in (self.pixels, self.weights)]
        return Card("ImageAttention", {"pixels": shapes[0], "patches": shapes[1], "shown by": "picture()"})

    def picture(self, least: int = _LEAST) -> UInt8[np.ndarray, "h w 3"]:
        """The image with a heat map: dark for low and warm for high attention; enlarged until its shorter side has
        `min_size` pixels.
        """
        size = self.pixels.shape[:2]
        scale = max(1, -(-least // min(size)))
        large = self.pixels.repeat(scale, 0).repeat(scale, 1).astype(np.float64)
        weights = torch.from_numpy(self.weights)[None, None]
        heat = torch.nn.functional.interpolate(weights, large.shape[:2], mode="bilinear")[0, 0].numpy()[..., None]
        tint = _COLD + (_HOT - _COLD) * heat
        share = 0.55 - 0.2 * heat
        return ((1 - share) * large + share * tint).round().clip(0, 255).astype(np.uint8)

    def beside(self, lines: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
        """The plain image, the heat map to its right, and below both some `lines` of text."""
        from PIL import Image, ImageDraw, ImageFont

        heat = self.picture(_ALONE)
        plain = np.asarray(
            Image.fromarray(self.pixels).resize((heat.shape[1], heat.shape[0]), Image.Resampling.NEAREST)
        )
        gap = np.full((len(heat), _GAP, 3), 255, np.uint8)
        both = np.concatenate([plain, gap, heat], axis=1)
        font = ImageFont.load_default(0.7 * _LINE)
        wide = max([both.shape[1], *(int(font.getlength(line)) + 2 * _GAP for line in lines)])
        both = np.pad(both, ((0, 0), (0, wide - both.shape[1]), (0, 0)), constant_values=255)
        band = Image.new("RGB", (wide, _GAP + _LINE * len(lines)), "white")
        draw = ImageDraw.Draw(band)
        for number, line in enumerate(lines):
            draw.text((_GAP, _LINE * (number + 0.6)), line, "black", font, anchor="lm")
        return np.concatenate([both, np.asarray(band)])


def look(model: Transformer, usage: Usage, images: Sequence[Image], source: str) -> list[Look]:
    """Attention rollout for each image (Abnar and Zuidema 2020). UserError for a model without attention."""
    processor = processor_of(usage, source)
    found = []
    for image in images:
        pixels = processor.pixels(coloured(image))
        weights = next(weights_of(model, torch.from_numpy(processor.numbers(pixels))[None]), None)
        if weights is None:
            raise UserError(f"{source} has no attention layers; use a model with mixer attention")
        found.append(Look(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), weights))
    return found


def weights_of(model: Transformer, inputs: Float[Tensor, "B C H W"]) -> Iterator[Float[np.ndarray, "rows columns"]]:
    """The weight of each patch in the head's input, for each image; empty if the model has no attention."""
    embed = cast(PatchEmbed, model.embed).config
    given = inputs.to(device_of(model), number_type(model))
    with evaluating(model):
        maps = attention_maps(model, lambda: model(given))
    if not maps:
        return
    before = embed.tokens + embed.registers
    rolled = rollout(maps)
    head = dict(model.heads.items()).get(kinds.predicting_head(model) or "")
    mean = not embed.tokens or (isinstance(head, PooledHead) and head.config.pool == "mean")
    rows = rolled[:, before:].mean(1) if mean else rolled[:, : embed.tokens].mean(1)
    grid = embed.grid((inputs.shape[2], inputs.shape[3]))
    for weights in rows[:, before:].unflatten(1, grid).float().cpu().numpy():
        low = weights.min()
        yield (weights - low) / max(float(weights.max() - low), 1e-12)


_SHOWN = 12  # images


def image_tiles(images: Images, model: Transformer, predicted: Sequence[Prediction]) -> Picture:
    """Example images with their predictions, half of them wrong if correctness is defined."""
    wrong, others = ([one for one in predicted if (one.right is False) == kind] for kind in (True, False))
    chosen = [
        group[place]
        for group, most in ((wrong, _SHOWN // 2), (others, _SHOWN - min(len(wrong), _SHOWN // 2)))
        for place in examples.spread(np.arange(len(group)), most).tolist()
    ]
    tiles = []
    for one in sorted(chosen):
        pixels = np.asarray(images.images[images.rows[one.row]])
        seen = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        weights = next(weights_of(model, *images.take(np.array([one.row])).inputs), None)
        beside = None if weights is None else Look(seen, weights).picture()
        between = {None: " for ", False: ", not "}
        told = one.output if one.right else f"{one.output}{between[one.right]}{one.reference}"
        tiles.append(Tile(seen, told, right=one.right, beside=beside))
    looks = "; next to each, the model's attention" if any(tile.beside is not None for tile in tiles) else ""
    told = all(tile.right is not None for tile in tiles)
    kinds = "correct and incorrect predictions" if told else "predictions, with the true values"
    return Picture("Images", f"{kinds}{looks}", tiled(tiles), wide=True)
