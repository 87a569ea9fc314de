"""/v1/rerank: documents ranked by relevance to a query, with the fields of the Jina and Cohere APIs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headway.app.model import Model
from headway.app.predictors import predictor
from headway.domains.understanding.predictors import pair_rows, relevance
from headway.serve.body_reader import check_count
from headway.serve.embeddings import InputUsage
from headway.serve.http_errors import StatusError
from headway.serve.interfaces import Context, Endpoint


class RerankBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`documents` are strings, or objects with a text. `truncate` cuts inputs to the model's context; longer ones are
    rejected otherwise. `instruction` is for models whose prompt contains one. `user` has no effect.
    """

    query: str
    documents: list[str | dict[str, Any]]
    model: str = ""
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    truncate: bool = False
    instruction: str | None = None
    user: str | None = None


class DocumentText(msgspec.Struct):
    """A document."""

    text: str


class RankedResult(msgspec.Struct):
    """The index of a document in the request, and its relevance: from 0 to 1 unless the model's settings name another
    activation than the sigmoid.
    """

    index: int
    relevance_score: float
    document: DocumentText | UnsetType = UNSET


class RerankAnswer(msgspec.Struct):
    """The documents, most relevant first. `usage` counts input tokens, including queries and special tokens."""

    id: str
    model: str
    results: list[RankedResult]
    usage: InputUsage


async def rerank(body: RerankBody, context: Context) -> RerankAnswer:
    """The documents ranked by relevance."""
    check_count(body.documents, "documents", "documents")
    documents = []
    for index, document in enumerate(body.documents):
        text = document.get("text") if isinstance(document, dict) and len(document) == 1 else document
        if not isinstance(text, str):
            problem = f'documents[{index}] is not text; send a string, or {{"text": "..."}}'
            raise StatusError(400, problem, f"documents[{index}]")
        documents.append(text)
    async with context.served.using(body.model) as ready:
        predictor(ready.model, "rerank")  # UserError for a model that does not rerank
        pairs = [(body.query, document) for document in documents]
        settings = body.truncate, body.instruction
        scored = await ready.batcher.submit(partial(_relevance, ready.model, *settings), ("rerank", *settings), pairs)
    tokens = sum(count for _, count in scored)
    context.log_fields.update(model=ready.name, prompt_tokens=tokens)
    order = sorted(range(len(scored)), key=lambda index: -scored[index][0])[: body.top_n]
    returned = {index: DocumentText(documents[index]) for index in order} if body.return_documents else {}
    results = [RankedResult(index, scored[index][0], returned.get(index, UNSET)) for index in order]
    return RerankAnswer(f"rerank-{context.id}", ready.name, results, InputUsage(tokens, tokens))


def _relevance(
    model: Model, truncate: bool, instruction: str | None, pairs: Sequence[tuple[str, str]]
) -> list[tuple[float, int]]:
    """The relevance of each pair, and its number of tokens."""
    rows = pair_rows(model, pairs, truncate, instruction)
    return list(zip(relevance(model, rows), rows.lengths.tolist()))


ENDPOINTS = tuple(
    Endpoint("POST", path, rerank, "documents ranked by relevance to a query", RerankBody, RerankAnswer)
    for path in ("/v1/rerank", "/v2/rerank")  # the second is for Cohere's package
)
