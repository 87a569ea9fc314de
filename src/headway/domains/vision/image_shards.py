"""Images as shards: decoded at one size, which `headway data prepare` chooses as `headway train vision` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from headway.domains.vision.unlabelled_images import UNLABELLED_KEY_BYTES, read_images
from headway.errors import UserError

_MINUTES = 60  # of a training for which the size is chosen


class ImageEncoder:
    """Images of `size` (height, width) with `channels`; None for what suits a sample of them. Those without labels have
    the keys of `UnlabelledImages`.
    """

    name = "images"
    num_sums: int  # of the values of each channel, and of their squares
    processor: ImageProcessor

    def __init__(
        self, size: tuple[int, int] | None = None, channels: int | None = None, unlabelled: bool = False
    ) -> None:
        pillow()  # fails early if Pillow is missing
        self.size, self.channels, self.unlabelled = size, channels, unlabelled
        self.key_bytes = UNLABELLED_KEY_BYTES if unlabelled else KEY_BYTES

    def read(self, paths: Sequence[Path]) -> LabelledFiles:
        """The images in folders and tables. UserError for unlabelled ones that share a file."""
        if not self.unlabelled:
            return read_labelled_files(paths, IMAGE_EXTENSIONS, "image")
        return label_free(read_images(paths))

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
            read=lambda row: read_image(local(labelled.files[row])),
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

    def encode(self, path: Path) -> EncodedSample:
        return encode_pixels(self.processor.pixels(read_image(path)), self.key_bytes)
