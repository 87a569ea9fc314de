"""Inference with image captioning models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from headway.arguments import Failures, read_each
from headway.codecs import Codec
from headway.codecs.image_processor import ImageProcessor
from headway.domains.image_text.pair_inference import Image, check_images, pixels_of
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import Hypothesis, SearchConfig, beam_search
from headway.generate.prompts import context_of, device_of, pad
from headway.nn.models import Captioner, PatchEmbed, Prompt

MAX_CAPTION_TOKENS = 64  # default maximum tokens per caption
_BATCH_SIZE = 16  # images


def caption_images(
    model: Captioner,
    codec: Codec,
    usage: Usage,
    images: Sequence[Image],
    source: str,
    search: SearchConfig,
    max_length: int = MAX_CAPTION_TOKENS,
    failures: Failures | None = None,
) -> list[list[str]]:
    """The `n_best` captions of each image (a file or its pixels), best first.

    `source` names the model in messages; images that cannot be read are skipped and added to `failures`, if passed.
    Raises UserError for a model without a preprocessor_config.json or without bos and eos tokens, and for invalid
    images.
    """
    if not usage.processor:
        raise UserError(f"{source} has no preprocessor_config.json, which defines the image preprocessing; add it")
    processor = ImageProcessor.read(usage.processor, f"{source}: preprocessor_config.json")
    check_images(images)
    bos, eos = bos_and_eos(codec)
    hypotheses = search_captions(model, _batches(images, processor, failures), bos, eos, search, max_length)
    return [[codec.decode(hypothesis.ids) for hypothesis in image_hypotheses] for image_hypotheses in hypotheses]


def bos_and_eos(codec: Codec) -> tuple[int, int]:
    """The bos and eos tokens of a caption. UserError for a codec without them."""
    if codec.eos_id is None:
        raise UserError("the tokenizer has no eos token, so a caption would never end; use one with an eos token")
    return codec.eos_id if codec.bos_id is None else codec.bos_id, codec.eos_id


def search_captions(
    model: Captioner,
    batches: Iterable[Float32[Tensor, "B 3 H W"]],
    bos: int,
    eos: int,
    search: SearchConfig,
    max_length: int,
) -> list[list[Hypothesis]]:
    """The `n_best` captions of each image, of at most `max_length` tokens, best first."""
    context = context_of(model)
    limit = max_length if context is None else min(max_length, context - 1)
    parameter = cast(PatchEmbed, model.tower.embed).positions.table  # never quantised
    hypotheses = []
    for batch in batches:
        images = batch.to(device_of(model), parameter.dtype)
        prompt = Prompt(*pad([[bos]] * len(images), device_of(model)), images)
        hypotheses += beam_search(model, prompt, [limit] * len(images), eos, search)
    return hypotheses


def _batches(
    images: Sequence[Image], processor: ImageProcessor, failures: Failures | None
) -> Iterator[Float32[Tensor, "B 3 H W"]]:
    """Inputs in the order of the images, in batches of consecutive images of the same size."""
    arrays = read_each(images, lambda _, image: processor(pixels_of(image)), failures)
    while batch := list(islice(arrays, _BATCH_SIZE)):
        for _, same_size in groupby(batch, key=np.shape):
            yield torch.from_numpy(np.stack(list(same_size)))
