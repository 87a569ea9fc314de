"""Inference with encoders: predictions for one or more texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from headway import arguments
from headway.arguments import check_types
from headway.domains.understanding import encoder_inference
from headway.domains.understanding.encoder_inference import RankedDocument, TaggedWords, Text
from headway.errors import UserError
from headway.model_handle import ModelHandle

Labels = dict[str, float]


@check_types
def classify(model: ModelHandle, items: Text | Iterable[Text], truncate: bool = False) -> Labels | list[Labels]:
    request = arguments.text_or_pair_inputs(items)
    _check_texts(model, [text if isinstance(text, str) else " ".join(text) for text in request.items])
    return request.unwrap(
        encoder_inference.classify(model.module, model.codec, model.usage, request.items, truncate=truncate)
    )


@check_types
def rerank(
    model: ModelHandle, query: str, documents: Iterable[str], top_n: int | None = None, truncate: bool = False
) -> list[RankedDocument]:
    items = arguments.text_inputs([documents] if isinstance(documents, str) else documents, "document").items
    if top_n is not None and top_n < 1:
        raise UserError(f"top_n is {top_n}; use an integer of at least 1, or None for all")
    _check_texts(model, [query, *items])
    return encoder_inference.rerank(model.module, model.codec, query, items, truncate=truncate)[:top_n]


@check_types
def tag(
    model: ModelHandle, texts: str | Iterable[str | Iterable[str]], truncate: bool = False
) -> TaggedWords | list[TaggedWords]:
    request = arguments.text_or_word_inputs(texts)
    _check_texts(model, [text if isinstance(text, str) else " ".join(text) for text in request.items])
    return request.unwrap(
        encoder_inference.tag(model.module, model.codec, model.usage.labels, request.items, truncate=truncate)
    )


@check_types
def embed(
    model: ModelHandle, items: str | Iterable[str], truncate: bool = False
) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    request = arguments.text_inputs(items)
    return request.unwrap(encoder_inference.embed(model.module, model.codec, request.items, truncate=truncate))


def _check_texts(model: ModelHandle, texts: Sequence[str]) -> None:
    if model.recipe is not None:
        model.check_texts(texts, model.codec.encode_batch(texts))
