"""Inference with image-text models: captions, matches, and embeddings in a shared space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headway import arguments
from headway.arguments import check_types
from headway.domains.image_text import pair_inference
from headway.domains.image_text.captioning import CaptionsConfig
from headway.domains.image_text.pair_inference import MAX_CAPTION_TOKENS, Image, Matches
from headway.domains.image_text.pair_inference import caption_images as captions_of
from headway.domains.image_text.task import published_task
from headway.generate import SearchConfig
from headway.in_memory_data import Data
from headway.model_evaluation import evaluate_published
from headway.model_handle import ModelHandle

Strings = Iterable[str]


@check_types
def caption(
    model: ModelHandle,
    images: Image | Iterable[Image],
    beam: int = 4,
    length_penalty: float = 0.6,
    n_best: int | None = None,
) -> str | list[str] | list[list[str]]:
    task = None if model.recipe is None else model.recipe.task
    max_length = task.max_length if isinstance(task, CaptionsConfig) else MAX_CAPTION_TOKENS
    request, search = (
        arguments.image_inputs(images),
        SearchConfig(beam, length_penalty, 1 if n_best is None else n_best),
    )
    captioner: Any = model.generator
    source, failures = str(model.directory), arguments.Failures()
    captions = captions_of(captioner, model.codec, model.usage, request.items, source, search, max_length, failures)
    return request.unwrap([hypotheses[0] for hypotheses in captions] if n_best is None else captions, failures, "image")


@check_types
def match(
    model: ModelHandle,
    images: Image | Iterable[Image],
    texts: str | Strings,
    templates: str | Strings = (),
    truncate: bool = False,
) -> Matches:
    source, failures = str(model.directory), arguments.Failures()
    image_request, text_request, prompt_templates = (
        arguments.image_inputs(images),
        arguments.text_inputs(texts),
        arguments.text_inputs(templates, "template").items,
    )
    matches = pair_inference.match(
        model.module,
        model.codec,
        model.usage,
        image_request.items,
        text_request.items,
        prompt_templates,
        truncate,
        source=source,
        failures=failures,
    )
    if failures:
        image_request.unwrap(
            Matches(*(tensor[:, 0] if text_request.is_single else tensor for tensor in matches)), failures, "image"
        )
    index = (0 if image_request.is_single else slice(None), 0 if text_request.is_single else slice(None))
    return Matches(*(tensor[index] for tensor in matches))


@check_types
def embed(model: ModelHandle, items: Any, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    request, failures = arguments.image_inputs(items, "image or text"), arguments.Failures()
    source = str(model.directory)
    embeddings = pair_inference.embed(model.module, model.codec, model.usage, request.items, truncate, source, failures)
    return request.unwrap(embeddings, failures, "image")


@check_types
def evaluate(
    model: ModelHandle,
    data: Data | None = None,
    split: str | None = None,
    limit: int | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    task_of = lambda paths: published_task(model.module, model.codec, model.usage, paths)  # noqa: E731
    return evaluate_published(model, task_of, "image_text", data, split, limit, stride)
