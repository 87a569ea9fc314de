"""Texts as an encoder reads them: framed ids, a document a row, in batches of nearly equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.codecs import Codec
from headway.codecs.tokenizer import Frame, frame_of
from headway.data import PairBatches
from headway.errors import UserError
from headway.generate.prompts import device_of, evaluating
from headway.layout import Layout
from headway.nn.mixers import tree_map
from headway.nn.models import TokenInputs, TransformerConfig

Ids = Sequence[int]

AT_ONCE = 2048  # tokens that are computed together where nothing is learned
_PADDING = 0.05  # the most of a part of a batch
_LEAST = 8  # rows of a part


class Inputs(NamedTuple):
    """Symbols, with types where the model knows some, and where they sit."""

    tokens: TokenInputs
    layout: Layout

    @property
    def computed(self) -> int:
        """Tokens, padding included."""
        return self.tokens.ids.numel()

    def to(self, device: torch.device | str) -> Inputs:
        return tree_map(lambda item: item.to(device), self)


class Limit(NamedTuple):
    """The most symbols of a row, None for no limit; longer texts are cut if `truncate`, and else an error."""

    most: int | None
    truncate: bool = False


NO_LIMIT = Limit(None)


class FramedRows(NamedTuple):
    """Framed texts one after the other: int32 ids, and int64 [N + 1] where each begins.

    `seconds` int64 [N] is where the second text of each row begins, counted in the row; None where there is none, or
    its symbols have no type of their own.
    """

    ids: np.ndarray
    offsets: np.ndarray
    seconds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def inputs(self, numbers: np.ndarray) -> Inputs:
        """The rows of these numbers, padded to the longest."""
        lengths = self.lengths[numbers]
        layout = Layout.padded(torch.from_numpy(lengths))
        places = np.arange(layout.length)
        inside = places < lengths[:, None]
        ids = np.zeros(inside.shape, np.int64)
        ids[inside] = self.ids[(self.offsets[numbers][:, None] + places)[inside]]
        types = None
        if self.seconds is not None:
            types = torch.from_numpy(((places >= self.seconds[numbers][:, None]) & inside).astype(np.int64))
        return Inputs(TokenInputs(torch.from_numpy(ids), types), layout)

    def plan(self, numbers: np.ndarray, batch_tokens: int, seed: int = 0) -> PairBatches:
        """Batches over some of the rows; their numbers are places in `numbers`."""
        lengths = self.lengths[numbers]
        return PairBatches(lengths, lengths, max(batch_tokens, int(lengths.max(initial=0))), seed)


class RowParts(NamedTuple):
    """Texts in parts of nearly equal lengths; `order` int64 [N] is where each text is among the parts' rows."""

    parts: tuple[Inputs, ...]
    order: Int[Tensor, "N"]

    @property
    def computed(self) -> int:
        """Tokens, padding included."""
        return sum(part.computed for part in self.parts)


def in_parts(rows: FramedRows, numbers: np.ndarray, padding: float = _PADDING, most: int | None = None) -> RowParts:
    """The rows of these numbers sorted by length, and cut where padding would pass its share, or a part `most` rows."""
    order = np.argsort(rows.lengths[numbers], kind="stable")
    lengths = rows.lengths[numbers[order]]
    edges = [0]
    for stop in range(1, len(order)):
        count = stop - edges[-1]
        padded = 1 - lengths[edges[-1] : stop + 1].sum() / ((count + 1) * lengths[stop])
        if (padded > padding and count >= _LEAST) or count == most:
            edges.append(stop)
    parts = [rows.inputs(numbers[some]) for some in np.split(order, edges[1:])]
    return RowParts(tuple(parts), torch.from_numpy(np.argsort(order)))


def frame_for(codec: Codec, model: TransformerConfig) -> Frame:
    """The marks of a codec around what a model reads. A second text has types of its own where the model knows some."""
    frame = frame_of(codec)
    return frame._replace(typed=frame.typed and getattr(model.embed, "types", 0) > 1)


def framed(
    frame: Frame,
    first: Sequence[Ids],
    second: Sequence[Ids] | None = None,
    limit: Limit = NO_LIMIT,
    place: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> FramedRows:
    """Rows of one text each, or of two. UserError for one that is too long, named by `place`, unless it may be cut."""
    rows, starts = [], []
    marks = frame.marks(1 if second is None else 2)
    for number, one in enumerate(first):
        other = None if second is None else second[number]
        length = marks + len(one) + (0 if other is None else len(other))
        if limit.most is not None and length > limit.most:
            if not limit.truncate:
                raise UserError(
                    f"{place(number)} has {length} tokens and the model reads {limit.most} at most; shorten it, or ask "
                    "for it to be cut (task.truncate=true in training, --truncate)"
                )
            one, other = _cut(one, other, max(0, limit.most - marks))
        rows.append(frame.around(one, other))
        starts.append(len(frame.before) + len(one) + len(frame.between))
    seconds = np.array(starts, np.int64) if second is not None and frame.typed else None
    return FramedRows(*flat(rows), seconds)


def flat(rows: Sequence[Ids], kind: type[np.signedinteger] = np.int32) -> tuple[np.ndarray, np.ndarray]:
    """Rows one after the other, and int64 [N + 1] where each begins."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))
    return np.fromiter(chain.from_iterable(rows), kind, int(offsets[-1])), offsets


def _cut(first: Ids, second: Ids | None, room: int) -> tuple[Ids, Ids | None]:
    """The longer text gives way first, as in BERT's own code."""
    if second is None:
        return first[:room], None
    shorter = min(len(first), len(second), room // 2)
    if len(first) >= len(second):
        return first[: room - shorter], second[:shorter]
    return first[:shorter], second[: room - shorter]


def said_of(
    model: nn.Module,
    rows: FramedRows,
    numbers: Int[np.ndarray, "N"],
    say: Callable[[Inputs], Tensor],
    most: int = AT_ONCE,
) -> Tensor:
    """What is said of the rows of these numbers, in their order, on the processor. Rows of nearly equal lengths are
    computed together, at most so many tokens at once.
    """
    places, said = [np.zeros(0, np.int64)], [torch.zeros(0)]
    with evaluating(model), torch.inference_mode():
        for some in rows.plan(numbers, most).in_order() if len(numbers) else ():
            places.append(some)
            said.append(say(rows.inputs(numbers[some]).to(device_of(model))).float().cpu())
    return torch.cat(said[1:] or said)[torch.from_numpy(np.argsort(np.concatenate(places)))]
