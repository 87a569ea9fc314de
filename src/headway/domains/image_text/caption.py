"""Captions of images by a trained captioner."""

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

LONGEST = 64  # symbols of a caption where nothing says how many
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
    """The `n_best` captions of each image, a file or its pixels, best first.

    `source` is the model's place, for messages; images that cannot be read are left out and put into `failed`, where
    that is given. Raises UserError for a model without a preprocessor_config.json or
    without marks around its texts, and for what is no sound image.
    """
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which says how images become inputs; put it there")
    processor = ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")
    check_images(images)
    begin, end = marks(codec)
    found = write(model, _batches(images, processor, failed), begin, end, search, longest)
    return [[codec.decode(hypothesis.ids) for hypothesis in some] for some in found]


def marks(codec: Codec) -> tuple[int, int]:
    """The symbols before and after a caption. UserError for a codec that has none."""
    if codec.end is None:
        raise UserError("the tokenizer has no end symbol, so a caption would never end; use one that was trained with")
    return codec.end if codec.begin is None else codec.begin, codec.end


def write(
    model: Captioner,
    batches: Iterable[Float32[Tensor, "B 3 H W"]],
    begin: int,
    end: int,
    search: SearchConfig,
    longest: int,
) -> list[list[Hypothesis]]:
    """The `n_best` captions of each image, of at most `longest` symbols, best first."""
    room = context_of(model)
    most = longest if room is None else min(longest, room - 1)
    like = cast(PatchEmbed, model.tower.embed).positions.table  # which no quantisation packs
    found = []
    for batch in batches:
        images = batch.to(device_of(model), like.dtype)
        prompt = Prompt(*pad([[begin]] * len(images), device_of(model)), images)
        found += beam_search(model, prompt, [most] * len(images), end, search)
    return found


def _batches(
    images: Sequence[Image], processor: ImageProcessor, failed: Failed | None
) -> Iterator[Float32[Tensor, "B 3 H W"]]:
    """Inputs in the order of the images; neighbours of the same size go together."""
    read = each(images, lambda _, image: processor(pixels_of(image)), failed)
    while some := list(islice(read, _AT_ONCE)):
        for _, alike in groupby(some, key=np.shape):
            yield torch.from_numpy(np.stack(list(alike)))
