"""Inference with masked language models."""

from __future__ import annotations

from collections.abc import Iterable

from headway.domains.masked.fill import Candidate
from headway.domains.masked.fill import fill as fill_one
from headway.io import arguments
from headway.io.arguments import check_types
from headway.predict.model_handle import ModelHandle

Texts = Iterable[str]


@check_types
def fill(model: ModelHandle, text: str | Texts, top: int = 5) -> list[list[Candidate]] | list[list[list[Candidate]]]:
    """The `top` most probable tokens for each mask of a text, or of each of several.

    A mask is [MASK], <mask>, or the tokenizer's own mask token.

    top: number of words per mask, most probable first.
    """
    request = arguments.text_inputs(text)
    return request.unwrap([fill_one(model.module, model.codec, masked_text, top) for masked_text in request.items])
