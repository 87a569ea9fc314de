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
Texts = Iterable[str]


@check_types
def classify(model: ModelHandle, items: Text | Iterable[Text], truncate: bool = False) -> Labels | list[Labels]:
    """The probability of each label, most probable first, for a text, a text pair (a tuple), an image or an audio
    clip, or for each of several. A regression model returns its prediction as "value". A multi-label model
    predicts the labels whose probability reaches their `thresholds`.

    Images are files or pixels, uint8 [height, width, 3] or [height, width]. Audio is a file or samples at 16 kHz,
    [N].

    truncate: cut text, and use the middle of audio, that is longer than the model's input; otherwise it raises
    an error.

    Raises UserError for a model without classes.
    """
    request = arguments.text_or_pair_inputs(items)
    _check_texts(model, [text if isinstance(text, str) else " ".join(text) for text in request.items])
    return request.unwrap(
        encoder_inference.classify(model.module, model.codec, model.usage, request.items, truncate=truncate)
    )


@check_types
def rerank(
    model: ModelHandle, query: str, documents: Texts, top_n: int | None = None, truncate: bool = False
) -> list[RankedDocument]:
    """Rank documents by their relevance to a query with a cross-encoder: scores from 0 to 1, most relevant first,
    at most `top_n`.

    truncate: cut inputs that are too long, the longer of the two texts first; otherwise they raise an error.

    Raises UserError for a model that does not have exactly one output.
    """
    items = arguments.text_inputs([documents] if isinstance(documents, str) else documents, "document").items
    if top_n is not None and top_n < 1:
        raise UserError(f"top_n is {top_n}; use an integer of at least 1, or None for all")
    _check_texts(model, [query, *items])
    return encoder_inference.rerank(model.module, model.codec, query, items, truncate=truncate)[:top_n]


@check_types
def tag(
    model: ModelHandle, texts: str | Iterable[str | Texts], truncate: bool = False
) -> TaggedWords | list[TaggedWords]:
    """The words, tags and entities of a text, or of each of several. Texts in a list may be lists of words."""
    request = arguments.text_or_word_inputs(texts)
    _check_texts(model, [text if isinstance(text, str) else " ".join(text) for text in request.items])
    return request.unwrap(
        encoder_inference.tag(model.module, model.codec, model.usage.labels, request.items, truncate=truncate)
    )


@check_types
def embed(model: ModelHandle, items: str | Texts, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    """A unit-length vector for a text or an image, Float[D], or for each of several, Float[N, D].

    A model with a joint space for images and texts takes both; a string that is an image path stands
    for the image.
    """
    request = arguments.text_inputs(items)
    return request.unwrap(encoder_inference.embed(model.module, model.codec, request.items, truncate=truncate))


def _check_texts(model: ModelHandle, texts: Sequence[str]) -> None:
    if model.recipe is not None:
        model.check_texts(texts, model.codec.encode_batch(texts))
