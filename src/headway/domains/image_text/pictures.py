"""Images as a model of images and texts reads them."""

from __future__ import annotations

from collections.abc import Sequence

from headway.codecs.processor import ImageProcessor, decode_image, pillow
from headway.data.files import File, blocks
from headway.data.fingerprint import fingerprint
from headway.data.pixels import DecodedImages, Pixels, Reading, open_images
from headway.errors import UserError

_DIGEST = 16  # bytes of a key


def open_pictures(files: Sequence[File], processor: ImageProcessor, skip: bool) -> DecodedImages:
    """The images of files, and of members of .zip archives, resized and cropped for a model, from the cache or into it.

    UserError for the first image that is corrupt, no image at all or too large to be decoded; with `skip` such images
    are counted in a warning, and their pixels are black.
    """
    if processor.shape is None:
        raise UserError("the image processor gives every image a size of its own; let it resize or crop to one")
    pillow()  # before any work
    steps = (processor.size, processor.shortest, processor.resample, processor.crop)
    shape = (*processor.shape, processor.channels)

    def read(number: int) -> Pixels:
        file = files[number]
        return processor.pixels(decode_image(b"".join(blocks(file)), str(file)))

    return open_images(Reading(read, len(files), shape, (fingerprint(files), steps), _DIGEST), skip)
