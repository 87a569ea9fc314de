"""Inference with image models: predictions for one or more images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headway.domains.vision import attribution
from headway.domains.vision.attribution import ImageAttention, input_dtype, patch_weights
from headway.errors import UserError
from headway.formats import out_of_distribution
from headway.formats.usage import named_scores
from headway.generate.prompts import device_of
from headway.io import arguments
from headway.io.arguments import check_types
from headway.nn.models import evaluation_mode, kinds
from headway.predict.image_inputs import Image, image_batches, processor_of, to_rgb
from headway.predict.model_handle import ModelHandle

Labels = dict[str, float]


@check_types
def classify(
    model: ModelHandle,
    items: Image | Iterable[Image],
    truncate: bool = False,
    labels: Iterable[str] | None = None,
    hypothesis: str = "This example is {}.",
    multiple: bool = False,
) -> Labels | list[Labels]:
    if labels is not None:
        raise UserError("labels can be chosen only for text; remove them, or pass them to match with a CLIP model")
    request, failures = arguments.image_inputs(items), arguments.Failures()
    statistics: dict[int, np.ndarray] = {}
    on_pixels = lambda index, pixels: statistics.update({index: out_of_distribution.image_statistics(pixels)})  # noqa: E731
    source = str(model.directory)
    module, scores = model.module, list[Labels]()
    head = kinds.predicting_head(module) or "classes"
    with evaluation_mode(module), torch.inference_mode():
        watch = on_pixels if model.has_input_statistics else None
        for batch in image_batches(request.items, processor_of(model.usage, source), failures, watch):
            scores += named_scores(module.output(head, batch.to(device_of(module), input_dtype(module))), model.usage)
    model.check_item_statistics(request.items, statistics, "image")
    return request.unwrap(scores, failures, "image")


def describe_outliers(model: ModelHandle, images: Sequence[Image]) -> list[str | None]:
    """In which way each image is unlike those in training, as `TrainingStatistics.describe_images` does."""
    if model.input_statistics.alike is None:
        return [None] * len(images)
    processor = processor_of(model.usage, str(model.directory))
    pixels = (processor.pixels(to_rgb(image)) for image in images)
    return model.input_statistics.describe_images(out_of_distribution.stack_image_statistics(pixels))


@check_types
def embed(
    model: ModelHandle, items: Image | Iterable[Image], truncate: bool = False, prompt: str | None = None
) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    if prompt is not None:
        raise UserError("an image model has no prompts; remove the prompt")
    request, failures = arguments.image_inputs(items), arguments.Failures()
    embeddings = attribution.embed(model.module, model.usage, request.items, str(model.directory), failures)
    return request.unwrap(embeddings, failures, "image")


def look(model: ModelHandle, images: Image | Iterable[Image]) -> ImageAttention | list[ImageAttention]:
    """The attention rollout over an image, or over each of several. `picture()` of the result draws it. Raises
    UserError for a model that does not take images.
    """
    request = arguments.image_inputs(images)
    processor = processor_of(model.usage, str(model.directory))
    attention_maps = []
    for image in request.items:  # attention rollout (Abnar and Zuidema 2020)
        pixels = processor.pixels(to_rgb(image))
        weights = next(patch_weights(model.module, torch.from_numpy(processor.normalize(pixels))[None]), None)
        if weights is None:
            raise UserError(f"{model.directory} has no attention layers; use a model with mixer attention")
        attention_maps.append(ImageAttention(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), weights))
    return request.unwrap(attention_maps)
