"""Encoder inference: classes of texts, tags of words, embeddings of sentences."""

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
from headway.codecs.tokenizer import TokenizerCodec, word_pieces
from headway.domains.understanding.tagging import WordRows, read_tags
from headway.errors import UserError
from headway.formats.usage import Usage, named_scores
from headway.generate.prompts import device_of, evaluating
from headway.learn.rows import AT_ONCE, FramedRows, Limit, frame_for, framed
from headway.metrics import EntitySpan, spans
from headway.nn.models import PooledHeadConfig, Transformer, kinds
from headway.nn.models.pooled import pool

Text = str | tuple[str, str]

_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")  # splits text as the CoNLL corpora do


class TaggedWords(NamedTuple):
    """The words of a text, the tag of each, and the entities (spans of words) that the tags encode."""

    words: list[str]
    tags: list[str]
    entities: list[EntitySpan]


class RankedDocument(NamedTuple):
    """A document, its index among the ranked ones, and its relevance from 0 to 1."""

    index: int
    score: float
    document: str


def classify(
    model: Transformer, codec: Codec, usage: Usage, texts: Sequence[Text], *, truncate: bool = False
) -> list[dict[str, float]]:
    """The probability of each label for each text or pair of texts, the most probable first; see `named_scores`.

    Raises UserError for labels that do not fit the head "classes", an empty text, or one that is too long.
    """
    rows = text_rows(model, codec, texts, truncate)
    scores: dict[int, dict[str, float]] = {}
    for some, logits in _outputs(model, kinds.predicting_head(model) or "classes", rows):
        scores.update(zip(some.tolist(), named_scores(logits, usage)))
    return [scores[row] for row in range(len(texts))]


def tag(
    model: Transformer,
    codec: Codec,
    labels: Sequence[str],
    texts: Sequence[str | Sequence[str]],
    *,
    truncate: bool = False,
) -> list[TaggedWords]:
    """The tag of each word of each text. A string is split into words and punctuation; a list of words is used as it
    is.

    Raises UserError for labels that do not fit the head "tags", or a text that is too long.
    """
    sentences = [_WORD.findall(text) if isinstance(text, str) else list(text) for text in texts]
    if not isinstance(codec, TokenizerCodec):
        raise UserError(f"a {type(codec).__name__} has no word boundaries; use a tokenizer.json")
    pieces = word_pieces(codec, sentences)
    words = WordRows(pieces, frame_for(codec, model.config), Limit(model.config.context, truncate))
    found: dict[int, list[str]] = {}
    for some, logits in _outputs(model, "tags", words.rows):
        names = list(labels) or [f"LABEL_{number}" for number in range(logits.shape[-1])]
        if len(names) != logits.shape[-1]:
            raise UserError(f"the model has {logits.shape[-1]} tags but {len(names)} names; name all tags")
        for row, best in zip(some.tolist(), logits.argmax(-1).cpu().numpy()):
            found[row] = read_tags(best, words.places[row, : len(sentences[row])], names)
    return [TaggedWords(words, found[row], spans(found[row])) for row, words in enumerate(sentences)]


def embed(model: Transformer, codec: Codec, texts: Sequence[str], *, truncate: bool = False) -> Float[Tensor, "N D"]:
    """An embedding of unit length for each text: the output of the head "embedding", otherwise the mean of its tokens.

    Texts of similar lengths are computed together; the order of the output is that of the texts. Raises UserError for
    an empty text or one that is too long.
    """
    return embed_rows(model, text_rows(model, codec, texts, truncate))


def embed_rows(model: Transformer, rows: FramedRows) -> Float[Tensor, "N D"]:
    """`embed` for texts that are already encoded as rows."""
    found = torch.empty(len(rows), model.config.width)
    for some, vectors in _outputs(model, "embedding", rows):
        found[torch.from_numpy(some)] = vectors.float().cpu()
    return found


def rerank(
    model: Transformer, codec: Codec, query: str, documents: Sequence[str], *, truncate: bool = False
) -> list[RankedDocument]:
    """The documents by their relevance to a query, the most relevant first; ties keep their order.

    Raises UserError for an empty query or document, or a pair that is too long.
    """
    rows = pair_rows(model, codec, [(query, document) for document in documents], truncate)
    found = [RankedDocument(*one) for one in zip(range(len(documents)), relevance(model, rows), documents)]
    return sorted(found, key=lambda one: -one.score)


def relevance(model: Transformer, rows: FramedRows) -> list[float]:
    """The sigmoid of a cross-encoder's single output, before scale and shift, for each pair of texts."""
    found = np.zeros(len(rows))
    name = kinds.predicting_head(model) or "classes"
    head = cast(PooledHeadConfig, model.config.heads[name])
    for some, outputs in _outputs(model, name, rows):
        found[some] = ((outputs[:, 0].float() - head.shift) / head.scale).sigmoid().cpu().numpy()
    return found.tolist()


def pair_rows(model: Transformer, codec: Codec, pairs: Sequence[tuple[str, str]], truncate: bool) -> FramedRows:
    """Cross-encoder inputs of queries and documents. UserError as in `rerank`."""
    for number, (query, document) in enumerate(pairs, 1):
        if not query.strip():
            raise UserError("the query is empty; pass the text to rank the documents by")
        if not document.strip():
            raise UserError(f"document {number} of {len(pairs)} is empty; fill it in or leave it out")
    if not pairs:
        return framed(frame_for(codec, model.config), [], [])
    queries, documents = (codec.encode_batch(list(side)) for side in zip(*pairs))
    frame, most = frame_for(codec, model.config), model.config.context
    for number, (query, document) in enumerate(zip(queries, documents), 1):
        room = len(query) + len(document) if most is None or truncate else most - frame.marks(2)
        if len(query) + len(document) > room:
            raise UserError(
                f"document {number} of {len(pairs)} has {len(document)} tokens and the query {len(query)}, but the "
                f"model takes {room} for both together; shorten them, or truncate them (truncate=True, "
                "--truncate)"
            )
    return framed(frame, queries, documents, Limit(most, truncate))


def text_rows(model: Transformer, codec: Codec, texts: Sequence[Text], truncate: bool) -> FramedRows:
    """Model inputs of texts or of pairs. Errors as in `embed`."""
    for number, text in enumerate(texts):
        if any(not part.strip() for part in ([text] if isinstance(text, str) else text)):
            raise UserError(f"text {number + 1} of {len(texts)} is empty; fill it in or leave it out")
    paired = [isinstance(text, tuple) for text in texts]
    if any(paired) and not all(paired):
        raise UserError(f"{sum(paired)} of {len(texts)} are pairs of texts; pass only pairs or only single texts")
    frame, limit = frame_for(codec, model.config), Limit(model.config.context, truncate)
    if not any(paired):
        return framed(frame, codec.encode_batch(cast(list[str], list(texts))), None, limit)
    first, second = (codec.encode_batch(list(side)) for side in zip(*cast(list[tuple[str, str]], texts)))
    return framed(frame, first, second, limit)


def _outputs(model: Transformer, head: str, rows: FramedRows) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The outputs of a head for the rows, in batches of similar lengths; without that head, normalised mean vectors."""
    if len(rows) == 0:
        return
    with evaluating(model), torch.inference_mode():
        for some in rows.plan(np.arange(len(rows)), AT_ONCE).in_order():
            inputs = rows.inputs(some).to(device_of(model))
            if head in model.heads:
                yield some, model.output(head, *inputs)
            else:
                encoded = model(*inputs)
                yield some, F.normalize(pool(encoded.x, encoded.layout, "mean"), dim=-1)
