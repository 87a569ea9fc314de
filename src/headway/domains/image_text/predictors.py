"""Image-text models in use: captions, matches, and embeddings in one space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.domains.image_text import use
from headway.domains.image_text.caption import LONGEST
from headway.domains.image_text.caption import caption as captions_of
from headway.domains.image_text.caption_config import CaptionsConfig
from headway.domains.image_text.task import published_task
from headway.domains.image_text.use import Image, Matches
from headway.evaluation import evaluate_published
from headway.generate import SearchConfig
from headway.given import typed
from headway.handle import Handle
from headway.in_memory import Data

Texts = Iterable[str]


@typed
def caption(
    model: Handle,
    images: Image | Iterable[Image],
    beam: int = 4,
    length_penalty: float = 0.6,
    n_best: int | None = None,
) -> str | list[str] | list[list[str]]:
    task = None if model.recipe is None else model.recipe.task
    longest = task.longest if isinstance(task, CaptionsConfig) else LONGEST
    asked, search = given.images(images), SearchConfig(beam, length_penalty, 1 if n_best is None else n_best)
    writer: Any = model.generator
    source, failed = str(model.directory), given.Failed()
    found = captions_of(writer, model.codec, model.usage, asked.items, source, search, longest, failed)
    return asked.answer([best[0] for best in found] if n_best is None else found, failed, "image")


@typed
def match(
    model: Handle,
    images: Image | Iterable[Image],
    texts: str | Texts,
    templates: str | Texts = (),
    truncate: bool = False,
) -> Matches:
    source, failed = str(model.directory), given.Failed()
    seen, read, forms = given.images(images), given.texts(texts), given.texts(templates, "template").items
    found = use.match(
        model.module, model.codec, model.usage, seen.items, read.items, forms, truncate, source=source, failed=failed
    )
    if failed:
        seen.answer(Matches(*(each[:, 0] if read.one else each for each in found)), failed, "image")
    kept = (0 if seen.one else slice(None), 0 if read.one else slice(None))
    return Matches(*(each[kept] for each in found))


@typed
def embed(model: Handle, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    asked, failed = given.images(items, "image or text"), given.Failed()
    source = str(model.directory)
    found = use.embed(model.module, model.codec, model.usage, asked.items, truncate, source, failed)
    return asked.answer(found, failed, "image")


@typed
def evaluate(
    model: Handle,
    data: Data | None = None,
    split: str | None = None,
    limit: int | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    task_of = lambda paths: published_task(model.module, model.codec, model.usage, paths)  # noqa: E731
    return evaluate_published(model, task_of, "image_text", data, split, limit, stride)
