"""Inference with image-text models: captions, matches, and embeddings in a shared space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from headway.domains.image_text import pair_inference
from headway.domains.image_text.captioning import CaptionsConfig
from headway.domains.image_text.pair_inference import MAX_CAPTION_TOKENS, Image, Matches
from headway.domains.image_text.pair_inference import caption_images as captions_of
from headway.domains.image_text.task import published_task
from headway.generate import SearchConfig
from headway.io import arguments
from headway.io.arguments import check_types
from headway.predict.model_evaluation import evaluate_published
from headway.predict.model_handle import ModelHandle

Texts = Iterable[str]


@check_types
def caption(
    model: ModelHandle,
    images: Image | Iterable[Image],
    beam: int = 4,
    length_penalty: float = 0.6,
    n_best: int | None = None,
) -> str | list[str] | list[list[str]]:
    """Caption an image, or each of several; with `n_best`, return a list of the best captions per image.

    Images are files or pixels, uint8 [height, width, 3].

    beam: the beam width; 1 is greedy.

    Raises UserError for a model that does not caption images.
    """
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
    texts: str | Texts,
    templates: str | Texts = (),
    truncate: bool = False,
) -> Matches:
    """Match images (files or pixels) with texts: cosine similarities [N, M], and text probabilities for
    each image. A single image or a single text drops its axis.

    For zero-shot classification, pass the class names as texts and `templates` such as "a photo of a {}"; each
    class is then the mean vector of its filled templates. Raises UserError for a model without a joint space.
    """
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
def embed(
    model: ModelHandle, items: str | Texts | Image | Iterable[Image], truncate: bool = False
) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    request, failures = arguments.image_inputs(items, "image or text"), arguments.Failures()
    source = str(model.directory)
    embeddings = pair_inference.embed(model.module, model.codec, model.usage, request.items, truncate, source, failures)
    return request.unwrap(embeddings, failures, "image")


evaluate = evaluate_published(
    "image_text", lambda model, paths: published_task(model.module, model.codec, model.usage, paths)
)
