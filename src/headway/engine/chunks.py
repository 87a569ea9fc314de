"""The input of a step, without the engine's compiler: some tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class RowChunk(NamedTuple):
    """The next tokens of a row, at positions from `start` on, and how many of the last ones need logits. A
    `start` of -1 marks an idle row: the result of its one token is arbitrary.
    """

    row: Any  # Row, or a TorchRow of `headway.generate`
    start: int
    ids: Sequence[int]
    wanted: int = 1
