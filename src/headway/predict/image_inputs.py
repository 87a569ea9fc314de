"""Images from users as inputs of a model: files or pixels, checked, preprocessed and batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from headway.codecs.image_processor import ImageProcessor, read_image
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.io.arguments import Failures, read_each

Image = str | Path | UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]
PixelCallback = Callable[[int, UInt8[np.ndarray, "h w C"]], None]
_BATCH_SIZE = 16  # images


def processor_of(usage: Usage, source: str) -> ImageProcessor:
    """A model's image processor. UserError if it has none; `source` names the model."""
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    return ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")


def image_batches(
    images: Sequence[Image],
    processor: ImageProcessor,
    failures: Failures | None,
    on_pixels: PixelCallback | None = None,
) -> Iterator[Float32[Tensor, "B C H W"]]:
    """Model inputs in the order of the images, in batches of consecutive images of the same size.

    Images that cannot be read are skipped and added to `failures`, if passed; otherwise they are UserErrors, as are
    values that cannot be images. `on_pixels` is called with the index of each image and the pixels that the model sees.
    """
    for index, image in enumerate(images):  # before reading the first
        if isinstance(image, np.ndarray):
            has_valid_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
            if image.dtype != np.uint8 or not has_valid_shape or 0 in image.shape:
                raise UserError(
                    f"image {index + 1} is {image.dtype} of shape {image.shape}; use uint8 [height, width, 3], or "
                    "[height, width] for grey"
                )
        elif not isinstance(image, (str, Path)):
            raise UserError(f"image {index + 1} is a {type(image).__name__}; pass paths of image files, or pixels")

    def to_array(index: int, image: Image) -> np.ndarray:
        pixels = processor.pixels(to_rgb(image))
        if on_pixels is not None:
            on_pixels(index, pixels)
        return processor.normalize(pixels)

    arrays = read_each(images, to_array, failures)
    while batch := list(islice(arrays, _BATCH_SIZE)):
        for _, same_size in groupby(batch, key=np.shape):
            yield torch.from_numpy(np.stack(list(same_size)))


def to_rgb(image: Image) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file, or of an array. UserError for a file that cannot be read."""
    if not isinstance(image, np.ndarray):
        if not Path(image).is_file():
            raise UserError(f"{image} is not a file; pass paths of image files")
        return read_image(image)
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
