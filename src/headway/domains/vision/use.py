"""Inference with image models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from headway.codecs.processor import ImageProcessor, read_image
from headway.errors import UserError
from headway.formats.usage import Usage, named_scores
from headway.generate.prompts import device_of, evaluating
from headway.given import Failed, each
from headway.nn.models import PatchEmbed, Transformer, kinds
from headway.nn.models.pooled import pool

Image = str | Path | UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]

Watch = Callable[[int, UInt8[np.ndarray, "h w C"]], None]
_AT_ONCE = 16  # images


def classify(
    model: Transformer,
    usage: Usage,
    images: Sequence[Image],
    source: str,
    failed: Failed | None = None,
    watch: Watch | None = None,
) -> list[dict[str, float]]:
    """The probability of each label for each image (a file or its pixels), the most probable first; see `named_scores`.

    `source` names the model in messages; images that cannot be read are left out and added to `failures`, if passed;
    `on_pixels` is called with the index of each image and the pixels that the model sees. Raises UserError for a model
    without a preprocessor_config.json and for invalid images.
    """
    scores: list[dict[str, float]] = []
    with evaluating(model), torch.inference_mode():
        for inputs in _inputs(model, usage, images, source, failed, watch):
            scores += named_scores(model.output(kinds.predicting_head(model) or "classes", inputs), usage)
    return scores


def embed(
    model: Transformer, usage: Usage, images: Sequence[Image], source: str, failed: Failed | None = None
) -> Float[Tensor, "N D"]:
    """An embedding of unit length for each image: its class token after the last norm, or the mean of its patches if
    there is none. `failures` and errors as in `classify`.
    """
    front = cast(PatchEmbed, model.embed).config
    found = [torch.empty(0, model.config.width)]
    with evaluating(model), torch.inference_mode():
        for inputs in _inputs(model, usage, images, source, failed):
            x, layout, *_ = model(inputs)
            vectors = pool(x, layout, "first" if front.tokens else "mean", front.registers)
            found.append(F.normalize(vectors.float(), dim=-1).cpu())
    return torch.cat(found)


def _inputs(
    model: Transformer,
    usage: Usage,
    images: Sequence[Image],
    source: str,
    failed: Failed | None,
    watch: Watch | None = None,
) -> Iterator[Tensor]:
    """Model inputs of the images, in batches [B, C, H, W] of consecutive images of the same size."""
    processor = processor_of(usage, source)
    _check(images)

    def numbers(place: int, image: Image) -> np.ndarray:
        pixels = processor.pixels(coloured(image))
        if watch is not None:
            watch(place, pixels)
        return processor.numbers(pixels)

    read = each(images, numbers, failed)
    while some := list(islice(read, _AT_ONCE)):
        for _, alike in groupby(some, key=np.shape):
            yield torch.from_numpy(np.stack(list(alike))).to(device_of(model), number_type(model))


def processor_of(usage: Usage, source: str) -> ImageProcessor:
    """The image processor of a model. UserError if it has none."""
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    return ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")


def number_type(model: Transformer) -> torch.dtype:
    """The dtype of an image model's inputs."""
    return cast(PatchEmbed, model.embed).positions.table.dtype  # never quantised


def _check(images: Sequence[Image]) -> None:
    """Raises UserError for values that cannot be images, before reading the first."""
    for number, image in enumerate(images):
        if isinstance(image, np.ndarray):
            coloured = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
            if image.dtype != np.uint8 or not coloured or 0 in image.shape:
                raise UserError(
                    f"image {number + 1} is {image.dtype} of shape {image.shape}; use uint8 [height, width, 3], or "
                    "[height, width] for grey"
                )
        elif not isinstance(image, (str, Path)):
            raise UserError(f"image {number + 1} is a {type(image).__name__}; pass paths of image files, or pixels")


def coloured(image: Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file, or of an array."""
    if not isinstance(image, np.ndarray):
        if not Path(image).is_file():
            raise UserError(f"{image} is not a file; pass an image file")
        return read_image(image)
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
