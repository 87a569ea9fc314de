"""Inference with encoders: labels, tags, relevance and embeddings of texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.codecs import Codec
from headway.codecs.tokenizer import TokenizerCodec, tokenize_words
from headway.domains.understanding.tagging import WordTokenRows, word_tags
from headway.errors import UserError
from headway.formats.usage import named_scores
from headway.generate.prompts import device_of, evaluation_mode
from headway.io import arguments
from headway.io.arguments import check_types
from headway.learn.token_rows import MAX_BATCH_TOKENS, LengthLimit, TokenRows, frame_for, frame_rows
from headway.metrics import EntitySpan, entity_spans
from headway.nn.models import PooledHeadConfig, Transformer, kinds
from headway.nn.models.pooled import pool
from headway.predict.model_handle import ModelHandle

Labels = dict[str, float]
Text = str | tuple[str, str]
Texts = Iterable[str]

_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")  # splits text as the CoNLL corpora do


class TaggedWords(NamedTuple):
    """The words of a text with their tags, and the entities (spans of words) that the tags encode."""

    words: list[str]
    tags: list[str]
    entities: list[EntitySpan]


class RankedDocument(NamedTuple):
    """A document with its index in the request and its relevance from 0 to 1."""

    index: int
    score: float
    document: str


@check_types
def classify(model: ModelHandle, items: Text | Iterable[Text], truncate: bool = False) -> Labels | list[Labels]:
    """The probability of each label, most probable first, for a text, a text pair (a tuple), an image or an audio
    clip, or for each of several. A regression model returns its prediction as "value". A multi-label model
    predicts the labels whose probability reaches their `thresholds`.

    Images are files or pixels, uint8 [height, width, 3] or [height, width]. Audio is a file or samples at 16 kHz,
    [N].

    truncate: truncate text that is too long for the model, and use the middle of audio that is too long; otherwise
    both are errors.

    Raises UserError for a model without classes.
    """
    request = arguments.text_or_pair_inputs(items)
    _check_texts(model, request.items)
    rows = text_rows(model.module, model.codec, request.items, truncate)
    scores: dict[int, Labels] = {}
    for indices, logits in _batched_outputs(model.module, kinds.predicting_head(model.module) or "classes", rows):
        scores.update(zip(indices.tolist(), named_scores(logits, model.usage)))
    return request.unwrap([scores[row] for row in range(len(request.items))])


@check_types
def rerank(
    model: ModelHandle, query: str, documents: Texts, top_n: int | None = None, truncate: bool = False
) -> list[RankedDocument]:
    """Rank documents by their relevance to a query with a cross-encoder: scores from 0 to 1, most relevant first,
    at most `top_n`.

    truncate: truncate inputs that are too long for the model, the longer text first; otherwise they are errors.

    Raises UserError for a model that does not have exactly one output.
    """
    items = arguments.text_inputs([documents] if isinstance(documents, str) else documents, "document").items
    if top_n is not None and top_n < 1:
        raise UserError(f"top_n is {top_n}; use an integer of at least 1, or None for all")
    _check_texts(model, [query, *items])
    rows = pair_rows(model.module, model.codec, [(query, document) for document in items], truncate)
    ranked = map(RankedDocument, range(len(items)), relevance(model.module, rows), items)
    return sorted(ranked, key=lambda document: -document.score)[:top_n]  # ties keep their order


@check_types
def tag(
    model: ModelHandle, texts: str | Iterable[str | Texts], truncate: bool = False
) -> TaggedWords | list[TaggedWords]:
    """The words, tags and entities of a text, or of each of several. Texts in a list may be lists of words.

    truncate: truncate text that is too long for the model.
    """
    request, codec, config = arguments.text_or_word_inputs(texts), model.codec, model.module.config
    _check_texts(model, request.items)
    sentences = [_WORD.findall(text) if isinstance(text, str) else text for text in request.items]
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"a {type(codec).__name__} has no word boundaries; use a tokenizer.json")
    limit = LengthLimit(config.context, truncate)
    word_rows = WordTokenRows(tokenize_words(codec, sentences), frame_for(codec, config), limit)
    tagged: dict[int, TaggedWords] = {}
    for indices, logits in _batched_outputs(model.module, "tags", word_rows.rows):
        names = list(model.usage.labels) or [f"LABEL_{index}" for index in range(logits.shape[-1])]
        if len(names) != logits.shape[-1]:
            raise UserError(f"the model has {logits.shape[-1]} tags but {len(names)} tag names; name all tags")
        for row, best in zip(indices.tolist(), logits.argmax(-1).cpu().numpy()):
            words = sentences[row]
            tags = word_tags(best, word_rows.positions[row, : len(words)], names)
            tagged[row] = TaggedWords(words, tags, entity_spans(tags))
    return request.unwrap([tagged[row] for row in range(len(sentences))])


@check_types
def embed(model: ModelHandle, items: str | Texts, truncate: bool = False) -> Float[Tensor, "D"] | Float[Tensor, "N D"]:
    """A unit-length vector for a text or an image, Float[D], or for each of several, Float[N, D].

    A model with a joint space for images and texts takes both; a string that is an image path stands
    for the image.

    truncate: truncate text that is too long for the model.
    """
    request = arguments.text_inputs(items)
    return request.unwrap(embed_rows(model.module, text_rows(model.module, model.codec, request.items, truncate)))


def embed_rows(model: Transformer, rows: TokenRows) -> Float[Tensor, "N D"]:
    """A unit-length embedding for each row: the output of the head "embedding", otherwise the mean over its tokens.
    Rows of similar lengths are computed together.
    """
    embeddings = torch.empty(len(rows), model.config.width)
    for indices, vectors in _batched_outputs(model, "embedding", rows):
        embeddings[torch.from_numpy(indices)] = vectors.float().cpu()
    return embeddings


def relevance(model: Transformer, rows: TokenRows) -> list[float]:
    """The sigmoid of a cross-encoder's single output, before scale and shift, for each pair of texts."""
    scores = np.zeros(len(rows))
    name = kinds.predicting_head(model) or "classes"
    head = cast(PooledHeadConfig, model.config.heads[name])
    for indices, outputs in _batched_outputs(model, name, rows):
        scores[indices] = ((outputs[:, 0].float() - head.shift) / head.scale).sigmoid().cpu().numpy()
    return scores.tolist()


