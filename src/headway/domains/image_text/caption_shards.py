"""Images with captions as shards: decoded at one size, as the recipes `image-text` and `caption` decode them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.codecs.image_processor import ImageProcessor, pillow, read_image
from headway.data.image_cache import encode_pixels
from headway.data.labelled_files import LabelledFiles
from headway.data.prepared.sample_shards import EncodedSample
from headway.domains.image_text.captioned_images import KEY_BYTES, prepared_processor, read_captions
from headway.domains.image_text.recipes import longer_side, resolution
from headway.errors import UserError

_MINUTES = 60  # of a training for which the size is chosen


class CaptionEncoder:
    """Images for the recipe `name`, of `size` (height, width); None for what suits a sample of them. Their labels are
    the captions, as JSON.
    """

    key_bytes, num_sums = KEY_BYTES, 6
    processor: ImageProcessor

    def __init__(self, name: str, size: tuple[int, int] | None = None) -> None:
        pillow()  # fails early if Pillow is missing
        self.name, self.size = name, size

    def read(self, paths: Sequence[Path]) -> LabelledFiles:
        """The images in tables. A label lists the table row, text and language of each caption."""
        captions = read_captions(paths, remedy="name the columns path and caption")
        rows: list[list[tuple[int, str, str | None]]] = [[] for _ in captions.images]
        languages = captions.languages or [None] * len(captions.texts)
        for row, (image, text, language) in enumerate(zip(captions.image_of.tolist(), captions.texts, languages)):
            rows[image].append((row, text, language))
        files = [image.path for image in captions.images]
        labels = [json.dumps(row) for row in rows]
        return LabelledFiles(files, labels, captions.named_splits, list(map(str, files)), from_folders=False)

    def plan(self) -> dict[str, Any]:
        return {"size": self.size}

    def choose(self, labelled: LabelledFiles, local: Callable[[Path], Path]) -> dict[str, Any]:
        longer = longer_side(labelled.files, local)
        if longer is None:
            raise UserError(f"{labelled.locations[0]} and all other images cannot be read; check the files")
        side, _ = resolution(longer, _MINUTES)
        return {"shape": [*(self.size or (side, side)), 3]}

    def start(self, settings: Mapping[str, Any]) -> None:
        self.processor = prepared_processor(self.name, settings["shape"])

    def encode(self, path: Path, index: int | None = None) -> EncodedSample:
        return encode_pixels(self.processor.pixels(read_image(path)), self.key_bytes)
