"""Inference with masked language models."""

from __future__ import annotations

from collections.abc import Iterable

from headway import arguments
from headway.arguments import check_types
from headway.domains.masked.fill import Candidate
from headway.domains.masked.fill import fill as fill_one
from headway.model_handle import ModelHandle


@check_types
def fill(
    model: ModelHandle, text: str | Iterable[str], top: int = 5
) -> list[list[Candidate]] | list[list[list[Candidate]]]:
    request = arguments.text_inputs(text)
    return request.unwrap([fill_one(model.module, model.codec, masked_text, top) for masked_text in request.items])
