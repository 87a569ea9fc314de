"""Image models in use: predictions for one image or many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.domains.vision import looking, use
from headway.domains.vision.looking import Look
from headway.domains.vision.use import Image
from headway.formats import familiar
from headway.given import typed
from headway.handle import Handle

Labels = dict[str, float]


@typed
def classify(model: Handle, items: Any, truncate: bool = False) -> Labels | list[Labels]:
    asked, failed = given.images(items), given.Failed()
    found: dict[int, np.ndarray] = {}
    watch = lambda place, pixels: found.update({place: familiar.look(pixels)})  # noqa: E731
    source = str(model.directory)
    said = use.classify(model.module, model.usage, asked.items, source, failed, watch if model.watches else None)
    model.see_some(asked.items, found, "image")
    return asked.answer(said, failed, "image")


@typed
def embed(model: Handle, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    asked, failed = given.images(items), given.Failed()
    found = use.embed(model.module, model.usage, asked.items, str(model.directory), failed)
    return asked.answer(found, failed, "image")


def look(model: Handle, images: Image | Iterable[Image]) -> Look | list[Look]:
    asked = given.images(images)
    return asked.answer(looking.look(model.module, model.usage, asked.items, str(model.directory)))
