"""Image models in use: predictions for one image or many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.domains.vision import looking, use
from headway.domains.vision.looking import ImageAttention
from headway.domains.vision.use import Image
from headway.formats import familiar
from headway.given import check_types
from headway.handle import ModelHandle

Labels = dict[str, float]


@check_types
def classify(model: ModelHandle, items: Any, truncate: bool = False) -> Labels | list[Labels]:
    request, failures = given.image_inputs(items), given.Failures()
    statistics: dict[int, np.ndarray] = {}
    on_pixels = lambda index, pixels: statistics.update({index: familiar.image_statistics(pixels)})  # noqa: E731
    source = str(model.directory)
    scores = use.classify(
        model.module, model.usage, request.items, source, failures, on_pixels if model.has_input_statistics else None
    )
    model.check_item_statistics(request.items, statistics, "image")
    return request.unwrap(scores, failures, "image")


@check_types
def embed(model: ModelHandle, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    request, failures = given.image_inputs(items), given.Failures()
    embeddings = use.embed(model.module, model.usage, request.items, str(model.directory), failures)
    return request.unwrap(embeddings, failures, "image")


def look(model: ModelHandle, images: Image | Iterable[Image]) -> ImageAttention | list[ImageAttention]:
    request = given.image_inputs(images)
    return request.unwrap(looking.attribute_images(model.module, model.usage, request.items, str(model.directory)))
