"""Images as shards: decoded at one size, which `headway data prepare` chooses as `headway train vision` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from headway.codecs.image_processor import ImageProcessor, pillow, read_image
from headway.config import to_dict
from headway.data.image_cache import encode_pixels
from headway.data.labelled_files import LabelledFiles, read_labelled_files
from headway.data.prepared.sample_shards import EncodedSample
from headway.data.unlabelled_files import label_free
from headway.domains.vision.labelled_images import (
    IMAGE_EXTENSIONS,
    KEY_BYTES,
    RESAMPLE,
    LabelledImages,
    survey_images,
)
from headway.domains.vision.recipes import input_sizes
from headway.domains.vision.unlabelled_images import UNLABELLED_KEY_BYTES, UnlabelledImages, read_images
from headway.errors import UserError

_MINUTES = 60  # of a training for which the size is chosen


class ImageEncoder:
    """Images of `size` (height, width) with `channels`; None for what suits a sample of them. Those without labels have
    the keys of `UnlabelledImages`.
    """

    name = "images"
    num_sums: int  # of the values of each channel, and of their squares
    processor: ImageProcessor
    _several: UnlabelledImages  # whose files of several images are read once

    def __init__(
        self, size: tuple[int, int] | None = None, channels: int | None = None, unlabelled: bool = False
    ) -> None:
        pillow()  # fails early if Pillow is missing
        self.size, self.channels, self.unlabelled = size, channels, unlabelled
        self.key_bytes = UNLABELLED_KEY_BYTES if unlabelled else KEY_BYTES

    def read(self, paths: Sequence[Path]) -> LabelledFiles:
        """The images in folders and tables; unlabelled ones also in IDX files and tables of numbers."""
        if not self.unlabelled:
            return read_labelled_files(paths, IMAGE_EXTENSIONS, "image")
        self._several = read_images(paths)
        return label_free(self._several)

    def plan(self) -> dict[str, Any]:
        return {"size": self.size, "channels": self.channels, "unlabelled": self.unlabelled}

    def choose(self, labelled: LabelledFiles, local: Callable[[Path], Path]) -> dict[str, Any]:
        survey = survey_images(
            LabelledImages(
                labelled.labels,
                labelled.named_splits,
                labelled.locations,
                labelled.files,
                classes=labelled.from_folders,
            ),
            read=lambda row: self._pixels(local(labelled.files[row]), labelled.index(row)),
        )
        if survey is None:
            raise UserError(f"{labelled.locations[0]} and all other images cannot be read; check the files")
        size = self.size or input_sizes(survey, _MINUTES)[0]
        return {"shape": [*size, self.channels or (1 if survey.grey else 3)], "survey": to_dict(survey)}

    def start(self, settings: Mapping[str, Any]) -> None:
        height, width, channels = settings["shape"]
        half = (0.5,) * channels
        self.num_sums = 2 * channels
        self.processor = ImageProcessor((height, width), resample=RESAMPLE, mean=half, std=half)

    def encode(self, path: Path, index: int | None = None) -> EncodedSample:
        pixels = self._pixels(path, index)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        return encode_pixels(self.processor.pixels(pixels), self.key_bytes)

    def _pixels(self, path: Path, index: int | None) -> UInt8[np.ndarray, "..."]:
        """An image at its own size, [H, W, 3], or [H, W] from a file of several."""
        return read_image(path) if index is None else self._several.array(path)[index]
