"""Tensors of a checkpoint, written by one process or by several, each with its rows; read as if they were one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats.tensorfile import TensorFile, tensor_bytes

ROWS = "rows"  # in the header of a process's file: the first row and the shape of each tensor that it has in part
RANK_FILE = "rank-{:05d}-of-{:05d}.safetensors"  # of a process, and the number of processes


def rank_files(folder: Path) -> list[Path]:
    """The files of several processes in a checkpoint, by rank; [] if one process has written it."""
    digits = "[0-9]" * 5
    return sorted(folder.glob(f"rank-{digits}-of-{digits}.safetensors"))


class _Part(NamedTuple):
    """`count` rows of a tensor from row `start`, which are the tensor `name` of a file."""

    start: int
    count: int
    file: TensorFile
    name: str


class StoredTensor(NamedTuple):
    """A tensor's shape and dtype, and its parts by row."""

    shape: torch.Size
    dtype: torch.dtype
    parts: list[_Part]


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name, whole or in rows. What one file has is a view of the mapped file; the rest is put together in
    memory. UserError if rows are missing, or are in two files.
    """

    def __init__(self, files: Sequence[TensorFile], source: Path, prefix: str = "") -> None:
        """Only names that start with `prefix`, which they lose."""
        self.source = str(source)
        self.metadata = files[0].metadata
        self.size = sum(file.size for file in files)  # bytes
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            shared = _read_rows(file)
            for name in file.names():
                if name.startswith(prefix):
                    self._add(name.removeprefix(prefix), name, file, shared.get(name))
        for name, tensor in self.tensors.items():
            self._check(name, tensor)

    @classmethod
    def open(cls, path: Path, prefix: str, remedy: str) -> StoredTensors:
        """The tensors of the file at `path` or, if the files of several processes are there instead, those that have
        names with `prefix` in them.
        """
        ranks = [] if path.is_file() else rank_files(path.parent)
        if not ranks:
            return cls([TensorFile(path, remedy)], path)
        return cls([TensorFile(rank, remedy) for rank in ranks], path.parent, prefix)

    def __getitem__(self, name: str) -> Tensor:
        part, *others = self.tensors[name].parts
        return part.file.get(part.name) if not others else self.rows(name, 0, self.tensors[name].shape[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """`count` rows of a tensor, from row `start`."""
        shape, dtype, _ = self.tensors[name]
        parts = [part.file.rows(part.name, first, n) for part, first, n in self._overlap(name, start, count)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty((0, *shape[1:]), dtype=dtype)

    @torch.no_grad()
    def copy(self, name: str, target: Tensor, start: int = 0) -> None:
        """Copy the rows from `start` on, as many as `target` has, into it, and release their pages."""
        if not target.dim():
            target.copy_(self[name])
            return
        for part, first, count in self._overlap(name, start, len(target)):
            begin = part.start + first - start
            target[begin : begin + count].copy_(part.file.rows(part.name, first, count))
            part.file.done(part.name)

    def done(self, name: str) -> None:
        """Release the pages of a tensor."""
        for part in self.tensors[name].parts:
            part.file.done(part.name)

    def _overlap(self, name: str, start: int, count: int) -> Iterator[tuple[_Part, int, int]]:
        """The parts that have some of these rows: from which of their rows, and how many."""
        shape, _, parts = self.tensors[name]
        if not 0 <= start <= start + count <= shape[0]:
            raise IndexError(f"{name} has {shape[0]} rows, not {start} to {start + count}")
        for part in parts:
            low, high = max(start, part.start), min(start + count, part.start + part.count)
            if low < high:
                yield part, low - part.start, high - low

    def _add(self, name: str, stored_name: str, file: TensorFile, rows: tuple[int, torch.Size] | None) -> None:
        entry = file.entry(stored_name)
        count = entry.shape[0] if entry.shape else 1
        start, shape = rows or (0, torch.Size(entry.shape))
        tensor = self.tensors.setdefault(name, StoredTensor(shape, entry.dtype, []))
        same = (tensor.shape, tensor.dtype) == (shape, entry.dtype) and entry.shape[1:] == shape[1:]
        if not same or (entry.shape and start + count > shape[0]) or (rows and not entry.shape):
            raise UserError(
                f"{file.source} has rows of tensor {name!r} of shape {list(shape)} that do not fit those of the other "
                "processes; restore it from a copy"
            )
        tensor.parts.append(_Part(start, count, file, stored_name))

    def _check(self, name: str, tensor: StoredTensor) -> None:
        """Raise UserError unless each row is in one part; sort the parts."""
        if len(tensor.parts) > 1:  # a file need not have rows
            filled = [part for part in tensor.parts if part.count] or tensor.parts[:1]
            tensor.parts[:] = sorted(filled, key=lambda part: part.start)
        end, total = 0, tensor.shape[0] if tensor.shape else 1
        for start, count, *_ in (*tensor.parts, (total, 0)):
            if start != end:
                state = "lacks" if start > end else "has twice"
                low, high = sorted((start, end))
                raise UserError(
                    f"{self.source} {state} rows {low} to {high} of tensor {name!r}; restore it from a copy"
                )
            end += count


def _read_rows(file: TensorFile) -> dict[str, tuple[int, torch.Size]]:
    """The first row, and the shape of the whole tensor, of those that a file has in part."""
    try:
        rows: Any = json.loads(file.metadata.get(ROWS, "{}"))
        shared = {name: (start, torch.Size(shape)) for name, (start, shape) in rows.items()}
        numbers = [number for start, shape in shared.values() for number in (start, *shape)]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("negative or fractional rows")
        if any(not shape or tensor_bytes(shape, 1) is None for _, shape in shared.values()):
            raise ValueError("impossible shapes")
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{file.source} does not describe its rows ({error}); restore it from a copy") from None
    return shared
