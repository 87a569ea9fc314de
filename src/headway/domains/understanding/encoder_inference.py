"""Encoder inference: text classification, word tagging, sentence embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headway.codecs import Codec
from headway.codecs.tokenizer import TokenizerCodec, tokenize_words
from headway.domains.understanding.tagging import WordTokenRows, word_tags
from headway.errors import UserError
from headway.formats.usage import Usage, named_scores
from headway.generate.prompts import device_of, evaluation_mode
from headway.learn.token_rows import MAX_BATCH_TOKENS, LengthLimit, TokenRows, frame_for, frame_rows
from headway.metrics import EntitySpan, entity_spans
from headway.nn.models import PooledHeadConfig, Transformer, kinds
from headway.nn.models.pooled import pool

Text = str | tuple[str, str]

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


def classify(
    model: Transformer, codec: Codec, usage: Usage, texts: Sequence[Text], *, truncate: bool = False
) -> list[dict[str, float]]:
    """The probability of each label for each text or text pair, most probable first; see `named_scores`.

    Raises UserError for labels that do not fit the head "classes", and for text that is empty or too long.
    """
    rows = text_rows(model, codec, texts, truncate)
    scores: dict[int, dict[str, float]] = {}
    for indices, logits in _batched_outputs(model, kinds.predicting_head(model) or "classes", rows):
        scores.update(zip(indices.tolist(), named_scores(logits, usage)))
    return [scores[row] for row in range(len(texts))]


def tag(
    model: Transformer,
    codec: Codec,
    labels: Sequence[str],
    texts: Sequence[str | Sequence[str]],
    *,
    truncate: bool = False,
) -> list[TaggedWords]:
    """The tag of each word in each text. A string is split into words and punctuation; a list of words is used as is.

    Raises UserError for labels that do not fit the head "tags", and for text that is too long.
    """
    sentences = [_WORD.findall(text) if isinstance(text, str) else list(text) for text in texts]
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"a {type(codec).__name__} has no word boundaries; use a tokenizer.json")
    word_tokens = tokenize_words(codec, sentences)
    word_rows = WordTokenRows(word_tokens, frame_for(codec, model.config), LengthLimit(model.config.context, truncate))
    tags: dict[int, list[str]] = {}
    for indices, logits in _batched_outputs(model, "tags", word_rows.rows):
        names = list(labels) or [f"LABEL_{index}" for index in range(logits.shape[-1])]
        if len(names) != logits.shape[-1]:
            raise UserError(f"the model has {logits.shape[-1]} tags but {len(names)} tag names; name all tags")
        for row, best in zip(indices.tolist(), logits.argmax(-1).cpu().numpy()):
            tags[row] = word_tags(best, word_rows.positions[row, : len(sentences[row])], names)
    return [TaggedWords(word_rows, tags[row], entity_spans(tags[row])) for row, word_rows in enumerate(sentences)]


def embed(model: Transformer, codec: Codec, texts: Sequence[str], *, truncate: bool = False) -> Float[Tensor, "N D"]:
    """A unit-length embedding for each text: the output of the head "embedding", otherwise the mean over its tokens.

    Texts of similar lengths are computed together; the output is in the order of the texts. Raises UserError for text
    that is empty or too long.
    """
    return embed_rows(model, text_rows(model, codec, texts, truncate))


def embed_rows(model: Transformer, rows: TokenRows) -> Float[Tensor, "N D"]:
    """`embed` for texts that are already encoded as rows."""
    embeddings = torch.empty(len(rows), model.config.width)
    for indices, vectors in _batched_outputs(model, "embedding", rows):
        embeddings[torch.from_numpy(indices)] = vectors.float().cpu()
    return embeddings


def rerank(
    model: Transformer, codec: Codec, query: str, documents: Sequence[str], *, truncate: bool = False
) -> list[RankedDocument]:
    """The documents by their relevance to a query, most relevant first; ties keep their order.

    Raises UserError for an empty query or document, or a pair that is too long.
    """
    rows = pair_rows(model, codec, [(query, document) for document in documents], truncate)
    ranked = [RankedDocument(*document) for document in zip(range(len(documents)), relevance(model, rows), documents)]
    return sorted(ranked, key=lambda document: -document.score)


def relevance(model: Transformer, rows: TokenRows) -> list[float]:
    """The sigmoid of a cross-encoder's single output, before scale and shift, for each pair of texts."""
    scores = np.zeros(len(rows))
    name = kinds.predicting_head(model) or "classes"
    head = cast(PooledHeadConfig, model.config.heads[name])
    for indices, outputs in _batched_outputs(model, name, rows):
        scores[indices] = ((outputs[:, 0].float() - head.shift) / head.scale).sigmoid().cpu().numpy()
    return scores.tolist()


def pair_rows(model: Transformer, codec: Codec, pairs: Sequence[tuple[str, str]], truncate: bool) -> TokenRows:
    """Cross-encoder inputs for queries and documents. UserError as in `rerank`."""
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
    """Model inputs for texts or text pairs. Errors as in `embed`."""
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
