"""Muon over shards: every matrix is orthogonalised whole, by one process of those that share it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from headway.learn.optim import FlatParameters, Muon, orthogonalise


class RowShards(Protocol):
    """How processes share the rows of a model's weights."""

    rank: int  # of this process among them
    shards: int
    shapes: dict[str, torch.Size]  # of whole parameters
    shard_group: dist.ProcessGroup

    def span(self, name: str, rank: int) -> tuple[int, int]:
        """The first row of a parameter that shard `rank` has, and how many it has."""
        ...


class _Matrix(NamedTuple):
    """A slice of one expert of a parameter: the numbers from `start` on of the parameter's numbers."""

    name: str
    start: int
    rows: int
    columns: int

    @property
    def scale(self) -> float:
        return math.sqrt(max(1.0, self.rows / self.columns))

    @property
    def wide(self) -> tuple[int, int]:
        return min(self.rows, self.columns), max(self.rows, self.columns)


class _Exchange(NamedTuple):
    """This process's rows of all matrices, and all rows of its own matrices, in one buffer each."""

    sent: Tensor
    sent_counts: list[int]  # per process
    gathered: Tensor
    gathered_counts: list[int]

    def gather(self, group: dist.ProcessGroup) -> None:
        self._swap(self.gathered, self.sent, self.gathered_counts, self.sent_counts, group)

    def return_rows(self, group: dist.ProcessGroup) -> None:
        self._swap(self.sent, self.gathered, self.sent_counts, self.gathered_counts, group)

    @staticmethod
    def _swap(target: Tensor, source: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> None:
        size = source.element_size()  # as bytes, because gloo does not exchange all types
        counts = [[count * size for count in counts] for counts in (received, sent)]
        dist.all_to_all_single(target.view(torch.uint8), source.view(torch.uint8), *counts, group=group)


class ShardedMuon(Muon):
    """Muon whose directions are gathered to whole matrices. A batch has the equal slices of one parameter; the batches
    are assigned to the processes that share the model, so that each orthogonalises about as many numbers.
    """

    def _prepare(
        self, flat: FlatParameters, names: list[str], slices: dict[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        sharding: RowShards = cast(Any, flat).sharding
        self._sharding = sharding
        owned = _assign(list(_batches(sharding, names, slices)), sharding.shards)
        own_rank, ranks = sharding.rank, range(sharding.shards)
        counts = {  # numbers of process `rank` in the matrices of `owner`
            (owner, rank): sum(_part(sharding, m, rank)[1] for batch in owned[owner] for m in batch)
            for owner in ranks
            for rank in ranks
        }
        sent_counts = [counts[owner, own_rank] for owner in ranks]
        gathered_counts = [counts[own_rank, rank] for rank in ranks]
        sent, gathered = (self.data.new_empty(sum(n), dtype=dtype) for n in (sent_counts, gathered_counts))
        self._exchange = _Exchange(sent, sent_counts, gathered, gathered_counts)
        self._rows: list[tuple[Tensor, Tensor, Tensor, float]] = []  # (direction, buffer, data, scale)
        start = 0
        for matrix in (m for batches in owned for batch in batches for m in batch):
            offset, count = _part(sharding, matrix, own_rank)
            here = slice(flat.offsets[matrix.name] + offset, flat.offsets[matrix.name] + offset + count)
            self._rows.append((flat.grads[here], sent[start : start + count], flat.data[here], matrix.scale))
            start += count
        starts = list(accumulate(gathered_counts, initial=0))
        self._owned: list[list[tuple[_Matrix, list[Tensor]]]] = []  # per batch: each matrix and its parts
        for batch in owned[own_rank]:
            members = []
            for matrix in batch:
                sizes = [_part(sharding, matrix, rank)[1] for rank in ranks]
                members.append((matrix, [gathered[starts[rank] : starts[rank] + sizes[rank]] for rank in ranks]))
                starts = [start + size for start, size in zip(starts, sizes)]
            self._owned.append(members)

    def _apply(self, lr: float) -> None:
        for direction, buffer, _, _ in self._rows:
            buffer.copy_(direction)
        self._exchange.gather(self._sharding.shard_group)
        for members in self._owned:
            whole = [torch.cat(parts).view(m.rows, m.columns) for m, parts in members]
            result = orthogonalise(torch.stack([x.mT if x.shape[0] > x.shape[1] else x for x in whole]))
            for (matrix, parts), x in zip(members, result):
                x = x.mT if matrix.rows > matrix.columns else x
                for part, values in zip(parts, x.reshape(-1).split([part.numel() for part in parts])):
                    part.copy_(values)
        self._exchange.return_rows(self._sharding.shard_group)
        for _, buffer, data, scale in self._rows:
            if self.exact:
                data.sub_(buffer * (lr * scale))
            else:
                data.add_(buffer, alpha=-lr * scale)


def _batches(sharding: RowShards, names: list[str], slices: dict[str, tuple[int, ...]]) -> Iterator[list[_Matrix]]:
    """The matrices of parameters, each slice of each expert, in the batches of `Muon` for exact updates."""
    for name in names:
        shape = sharding.shapes[name]
        experts, rows, columns = shape[:-2].numel(), shape[-2], shape[-1]
        matrices = [
            _Matrix(name, (expert * rows + start) * columns, count, columns)
            for start, count in zip(accumulate(slices[name], initial=0), slices[name])
            for expert in range(experts)
        ]
        for _, batch in groupby(sorted(matrices, key=lambda m: m.wide), key=lambda m: m.wide):
            yield list(batch)


def _assign(batches: Sequence[list[_Matrix]], shards: int) -> list[list[list[_Matrix]]]:
    """The batches of each process: the largest first, to the process that has the least."""
    owned: list[list[list[_Matrix]]] = [[] for _ in range(shards)]
    loads = [0] * shards
    sizes = [sum(m.rows * m.columns for m in batch) for batch in batches]
    for index in sorted(range(len(batches)), key=lambda i: -sizes[i]):
        owner = loads.index(min(loads))
        owned[owner].append(batches[index])
        loads[owner] += sizes[index]
    return owned


def _part(sharding: RowShards, matrix: _Matrix, rank: int) -> tuple[int, int]:
    """Where a process has its part of a matrix among its own numbers of the parameter, and how many numbers."""
    start, count = sharding.span(matrix.name, rank)
    row = sharding.shapes[matrix.name][1:].numel()
    first, last = (
        max(matrix.start, start * row),
        min(matrix.start + matrix.rows * matrix.columns, (start + count) * row),
    )
    return (first - start * row, last - first) if last > first else (0, 0)
