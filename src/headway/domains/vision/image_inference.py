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

from headway.arguments import Failures, read_each
from headway.codecs.image_processor import ImageProcessor, read_image
from headway.errors import UserError
from headway.formats.usage import Usage, named_scores
from headway.generate.prompts import device_of, evaluation_mode
from headway.nn.models import PatchEmbed, Transformer, kinds
from headway.nn.models.pooled import pool

Image = str | Path | UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]

PixelCallback = Callable[[int, UInt8[np.ndarray, "h w C"]], None]
_BATCH_SIZE = 16  # images


def classify(
    model: Transformer,
    usage: Usage,
    images: Sequence[Image],
    source: str,
    failures: Failures | None = None,
    on_pixels: PixelCallback | None = None,
) -> list[dict[str, float]]:
    """The probability of each label for each image (a file or its pixels), most probable first; see `named_scores`.

    `source` names the model in messages; images that cannot be read are skipped and added to `failures`, if passed;
    `on_pixels` is called with the index of each image and the pixels that the model sees. Raises UserError for a model
    without a preprocessor_config.json and for invalid images.
    """
    scores: list[dict[str, float]] = []
    with evaluation_mode(model), torch.inference_mode():
        for inputs in _inputs(model, usage, images, source, failures, on_pixels):
            scores += named_scores(model.output(kinds.predicting_head(model) or "classes", inputs), usage)
    return scores


def embed(
    model: Transformer, usage: Usage, images: Sequence[Image], source: str, failures: Failures | None = None
) -> Float[Tensor, "N D"]:
    """A unit-length embedding for each image: its class token after the last norm or, without one, the mean over its
    patches. `failures` and errors as in `classify`.
    """
    patch_config = cast(PatchEmbed, model.embed).config
    embeddings = [torch.empty(0, model.config.width)]
    with evaluation_mode(model), torch.inference_mode():
        for inputs in _inputs(model, usage, images, source, failures):
            x, layout, *_ = model(inputs)
            vectors = pool(x, layout, "first" if patch_config.tokens else "mean", patch_config.registers)
            embeddings.append(F.normalize(vectors.float(), dim=-1).cpu())
    return torch.cat(embeddings)


def _inputs(
    model: Transformer,
    usage: Usage,
    images: Sequence[Image],
    source: str,
    failures: Failures | None,
    on_pixels: PixelCallback | None = None,
) -> Iterator[Tensor]:
    """Model inputs for the images, in batches [B, C, H, W] of consecutive images of the same size."""
    processor = processor_of(usage, source)
    _check_images(images)

    def to_array(index: int, image: Image) -> np.ndarray:
        pixels = processor.pixels(to_rgb(image))
        if on_pixels is not None:
            on_pixels(index, pixels)
        return processor.normalize(pixels)

    arrays = read_each(images, to_array, failures)
    while batch := list(islice(arrays, _BATCH_SIZE)):
        for _, same_size in groupby(batch, key=np.shape):
            yield torch.from_numpy(np.stack(list(same_size))).to(device_of(model), input_dtype(model))


def processor_of(usage: Usage, source: str) -> ImageProcessor:
    """A model's image processor. UserError if it has none."""
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    return ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")


def input_dtype(model: Transformer) -> torch.dtype:
    """The dtype of an image model's inputs."""
    return cast(PatchEmbed, model.embed).positions.table.dtype  # never quantised


def _check_images(images: Sequence[Image]) -> None:
    """Raises UserError for values that cannot be images, before reading the first."""
    for index, image in enumerate(images):
        if isinstance(image, np.ndarray):
            has_valid_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
            if image.dtype != np.uint8 or not has_valid_shape or 0 in image.shape:
                raise UserError(
                    f"image {index + 1} is {image.dtype} of shape {image.shape}; use uint8 [height, width, 3], or "
                    "[height, width] for grey"
                )
        elif not isinstance(image, (str, Path)):
            raise UserError(f"image {index + 1} is a {type(image).__name__}; pass paths of image files, or pixels")


def to_rgb(image: Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file, or of an array."""
    if not isinstance(image, np.ndarray):
        if not Path(image).is_file():
            raise UserError(f"{image} is not a file; pass an image file")
        return read_image(image)
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
