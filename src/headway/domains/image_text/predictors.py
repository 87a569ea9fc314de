"""Inference with image-text models: captions, matches, and embeddings in a shared space."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.domains.image_text.captioning import CaptionsConfig
from headway.domains.image_text.pair_inference import (
    IMAGE_EXTENSIONS,
    Matches,
    bos_and_eos,
    check_texts,
    embed_images,
    embed_texts,
    search_captions,
)
from headway.domains.image_text.task import published_task
from headway.errors import UserError
from headway.generate import SearchConfig
from headway.generate.prompts import device_of
from headway.io import arguments
from headway.io.arguments import check_types
from headway.predict.image_inputs import Image, image_batches, processor_of
from headway.predict.model_evaluation import evaluate_published
from headway.predict.model_handle import ModelHandle

Texts = Iterable[str]
MAX_CAPTION_TOKENS = 64  # default maximum tokens per caption


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

    beam: beams per image; 1 is greedy.
    length_penalty: length penalty, GNMT's alpha.
    n_best: captions per image, best first.

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
    batches = image_batches(request.items, processor_of(model.usage, source), failures)
    hypotheses = search_captions(captioner, batches, *bos_and_eos(model.codec), search, max_length)
    captions = [[model.codec.decode(hypothesis.ids) for hypothesis in beams] for beams in hypotheses]
    return request.unwrap([texts[0] for texts in captions] if n_best is None else captions, failures, "image")


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

    truncate: truncate text that is too long for the model.
    """
    module = model.module
    source = str(model.directory)
    failures = arguments.Failures()
    image_request = arguments.image_inputs(images)
    text_request = arguments.text_inputs(texts)
    prompt_templates = arguments.text_inputs(templates, "template").items
    if not image_request.items or not text_request.items:
        raise UserError(
            f"there are {len(image_request.items)} images and {len(text_request.items)} texts; pass at least one of "
            "each"
        )
    for template in prompt_templates:
        if template.count("{}") != 1:
            raise UserError(f'the template {template!r} needs exactly one {{}}; write it as "a photo of a {{}}"')
    check_texts(text_request.items)
    prompts = [template.replace("{}", text) for text in text_request.items for template in prompt_templates or ["{}"]]
    text_vectors = embed_texts(module, model.codec, prompts, truncate)  # before the images, which take longer
    image_vectors = embed_images(module, model.usage, image_request.items, source, failures)
    # A text's embedding is the mean over all templates (Radford et al. 2021, section 3.1.4).
    text_vectors = F.normalize(text_vectors.unflatten(0, (len(text_request.items), -1)).mean(1), dim=-1)
    with torch.inference_mode():
        device = device_of(module)
        pair_logits = module.logits(image_vectors.to(device), text_vectors.to(device)).float().cpu()
    probabilities = pair_logits.softmax(-1) if module.bias is None else pair_logits.sigmoid()
    matches = Matches(image_vectors @ text_vectors.T, probabilities)
    if failures:
        image_request.unwrap(
            Matches(*(tensor[:, 0] if text_request.is_single else tensor for tensor in matches)), failures, "image"
        )
    index = (0 if image_request.is_single else slice(None), 0 if text_request.is_single else slice(None))
    return Matches(*(tensor[index] for tensor in matches))


@check_types
def embed(
    model: ModelHandle, items: str | Texts | Image | Iterable[Image], truncate: bool = False, prompt: str | None = None
) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    if prompt is not None:
        raise UserError("an image-text model has no prompts; remove the prompt")
    request, failures = arguments.image_inputs(items, "image or text"), arguments.Failures()
    images = {}  # by index; a string that is the path of an image file stands for the image
    for index, item in enumerate(request.items):
        if not isinstance(item, str) or (item.lower().endswith(IMAGE_EXTENSIONS) and Path(item).is_file()):
            images[index] = item
    texts = {index: str(item) for index, item in enumerate(request.items) if index not in images}
    embeddings = torch.empty(len(request.items), model.module.width)
    if texts:
        check_texts(list(texts.values()))
        embeddings[list(texts)] = embed_texts(model.module, model.codec, list(texts.values()), truncate)
    if images:
        image_failures = arguments.Failures()
        vectors = embed_images(model.module, model.usage, list(images.values()), str(model.directory), image_failures)
        embeddings[list(images)] = arguments.fill_failures(vectors, image_failures, len(images))
        failures.update({list(images)[position]: error for position, error in image_failures.items()})
    present = [index for index in range(len(request.items)) if index not in failures]
    return request.unwrap(embeddings[present], failures, "image")


evaluate = evaluate_published(
    "image_text", lambda model, paths: published_task(model.module, model.codec, model.usage, paths)
)
