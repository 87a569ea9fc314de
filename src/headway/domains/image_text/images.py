"""Images as people give them, files or pixels, and as a model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from headway.codecs.images import read_image
from headway.codecs.processor import ImageProcessor
from headway.errors import UserError

Image = str | Path | UInt8[np.ndarray, "H W 3"]

_AT_ONCE = 16  # images


def fitted(processor: ImageProcessor, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image as the processor resizes and crops it."""
    return replace(processor, factor=None, mean=None, std=None)(image).astype(np.uint8).transpose(1, 2, 0)


def scaled(processor: ImageProcessor, pixels: UInt8[np.ndarray, "B h w 3"]) -> Float32[np.ndarray, "B 3 h w"]:
    """What the model reads of images that are fitted already."""
    numbers = replace(processor, size=None, shortest=None, crop=None)
    return np.stack([numbers(image) for image in pixels])


def check_images(images: Sequence[Image], does: str) -> None:
    """UserError for what cannot be an image, before the first is read; `does` says what the model does with images."""
    for number, image in enumerate(images):
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise UserError(
                    f"image {number + 1} is {image.dtype} of shape {image.shape}; give uint8 [height, width, 3]"
                )
        elif not isinstance(image, (str, Path)):
            raise UserError(f"image {number + 1} is a {type(image).__name__}; give the paths of image files, or pixels")
        elif not Path(image).is_file():
            raise UserError(f"{image} is no file; this model {does} image files")


def image_batches(images: Sequence[Image], processor: ImageProcessor) -> Iterator[Float32[np.ndarray, "B 3 H W"]]:
    """Inputs in the order of the images; neighbours of the same size go together."""
    for start in range(0, len(images), _AT_ONCE):
        some = images[start : start + _AT_ONCE]
        read = [processor(image if isinstance(image, np.ndarray) else read_image(image)) for image in some]
        for _, alike in groupby(read, key=np.shape):
            yield np.stack(list(alike))
