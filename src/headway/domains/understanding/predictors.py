"""Encoders in use: predictions for one text or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from headway import given
from headway.domains.understanding import use
from headway.domains.understanding.use import RankedDocument, TaggedWords, Text
from headway.errors import UserError
from headway.given import typed
from headway.handle import Handle

Labels = dict[str, float]


@typed
def classify(model: Handle, items: Text | Iterable[Text], truncate: bool = False) -> Labels | list[Labels]:
    asked = given.texts_or_pairs(items)
    _meet(model, [text if isinstance(text, str) else " ".join(text) for text in asked.items])
    return asked.answer(use.classify(model.module, model.codec, model.usage, asked.items, truncate=truncate))


@typed
def rerank(
    model: Handle, query: str, documents: Iterable[str], top_n: int | None = None, truncate: bool = False
) -> list[RankedDocument]:
    items = given.texts([documents] if isinstance(documents, str) else documents, "document").items
    if top_n is not None and top_n < 1:
        raise UserError(f"top_n is {top_n}; use an integer of at least 1, or None for all")
    _meet(model, [query, *items])
    return use.rerank(model.module, model.codec, query, items, truncate=truncate)[:top_n]


@typed
def tag(
    model: Handle, texts: str | Iterable[str | Iterable[str]], truncate: bool = False
) -> TaggedWords | list[TaggedWords]:
    asked = given.texts_or_words(texts)
    _meet(model, [text if isinstance(text, str) else " ".join(text) for text in asked.items])
    return asked.answer(use.tag(model.module, model.codec, model.usage.labels, asked.items, truncate=truncate))


@typed
def embed(
    model: Handle, items: str | Iterable[str], truncate: bool = False
) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    asked = given.texts(items)
    return asked.answer(use.embed(model.module, model.codec, asked.items, truncate=truncate))


def _meet(model: Handle, texts: Sequence[str]) -> None:
    if model.recipe is not None:
        model.meet(texts, model.codec.encode_batch(texts))
