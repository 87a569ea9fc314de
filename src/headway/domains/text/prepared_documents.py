"""Prepared texts as training examples: rows of shards, of which only those in use are open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from headway.codecs import Codec
from headway.config import override
from headway.data.packing import IGNORE_INDEX, CutRows, Packing, TokenWindows
from headway.data.prepared.shard_index import ShardFile
from headway.data.prepared.shard_order import ShardOrder
from headway.data.prepared.shard_reader import PreparedData, ShardReader
from headway.data.shuffling import epoch_seed
from headway.data.splits import SPLITS
from headway.errors import UserError
from headway.formats.out_of_distribution import TrainingStatistics
from headway.layout import Layout
from headway.learn import examples
from headway.learn.batches_ahead import ahead
from headway.learn.examples import (
    Batch,
    Contents,
    FixedSizeBatches,
    RngKey,
    RowLayouts,
    Samples,
    spread_evenly,
)
from headway.learn.shard_batches import PlacedBatches
from headway.nn.models import ModelConfig

_EVAL_BATCH_TOKENS = 8192
_CYCLE = 1000  # rows in which each source has its share
_SOURCES = 1 << 41  # distinguishes the seeds of sources from those of epochs and places
_OPEN_HELD_OUT = 2  # held-out shards that are mapped at once


def batch_of(windows: TokenWindows, layout: Layout, starts_epoch: bool = True) -> Batch:
    """Rows of tokens as a batch: inputs, and their next tokens."""
    inputs, labels = torch.from_numpy(windows.inputs), torch.from_numpy(windows.labels)
    return Batch((inputs, layout), labels, int((windows.labels != IGNORE_INDEX).sum()), inputs.numel(), starts_epoch)


def first_tokens(rows: Packing | SplitRows, context: int, count: int) -> list[list[int]]:
    """The first tokens of `count` rows of `context` tokens, spread evenly, as prompts."""
    indices = spread_evenly(np.arange(len(rows)), count)
    return rows.windows(indices).inputs[:, : max(1, context // 4)].tolist()


class PreparedDocuments(examples.Examples):
    """Documents of shards, cut into rows of `context` tokens. A batch has `rows` of them, a step `places` batches. Of
    several `sources`, training takes rows by their shares `mix`, or by their sizes if this is empty.
    """

    def __init__(
        self,
        sources: Sequence[PreparedData],
        codec: Codec,
        context: int,
        rows: int,
        seed: int,
        places: int,
        mix: Sequence[float] = (),
    ) -> None:
        for data in sources:
            if data.index.kind != "texts":
                raise UserError(f"{data.name} contains {data.index.kind}, not texts; use the recipe for them")
            data.check_tokenizer(codec.fingerprint())
        self.indices = [data.index for data in sources]
        self.codec, self.context = codec, context
        self.rows, self.seed, self.places, self.mix = rows, seed, places, tuple(mix)
        self.layouts = RowLayouts()
        self._splits = {split: SplitRows(self, sources, split) for split in SPLITS}

    def of(self, split: str) -> Samples:
        return SplitSamples(self.split(split))

    def split(self, split: str) -> SplitRows:
        """The rows of a split. UserError for an unknown or empty one."""
        if split not in self._splits:
            raise UserError(f"prepared data have the splits {', '.join(self._splits)}, not {split!r}")
        if not len(self._splits[split]):
            raise UserError(
                f"the {split} split of the prepared data is empty; prepare them again with a share, such as "
                f"--{split} 0.1"
            )
        return self._splits[split]

    @property
    def final_split(self) -> str:
        return "test" if len(self._splits["test"]) else "validation"

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def batches(self, split: str, shard: examples.Shard = examples.FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        """The batches of a split, made ahead of the step that needs them."""
        return ahead(super().batches(split, shard, start))

    def batches_per_epoch(self) -> float:
        return len(self.split("train")) / self.rows

    def adapt(self, model: ModelConfig) -> ModelConfig:
        for split in ("train", "validation"):
            self.split(split)
        return override(model, {"vocab_size": self.codec.vocab_size})

    def count_targets(self, split: str) -> int:
        """The predicted tokens in a split."""
        return sum(map(_targets, (shard for index in self.indices for shard in index.splits[split])))

    def split_sizes(self) -> dict[str, int]:
        return {split: self.count_targets(split) for split in self._splits}

    def document_ids(self, split: str) -> Iterator[np.ndarray]:
        """The tokens of each document in a split."""
        for source in self.split(split).sources:
            for number in range(len(source.shards)):
                ids, offsets = source.documents_of(number)
                for start, stop in pairwise(offsets.tolist()):
                    yield ids[start:stop]

    def token_lists(self, split: str, limit: int) -> list[list[int]]:
        """The first `limit` tokens of a split, each document as a list."""
        lists, size = [], 0
        for document in self.document_ids(split):
            lists.append(document[: limit - size].tolist())
            size += len(lists[-1])
            if size >= limit:
                break
        return lists

    def prompts(self, count: int) -> list[list[int]]:
        return first_tokens(self.split("validation"), self.context, count)

    def preview(self, count: int) -> list[str]:
        return [self.codec.decode(prompt) for prompt in self.prompts(count)]

    def contents(self) -> Contents:
        return {"texts": [index.digest for index in self.indices]}

    def input_statistics(self) -> TrainingStatistics:
        """Statistics of the first shard."""
        ids, _ = self.split("train").sources[0].documents_of(0)
        return TrainingStatistics.from_ids(
            ids, self.codec.vocab_size, special_tokens=(self.codec.bos_id, self.codec.eos_id)
        )


def _targets(shard: ShardFile) -> int:
    return shard.units - shard.samples


class SourceRows:
    """The rows of a split of one source, numbered through its shards."""

    def __init__(self, documents: PreparedDocuments, data: PreparedData, split: str, seed: int) -> None:
        self.documents, self._seed = documents, seed
        self.shards = data.index.splits[split]
        self.sizes = np.array([-(-_targets(shard) // documents.context) for shard in self.shards], np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])
        limit = _OPEN_HELD_OUT if split != "train" else self.order.window * documents.places + 1
        self.reader = ShardReader(data, split, limit)
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return int(self.first[-1])

    @cached_property
    def order(self) -> ShardOrder:
        return ShardOrder(self.sizes.tolist(), self.documents.places, self._seed)

    def at(self, place: int, positions: np.ndarray) -> np.ndarray:
        """The rows at ascending positions in the endless stream of a place; the next shard is fetched ahead."""
        rows = self.order.rows(place, positions)
        self.reader.announce(self.order.upcoming(place, int(positions[0])))
        return self.first[rows.shards] + rows.rows

    def documents_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of a shard, and the start of each document. UserError if they contradict the index."""
        shard, vocab_size = self.shards[number], self.documents.codec.vocab_size
        arrays = self.reader.arrays(number)
        ids, offsets = arrays.get("ids", np.zeros(0)), arrays.get("offsets", np.zeros(0))
        if number not in self._checked:
            sizes = (len(ids), len(offsets)) == (shard.units, shard.samples + 1) and shard.samples > 0
            is_valid = sizes and offsets[0] == 0 and offsets[-1] == len(ids) and (np.diff(offsets) > 0).all()
            if not is_valid or ids.max() >= vocab_size:
                raise UserError(f"the shard {shard.name} contradicts its index; prepare the data again")
            self._checked.add(number)
        return ids, offsets

    def windows(self, indices: np.ndarray) -> TokenWindows:
        """The rows with these numbers, int64 [B]."""
        shards = np.searchsorted(self.first, indices, side="right") - 1

        def part(number: int, chosen: np.ndarray) -> TokenWindows:
            rows = CutRows(*self.documents_of(number), self.documents.context)
            return rows.windows(indices[chosen] - self.first[number])

        return _joined(part, shards, self.documents.context)


