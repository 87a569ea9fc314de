"""Token rows for encoders: ids with special tokens, one document per row, in batches with nearly equal lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from headway.codecs import Codec
from headway.codecs.tokenizer import SequenceTemplate, sequence_template
from headway.data import PairBatches
from headway.errors import UserError
from headway.generate.prompts import device_of
from headway.layout import Layout, to_device
from headway.nn.models import EncoderDecoderConfig, TokenInputs, TransformerConfig, evaluation_mode

Ids = Sequence[int]

MAX_BATCH_TOKENS = 2048  # maximum tokens per inference batch
_MAX_PADDING = 0.05  # maximum fraction of padding in a chunk
_MIN_ROWS = 8  # minimum rows per chunk


class Inputs(NamedTuple):
    """Tokens, with token types if the model has them, and their layout."""

    tokens: TokenInputs
    layout: Layout

    @property
    def computed(self) -> int:
        """Tokens, padding included."""
        return self.tokens.ids.numel()

    def to(self, device: torch.device | str) -> Inputs:
        return to_device(self, device)


class LengthLimit(NamedTuple):
    """The maximum number of tokens per row, None for no limit. Longer texts are truncated if `truncate` is set;
    otherwise they are an error.
    """

    max_length: int | None
    truncate: bool = False


NO_LIMIT = LengthLimit(None)


class TokenRows(NamedTuple):
    """Concatenated token rows with special tokens: int32 ids, and int64 [N + 1] start offsets.

    `second_starts` int64 [N] is the position of the second text within each row; None for single texts, or if the model
    has no token types.
    """

    ids: np.ndarray
    offsets: np.ndarray
    second_starts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def inputs(self, indices: np.ndarray) -> Inputs:
        """The rows with these indices, padded to the longest."""
        lengths = self.lengths[indices]
        layout = Layout.padded(torch.from_numpy(lengths))
        positions = np.arange(layout.length)
        inside = positions < lengths[:, None]
        ids = np.zeros(inside.shape, np.int64)
        ids[inside] = self.ids[(self.offsets[indices][:, None] + positions)[inside]]
        types = None
        if self.second_starts is not None:
            types = torch.from_numpy(((positions >= self.second_starts[indices][:, None]) & inside).astype(np.int64))
        return Inputs(TokenInputs(torch.from_numpy(ids), types), layout)

    def plan(self, indices: np.ndarray, batch_tokens: int, seed: int = 0) -> PairBatches:
        """Batches of these rows; each contains positions in `indices`."""
        return plan_batches(self.lengths[indices], batch_tokens, seed)


def plan_batches(lengths: np.ndarray, batch_tokens: int, seed: int = 0) -> PairBatches:
    """Batches of rows with these lengths; a batch of one row may be longer than `batch_tokens`."""
    return PairBatches(lengths, lengths, max(batch_tokens, int(lengths.max(initial=0))), seed)


class RowChunks(NamedTuple):
    """Texts in chunks with nearly equal lengths; `order` int64 [N] is each text's position among the chunks' rows."""

    chunks: tuple[Inputs, ...]
    order: Int[Tensor, "N"]

    @property
    def computed(self) -> int:
        """Tokens, padding included."""
        return sum(part.computed for part in self.chunks)


def split_by_length(
    rows: TokenRows, indices: np.ndarray, padding: float = _MAX_PADDING, max_rows: int | None = None
) -> RowChunks:
    """The rows with these indices sorted by length, split where padding would exceed its fraction, or after `max_rows`
    rows.
    """
    order = np.argsort(rows.lengths[indices], kind="stable")
    lengths = rows.lengths[indices[order]]
    edges = [0]
    for stop in range(1, len(order)):
        count = stop - edges[-1]
        padding_share = 1 - lengths[edges[-1] : stop + 1].sum() / ((count + 1) * lengths[stop])
        if (padding_share > padding and count >= _MIN_ROWS) or count == max_rows:
            edges.append(stop)
    chunks = [rows.inputs(indices[chunk]) for chunk in np.split(order, edges[1:])]
    return RowChunks(tuple(chunks), torch.from_numpy(np.argsort(order)))


def frame_for(codec: Codec, model: TransformerConfig | EncoderDecoderConfig) -> SequenceTemplate:
    """Adds a codec's special tokens around a model's inputs. A second text has its own token type if the model has
    token types.
    """
    frame = sequence_template(codec)
    embed = model.encoder.embed if isinstance(model, EncoderDecoderConfig) else model.embed
    return frame._replace(typed=frame.typed and embed.types > 1)


def frame_rows(
    frame: SequenceTemplate,
    first: Sequence[Ids],
    second: Sequence[Ids] | None = None,
    limit: LengthLimit = NO_LIMIT,
    locate: Callable[[int], str] = lambda row: f"text {row + 1}",
) -> TokenRows:
    """Rows with one text each, or two. Raises UserError for a row that is too long, named by `locate`, unless it may be
    truncated.
    """
    rows, starts = [], []
    special_count = frame.num_special_tokens(1 if second is None else 2)
    for index, first_ids in enumerate(first):
        second_ids = None if second is None else second[index]
        length = special_count + len(first_ids) + (0 if second_ids is None else len(second_ids))
        if limit.max_length is not None and length > limit.max_length:
            if not limit.truncate:
                raise UserError(
                    f"{locate(index)} has {length} tokens, but the model reads at most {limit.max_length}; shorten "
                    "it, or allow truncation (task.truncate=true in training, --truncate)"
                )
            available = max(0, limit.max_length - special_count)
            if second_ids is None:
                first_ids = first_ids[:available]
            else:  # truncate the longer text first, as tokenizers does
                shorter = min(len(first_ids), len(second_ids), available // 2)
                is_first_longer = len(first_ids) > len(second_ids)
                first_ids = first_ids[: available - shorter if is_first_longer else shorter]
                second_ids = second_ids[: shorter if is_first_longer else available - shorter]
        rows.append(frame.add_special_tokens(first_ids, second_ids))
        starts.append(len(frame.before) + len(first_ids) + len(frame.between))
    seconds = np.array(starts, np.int64) if second is not None and frame.typed else None
    return TokenRows(*concatenate_rows(rows), seconds)


def concatenate_rows(rows: Sequence[Ids], dtype: type[np.signedinteger] = np.int32) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated rows, and int64 [N + 1] start offsets."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))
    return np.fromiter(chain.from_iterable(rows), dtype, int(offsets[-1])), offsets


def compute_in_batches(
    model: nn.Module,
    rows: TokenRows,
    indices: Int[np.ndarray, "N"],
    compute: Callable[[Inputs], Tensor],
    max_tokens: int = MAX_BATCH_TOKENS,
) -> Tensor:
    """The outputs of `compute` for the rows with these indices, in their order, on the CPU. Rows with nearly equal
    lengths form batches of at most `max_tokens` tokens.
    """
    positions, outputs = [np.zeros(0, np.int64)], [torch.zeros(0)]
    with evaluation_mode(model), torch.inference_mode():
        for batch in rows.plan(indices, max_tokens).in_order() if len(indices) else ():
            positions.append(batch)
            outputs.append(compute(rows.inputs(indices[batch]).to(device_of(model))).float().cpu())
    return torch.cat(outputs[1:] or outputs)[torch.from_numpy(np.argsort(np.concatenate(positions)))]
