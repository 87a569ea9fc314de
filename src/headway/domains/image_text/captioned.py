"""Images and their captions, wherever they come from: what a captioner is trained on and judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from headway.codecs.processor import ImageProcessor
from headway.data import SplitConfig, sides_of
from headway.domains.image_text.data import Captions
from headway.domains.image_text.pictures import open_pictures
from headway.errors import UserError


@dataclass(frozen=True)
class Captioned:
    """N samples. `pixels(rows)` are their images, all of one size; `images` are equal for samples of the same image,
    whose captions are one another's alternatives; `sides` are the samples of each split, "train", "validation", "test"
    and perhaps others; `shown(row)` is a sample's name for people, `place(row)` where it stands, for messages.
    """

    captions: Sequence[str]
    images: Int[np.ndarray, "N"]
    sides: dict[str, Int[np.ndarray, "K"]]
    pixels: Callable[[Int[np.ndarray, "B"]], UInt8[np.ndarray, "B H W 3"]]
    shown: Callable[[int], str]
    place: Callable[[int], str]


def captioned(
    found: Captions,
    processor: ImageProcessor,
    split: SplitConfig,
    skip: bool = False,
    wanted: Bool[np.ndarray, "N"] | None = None,
) -> Captioned:
    """The texts of `found`, or the `wanted` of them, with their images.

    Equal pixels are one image, and all its captions are on the same side of the split. UserErrors are those of
    `open_pictures`: an image that is corrupt, unless `skip` has such left out and counted.
    """
    pictures = open_pictures(found.images, processor, skip)
    kept = ~np.isin(found.of, list(pictures.wrong))
    rows = np.flatnonzero(kept if wanted is None else kept & wanted)
    if len(rows) == 0:
        raise UserError(f"none of {len(found.texts):,} captions has a sound image; give some that has")
    of = found.of[rows]
    _, same = np.unique(pictures.keys, return_inverse=True)
    keys = pictures.keys if found.groups is None else found.groups
    return Captioned(
        captions=[found.texts[row] for row in rows.tolist()],
        images=same[of],
        sides=sides_of([keys[image] for image in of.tolist()], found.named[of], split),
        pixels=lambda chosen: np.asarray(pictures.pixels[of[chosen]]),
        shown=lambda row: found.images[of[row]].name,
        place=lambda row: found.places[rows[row]],
    )
