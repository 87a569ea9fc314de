"""Pictures of a captioner's page: images with what is written of them, and where the decoder looked for each word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.codecs import Codec
from headway.generate.prompts import device_of, evaluating
from headway.layout import Layout
from headway.models import Captioner, attention_maps
from headway.report import Picture, Tile, tiled

_DARK = 0.2  # the brightness of what is not looked at
_WORDS = 16  # of a caption, so that a picture can be taken in


def captions_shown(pixels: UInt8[np.ndarray, "N H W 3"], written: Sequence[str], right: Sequence[str]) -> Picture:
    """Images with the captions that are written of them, and the right one where it is another."""
    tiles = [
        Tile(image, text, "" if text == reference else reference, text == reference)
        for image, text, reference in zip(pixels, written, right)
    ]
    return Picture("Captions", "of held-out images; below a wrong one stands the right one", tiled(tiles), wide=True)


def looks(
    model: Captioner,
    codec: Codec,
    begin: int,
    inputs: Float[Tensor, "N 3 H W"],
    pixels: UInt8[np.ndarray, "N H W 3"],
    written: Sequence[str],
) -> list[Picture]:
    """Where the decoder looks while it writes each word, in the mean over heads and layers; none without attention."""
    found = []
    for image, shown, text in zip(inputs, pixels, written):
        ids = codec.encode(text)
        weights = attention_to_image(model, image, [begin, *ids]) if ids else None
        if weights is None:
            continue
        words, of = text.split()[:_WORDS], words_of(codec, ids)
        tiles = [
            Tile(lit(shown, weights[: len(ids)][of == number].mean(0)), word)
            for number, word in enumerate(words)
            if (of == number).any()
        ]
        found.append(Picture("Attention", text, tiled([Tile(shown, "the image"), *tiles], small=True), wide=True))
    return found


def attention_to_image(
    model: Captioner, image: Float[Tensor, "3 H W"], ids: Sequence[int]
) -> Float[np.ndarray, "T rows columns"] | None:
    """The weight of each patch when the symbol after each of `ids` is foretold; None without attention."""
    row, layout = torch.tensor([ids], device=device_of(model)), Layout.full(1, len(ids), device=device_of(model))
    images = image[None].to(device_of(model))
    with evaluating(model):
        maps = attention_maps(model, lambda: model(images, row, layout))
    read = [weights[0].mean(0) for name, weights in maps.items() if name.startswith("decoder.")]
    if not read:
        return None
    rows, columns = model.config.images.grid((image.shape[1], image.shape[2]))
    mean = torch.stack(read).mean(0)[-len(ids) :, : rows * columns]
    return mean.unflatten(1, (rows, columns)).float().cpu().numpy()


def words_of(codec: Codec, ids: Sequence[int]) -> np.ndarray:
    """The number of the word that each symbol belongs to."""
    return np.array([max(1, len(codec.decode(ids[: end + 1]).split())) - 1 for end in range(len(ids))])


def lit(image: UInt8[np.ndarray, "H W 3"], weights: Float[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image that is bright where the weights are large."""
    light = torch.from_numpy(weights / max(float(weights.max()), 1e-9))[None, None]
    wide = torch.nn.functional.interpolate(light, image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return (image * (_DARK + (1 - _DARK) * wide.numpy()[:, :, None])).round().astype(np.uint8)
