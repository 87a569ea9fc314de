"""Texts as the tower of texts reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.codecs import Codec
from headway.codecs.frame import frame_of
from headway.errors import UserError
from headway.models import TwoTower, TwoTowerConfig
from headway.train.rows import Inputs, Limit, Rows, flat, framed, said_of

_AT_ONCE = 4096  # tokens


def text_rows(
    codec: Codec,
    texts: Sequence[str],
    config: TwoTowerConfig,
    truncate: bool,
    place: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> Rows:
    """Framed texts, filled up where the model reads them so. UserError for one that is too long, named by `place`,
    unless it may be cut.
    """
    frame, limit = frame_of(codec), Limit(config.context, truncate)
    rows = framed(frame, codec.encode_batch(texts), None, limit, place)
    if config.filler is None or config.context is None:
        return rows
    each = [rows.ids[start:stop].tolist() for start, stop in zip(rows.offsets, rows.offsets[1:])]
    filling = [config.filler] * config.context
    return Rows(*flat([[*ids, *filling[len(ids) :]] for ids in each]))


def text_vectors(model: TwoTower, rows: Rows, chosen: np.ndarray) -> Float[Tensor, "N E"]:
    """The vectors of chosen rows."""
    return said_of(model, rows, chosen, lambda inputs: encode(model, inputs), _AT_ONCE)


def encode(model: TwoTower, inputs: Inputs) -> Float[Tensor, "N E"]:
    return model.vectors("right", inputs.tokens, inputs.layout)


def check_texts(texts: Sequence[str]) -> None:
    """UserError for no text, and for one that says nothing."""
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"text {number + 1} of {len(texts)} is empty; write something there, or leave it out")
