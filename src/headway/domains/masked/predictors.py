"""Masked language models in use."""

from __future__ import annotations

from collections.abc import Iterable

from headway import given
from headway.domains.masked.fill import Candidate
from headway.domains.masked.fill import fill as fill_one
from headway.given import typed
from headway.handle import Handle


@typed
def fill(model: Handle, text: str | Iterable[str], top: int = 5) -> list[list[Candidate]] | list[list[list[Candidate]]]:
    asked = given.texts(text)
    return asked.answer([fill_one(model.module, model.codec, each, top) for each in asked.items])
