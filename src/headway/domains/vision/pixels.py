"""The pixels of samples, in the size and with the channels that a model reads."""

from __future__ import annotations

import hashlib

import numpy as np

from headway.codecs.images import pillow, read_image
from headway.codecs.processor import ImageProcessor
from headway.data.files import File
from headway.data.fingerprint import fingerprint
from headway.data.pixels import Images, Pixels, Reading, key_of, open_images
from headway.domains.vision.samples import Samples

_DIGEST = 8  # bytes of a key


def load_images(samples: Samples, processor: ImageProcessor, skip: bool) -> Images:
    """The images as the model sees them, from the cache if these contents have been decoded for this size before.

    A file that is no sound image is a UserError, which names it; with `skip`, such are counted in the log and stand in
    `wrong`.
    """
    shape = (*(processor.shape or ()), processor.channels)
    if samples.grey is not None and samples.grey.shape[1:] == shape[:2] and shape[2] == 1:
        pixels = samples.grey[..., None]
        return Images(pixels, [key_of(image, _DIGEST) for image in pixels], {})
    if samples.files is not None:
        pillow()  # before any work
        content = fingerprint(File(path) for path in samples.files)
    else:
        assert samples.grey is not None  # one of the two always is
        content = hashlib.blake2b(samples.grey.tobytes(), digest_size=16).hexdigest()
    how = (processor.size, processor.shortest, processor.resample, processor.crop)

    def read(number: int) -> Pixels:
        if samples.files is not None:
            return processor.pixels(read_image(samples.files[number]))
        assert samples.grey is not None  # one of the two always is
        return processor.pixels(np.repeat(samples.grey[number][:, :, None], 3, axis=2))

    return open_images(Reading(read, len(samples), shape, (content, how), _DIGEST), skip)