class SplitRows:
    """The rows of a split, numbered through all sources."""

    def __init__(self, documents: PreparedDocuments, sources: Sequence[PreparedData], split: str) -> None:
        self.documents = documents
        seeds = [documents.seed, *(epoch_seed(documents.seed, _SOURCES + n) for n in range(1, len(sources)))]
        self.sources = [SourceRows(documents, data, split, seed) for data, seed in zip(sources, seeds)]
        self._first = np.cumsum([0, *map(len, self.sources)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A cycle of rows by shares: the source of each, its rank among those of its source, and rows per source."""
        shares = np.array(self.documents.mix or list(map(len, self.sources)), float)
        exact = shares / shares.sum() * _CYCLE
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: _CYCLE - int(counts.sum())]] += 1
        if empty := next((n for n, source in enumerate(self.sources) if counts[n] and not len(source)), None):
            raise UserError(f"source {empty + 1} of task.mix has no training samples; remove it")
        owners = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(count) for count in counts.tolist()])
        order = np.argsort((ranks + 0.5) / counts[owners], kind="stable")
        return owners[order], ranks[order], counts

    def training_rows(self, place: int, positions: np.ndarray) -> np.ndarray:
        """The rows at ascending positions in the endless stream of a place."""
        owners, ranks, counts = self._pattern
        cycles, slots = np.divmod(positions, _CYCLE)
        rows = np.empty_like(positions)
        for number in np.unique(owners[slots]).tolist():
            chosen = owners[slots] == number
            inner = cycles[chosen] * counts[number] + ranks[slots[chosen]]
            rows[chosen] = self._first[number] + self.sources[number].at(place, inner)
        return rows

    def windows(self, indices: np.ndarray) -> TokenWindows:
        """The rows with these numbers, int64 [B]."""
        owners = np.searchsorted(self._first, indices, side="right") - 1

        def part(number: int, chosen: np.ndarray) -> TokenWindows:
            return self.sources[number].windows(indices[chosen] - self._first[number])

        return _joined(part, owners, self.documents.context)


def _joined(part: Callable[[int, np.ndarray], TokenWindows], owners: np.ndarray, context: int) -> TokenWindows:
    """Rows from several owners in their order: `part` returns those of one owner at the positions where it is true."""
    inputs, labels, positions = (np.empty((len(owners), context), np.int64) for _ in range(3))
    for number in np.unique(owners).tolist():
        chosen = owners == number
        inputs[chosen], labels[chosen], positions[chosen] = part(number, chosen)
    return TokenWindows(inputs, labels, positions)


@dataclass(frozen=True)
class SplitSamples:
    """The rows in a split, or the first `limit` of them."""

    source: SplitRows
    limit: int | None = None

    def __len__(self) -> int:
        return len(self.source) if self.limit is None else min(self.limit, len(self.source))

    def take(self, indices: np.ndarray, rng_key: RngKey | None = None) -> Batch:
        """Tokens, int64 [B, T], with their layout, and the next tokens, -100 where the loss ignores them."""
        windows = self.source.windows(indices)
        return batch_of(windows, self.source.documents.layouts.of(windows.positions))

    def training_order(self) -> PlacedBatches:
        documents = self.source.documents
        return PlacedBatches(self.source.training_rows, len(self.source), documents.rows, documents.places)

    def evaluation_order(self) -> FixedSizeBatches:
        return FixedSizeBatches(len(self), max(1, _EVAL_BATCH_TOKENS // self.source.documents.context))

    def limited_to(self, limit: int | None) -> SplitSamples:
        return SplitSamples(self.source, limit)
