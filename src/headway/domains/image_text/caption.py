"""Inference with image captioning models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from headway.codecs import Codec
from headway.codecs.processor import ImageProcessor
from headway.domains.image_text.use import Image, check_images, pixels_of
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import Hypothesis, SearchConfig, beam_search
from headway.generate.prompts import context_of, device_of, pad
from headway.given import Failed, each
from headway.nn.models import Captioner, PatchEmbed, Prompt

LONGEST = 64  # default maximum tokens per caption
_AT_ONCE = 16  # images


def caption(
    model: Captioner,
    codec: Codec,
    usage: Usage,
    images: Sequence[Image],
    source: str,
    search: SearchConfig,
    longest: int = LONGEST,
    failed: Failed | None = None,
) -> list[list[str]]:
    """The `n_best` captions of each image (a file or its pixels), best first.

    `source` names the model in messages; images that cannot be read are left out and added to `failures`, if passed.
    Raises UserError for a model without a preprocessor_config.json or without bos and eos tokens, and for invalid
    images.
    """
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    processor = ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")
    check_images(images)
    begin, end = marks(codec)
    found = write(model, _batches(images, processor, failed), begin, end, search, longest)
    return [[codec.decode(hypothesis.ids) for hypothesis in some] for some in found]


def marks(codec: Codec) -> tuple[int, int]:
    """The bos and eos tokens of a caption. UserError for a codec without them."""
    if codec.end is None:
        raise UserError("the tokenizer has no eos token, so a caption would never end; use one with an eos token")
    return codec.end if codec.begin is None else codec.begin, codec.end


def write(
    model: Captioner,
    batches: Iterable[Float32[Tensor, "B 3 H W"]],
    begin: int,
    end: int,
    search: SearchConfig,
    longest: int,
) -> list[list[Hypothesis]]:
    """The `n_best` captions of each image, of at most `max_length` tokens, best first."""
    room = context_of(model)
    most = longest if room is None else min(longest, room - 1)
    like = cast(PatchEmbed, model.tower.embed).positions.table  # never quantised
    found = []
    for batch in batches:
        images = batch.to(device_of(model), like.dtype)
        prompt = Prompt(*pad([[begin]] * len(images), device_of(model)), images)
        found += beam_search(model, prompt, [most] * len(images), end, search)
    return found


def _batches(
    images: Sequence[Image], processor: ImageProcessor, failed: Failed | None
) -> Iterator[Float32[Tensor, "B 3 H W"]]:
    """Inputs in the order of the images, in batches of consecutive images of the same size."""
    read = each(images, lambda _, image: processor(pixels_of(image)), failed)
    while some := list(islice(read, _AT_ONCE)):
        for _, alike in groupby(some, key=np.shape):
            yield torch.from_numpy(np.stack(list(alike)))