def pair_rows(model: Transformer, codec: Codec, pairs: Sequence[tuple[str, str]], truncate: bool) -> TokenRows:
    """Cross-encoder inputs for queries and documents. UserError for an empty query or document, or a pair that is too
    long.
    """
    for number, (query, document) in enumerate(pairs, 1):
        if not query.strip():
            raise UserError("the query is empty; pass the text to rank the documents by")
        if not document.strip():
            raise UserError(f"document {number} of {len(pairs)} is empty; fill it in or remove it")
    if not pairs:
        return frame_rows(frame_for(codec, model.config), [], [])
    queries, documents = (codec.encode_batch(list(column)) for column in zip(*pairs))
    frame, max_length = frame_for(codec, model.config), model.config.context
    for number, (query, document) in enumerate(zip(queries, documents), 1):
        available = (
            len(query) + len(document) if max_length is None or truncate else max_length - frame.num_special_tokens(2)
        )
        if len(query) + len(document) > available:
            raise UserError(
                f"document {number} of {len(pairs)} has {len(document)} tokens and the query {len(query)}, but the "
                f"model takes {available} for both together; shorten or truncate them (truncate=True, --truncate)"
            )
    return frame_rows(frame, queries, documents, LengthLimit(max_length, truncate))


def text_rows(model: Transformer, codec: Codec, texts: Sequence[Text], truncate: bool) -> TokenRows:
    """Model inputs for texts or text pairs. UserError for text that is empty or too long."""
    for number, text in enumerate(texts):
        if any(not part.strip() for part in ([text] if isinstance(text, str) else text)):
            raise UserError(f"text {number + 1} of {len(texts)} is empty; fill it in or remove it")
    paired = [isinstance(text, tuple) for text in texts]
    if any(paired) and not all(paired):
        raise UserError(f"{sum(paired)} of {len(texts)} inputs are text pairs; pass only pairs or only single texts")
    frame, limit = frame_for(codec, model.config), LengthLimit(model.config.context, truncate)
    if not any(paired):
        return frame_rows(frame, codec.encode_batch(cast(list[str], list(texts))), None, limit)
    first, second = (codec.encode_batch(list(column)) for column in zip(*cast(list[tuple[str, str]], texts)))
    return frame_rows(frame, first, second, limit)


def _batched_outputs(model: Transformer, head: str, rows: TokenRows) -> Iterator[tuple[np.ndarray, Tensor]]:
    """A head's outputs for the rows, in batches of similar lengths; without that head, normalised mean vectors."""
    if len(rows) == 0:
        return
    with evaluation_mode(model), torch.inference_mode():
        for indices in rows.plan(np.arange(len(rows)), MAX_BATCH_TOKENS).in_order():
            inputs = rows.inputs(indices).to(device_of(model))
            if head in model.heads:
                yield indices, model.output(head, *inputs)
            else:
                encoded = model(*inputs)
                yield indices, F.normalize(pool(encoded.x, encoded.layout, "mean"), dim=-1)


def _check_texts(model: ModelHandle, items: Sequence[Any]) -> None:
    if model.recipe is not None:
        strings = [item if isinstance(item, str) else " ".join(item) for item in items]
        model.check_texts(strings, model.codec.encode_batch(strings))
