"""Inference with image models: classes, embeddings, and the attention of a prediction to the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.formats.usage import Usage
from headway.generate.prompts import device_of
from headway.io.arguments import Failures
from headway.io.summary_card import SummaryCard, summary_repr
from headway.nn.models import PatchEmbed, PooledHead, Transformer, attention_maps, evaluation_mode, kinds
from headway.nn.models.describe import rollout
from headway.nn.models.pooled import pool
from headway.predict.image_inputs import Image, image_batches, processor_of


def embed(
    model: Transformer, usage: Usage, images: Sequence[Image], source: str, failures: Failures | None = None
) -> Float[Tensor, "N D"]:
    """A unit-length embedding for each image: its class token after the last norm or, without one, the mean over its
    patches. `source` names the model in messages; images that cannot be read are skipped and added to `failures`, if
    passed. Raises UserError for a model without a preprocessor_config.json and for invalid images.
    """
    patch_config = cast(PatchEmbed, model.embed).config
    embeddings = [torch.empty(0, model.config.width)]
    with evaluation_mode(model), torch.inference_mode():
        for batch in image_batches(images, processor_of(usage, source), failures):
            x, layout, *_ = model(batch.to(device_of(model), input_dtype(model)))
            vectors = pool(x, layout, "first" if patch_config.tokens else "mean", patch_config.registers)
            embeddings.append(F.normalize(vectors.float(), dim=-1).cpu())
    return torch.cat(embeddings)


def input_dtype(model: Transformer) -> torch.dtype:
    """The dtype of an image model's inputs."""
    return cast(PatchEmbed, model.embed).positions.table.dtype  # never quantised


_MIN_SIZE, _FILE_MIN_SIZE = 224, 448  # minimum shorter side in pixels, in a report and as a file
_GAP, _LINE_HEIGHT = 8, 26  # pixels between images, and per line of text below them
_LOW_COLOR, _HIGH_COLOR = np.array([18, 24, 60]), np.array([255, 214, 70])


@summary_repr
@dataclass(frozen=True)
class ImageAttention:
    """The image as the model sees it, and each patch's weight in the prediction, scaled to a maximum of 1."""

    pixels: UInt8[np.ndarray, "H W 3"]
    weights: Float[np.ndarray, "rows columns"]

    def card(self) -> SummaryCard:
        """Sizes, and how to display it."""
        shapes = [" x ".join(map(str, array.shape[:2])) for array in (self.pixels, self.weights)]
        return SummaryCard("ImageAttention", {"pixels": shapes[0], "patches": shapes[1], "shown by": "picture()"})

    def picture(self, min_size: int = _MIN_SIZE) -> UInt8[np.ndarray, "h w 3"]:
        """The image with a heat map: dark for low and warm for high attention. It is enlarged until its shorter side
        has `min_size` pixels.
        """
        size = self.pixels.shape[:2]
        scale = max(1, -(-min_size // min(size)))
        enlarged = self.pixels.repeat(scale, 0).repeat(scale, 1).astype(np.float64)
        weights = torch.from_numpy(self.weights)[None, None]
        heat = torch.nn.functional.interpolate(weights, enlarged.shape[:2], mode="bilinear")[0, 0].numpy()[..., None]
        tint = _LOW_COLOR + (_HIGH_COLOR - _LOW_COLOR) * heat
        alpha = 0.55 - 0.2 * heat
        return ((1 - alpha) * enlarged + alpha * tint).round().clip(0, 255).astype(np.uint8)

    def side_by_side(self, lines: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
        """The plain image, the heat map to its right, and `lines` of text below both."""
        from PIL import Image, ImageDraw, ImageFont

        heat_map = self.picture(_FILE_MIN_SIZE)
        plain = np.asarray(
            Image.fromarray(self.pixels).resize((heat_map.shape[1], heat_map.shape[0]), Image.Resampling.NEAREST)
        )
        gap = np.full((len(heat_map), _GAP, 3), 255, np.uint8)
        canvas = np.concatenate([plain, gap, heat_map], axis=1)
        font = ImageFont.load_default(0.7 * _LINE_HEIGHT)
        width = max([canvas.shape[1], *(int(font.getlength(line)) + 2 * _GAP for line in lines)])
        canvas = np.pad(canvas, ((0, 0), (0, width - canvas.shape[1]), (0, 0)), constant_values=255)
        text_band = Image.new("RGB", (width, _GAP + _LINE_HEIGHT * len(lines)), "white")
        draw = ImageDraw.Draw(text_band)
        for index, line in enumerate(lines):
            draw.text((_GAP, _LINE_HEIGHT * (index + 0.6)), line, "black", font, anchor="lm")
        return np.concatenate([canvas, np.asarray(text_band)])


def patch_weights(model: Transformer, inputs: Float[Tensor, "B C H W"]) -> Iterator[Float[np.ndarray, "rows columns"]]:
    """The weight of each patch in the head's input, for each image; empty if the model has no attention."""
    embed = cast(PatchEmbed, model.embed).config
    model_inputs = inputs.to(device_of(model), input_dtype(model))
    with evaluation_mode(model):
        maps = attention_maps(model, lambda: model(model_inputs))
    if not maps:
        return
    num_special = embed.tokens + embed.registers
    attention = rollout(maps)
    head = dict(model.heads.items()).get(kinds.predicting_head(model) or "")
    is_mean_pooled = not embed.tokens or (isinstance(head, PooledHead) and head.config.pool == "mean")
    rows = attention[:, num_special:].mean(1) if is_mean_pooled else attention[:, : embed.tokens].mean(1)
    grid = embed.grid((inputs.shape[2], inputs.shape[3]))
    for weights in rows[:, num_special:].unflatten(1, grid).float().cpu().numpy():
        minimum = weights.min()
        yield (weights - minimum) / max(float(weights.max() - minimum), 1e-12)
