"""Token rows for encoders: ids with special tokens, one document per row, in batches of nearly equal lengths."""

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

AT_ONCE = 2048  # maximum tokens of an inference batch
_PADDING = 0.05  # maximum fraction of padding in a chunk
_LEAST = 8  # minimum rows of a chunk


class Inputs(NamedTuple):
    """Tokens, with token types if the model has them, and their layout."""

    tokens: TokenInputs
    layout: Layout

    @property
    def computed(self) -> int:
        """Tokens, padding included."""
        return self.tokens.ids.numel()

    def to(self, device: torch.device | str) -> Inputs:
        return tree_map(lambda item: item.to(device), self)


class Limit(NamedTuple):
    """The maximum tokens of a row, None for no limit; longer texts are truncated if `truncate`, otherwise an error."""

    most: int | None
    truncate: bool = False


NO_LIMIT = Limit(None)


class FramedRows(NamedTuple):
    """Concatenated token rows with special tokens: int32 ids, and int64 [N + 1] start offsets.

    `second_starts` int64 [N] is the position of the second text within each row; None for single texts, or if the model
    has no token types.
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
        """The rows with these indices, padded to the longest."""
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
        """Batches over some of the rows; they contain positions in `indices`."""
        lengths = self.lengths[numbers]
        return PairBatches(lengths, lengths, max(batch_tokens, int(lengths.max(initial=0))), seed)


class RowParts(NamedTuple):
    """Texts in chunks of nearly equal lengths; `order` int64 [N] is the position of each text in the chunks' rows."""

    parts: tuple[Inputs, ...]
    order: Int[Tensor, "N"]

    @property
    def computed(self) -> int:
        """Tokens, padding included."""
        return sum(part.computed for part in self.parts)


def in_parts(rows: FramedRows, numbers: np.ndarray, padding: float = _PADDING, most: int | None = None) -> RowParts:
    """The rows with these indices sorted by length, split where padding would exceed its fraction, or after `max_rows`
    rows.
    """
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
    """The special tokens of a codec around a model's inputs. A second text has its own token type if the model has
    token types.
    """
    frame = frame_of(codec)
    return frame._replace(typed=frame.typed and model.embed.types > 1)


def framed(
    frame: Frame,
    first: Sequence[Ids],
    second: Sequence[Ids] | None = None,
    limit: Limit = NO_LIMIT,
    place: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> FramedRows:
    """Rows of one text each, or of two. UserError for a row that is too long, named by `locate`, unless it may be
    truncated.
    """
    rows, starts = [], []
    marks = frame.marks(1 if second is None else 2)
    for number, one in enumerate(first):
        other = None if second is None else second[number]
        length = marks + len(one) + (0 if other is None else len(other))
        if limit.most is not None and length > limit.most:
            if not limit.truncate:
                raise UserError(
                    f"{place(number)} has {length} tokens, but the model reads at most {limit.most}; shorten it, or "
                    "allow truncation (task.truncate=true in training, --truncate)"
                )
            one, other = _cut(one, other, max(0, limit.most - marks))
        rows.append(frame.around(one, other))
        starts.append(len(frame.before) + len(one) + len(frame.between))
    seconds = np.array(starts, np.int64) if second is not None and frame.typed else None
    return FramedRows(*flat(rows), seconds)


def flat(rows: Sequence[Ids], kind: type[np.signedinteger] = np.int32) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated rows, and int64 [N + 1] start offsets."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))
    return np.fromiter(chain.from_iterable(rows), kind, int(offsets[-1])), offsets


def _cut(first: Ids, second: Ids | None, room: int) -> tuple[Ids, Ids | None]:
    """Truncate the longer text first, as in BERT's code."""
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
    """The outputs of `compute` for the rows with these indices, in their order, on the CPU. Rows of nearly equal
    lengths form batches of at most `max_tokens` tokens.
    """
    places, said = [np.zeros(0, np.int64)], [torch.zeros(0)]
    with evaluating(model), torch.inference_mode():
        for some in rows.plan(numbers, most).in_order() if len(numbers) else ():
            places.append(some)
            said.append(say(rows.inputs(numbers[some]).to(device_of(model))).float().cpu())
    return torch.cat(said[1:] or said)[torch.from_numpy(np.argsort(np.concatenate(places)))]
