"""Saving tensors that processes share: each process writes its own rows, or the main process collects them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats import native
from headway.formats.deferred import DeferredTensor
from headway.formats.stored_tensors import RANK_FILE, ROWS
from headway.formats.tensorfile import write_tensors
from headway.io.durable import atomic_write, digest_entry, seal
from headway.io.outputs import check_folder
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.rows import Rows
from headway.nn.models import ModelConfig

STATE_PREFIX = "optimizer."  # of tensors other than the model's in the files of several processes


def is_sharded(tensors: Mapping[str, Tensor | Rows]) -> bool:
    """Whether a process has only rows of some tensors."""
    return any(isinstance(value, Rows) for value in tensors.values())


def save_rows(
    path: Path,
    model: Mapping[str, Tensor | Rows],
    state: Mapping[str, Tensor | Rows],
    config: ModelConfig,
    processes: Processes,
    write_rest: Callable[[Path], None],
) -> None:
    """Write the folder `path` atomically: each process its rows of the model's and the optimiser's tensors, the main
    process also whole tensors, and other files by `write_rest`. All processes call it. If one cannot write, all raise
    UserError, and there is no new folder.

    The order, for tests that stop it anywhere: a draft folder, `write_rank_file` in each process, `write_rest`, `seal`,
    and `os.replace` of the draft.
    """
    tensors = {native.MODEL_PREFIX + name: value for name, value in model.items()}
    tensors |= {STATE_PREFIX + name: value for name, value in state.items()}
    parts = [(name, value.start, len(value.local)) for name, value in tensors.items() if isinstance(value, Rows)]
    digests = processes.gather_objects(blake2b(json.dumps(parts).encode()).hexdigest())
    writes = digests.index(digests[processes.rank]) == processes.rank  # no process of a lower rank has the same rows

    with ExitStack() as stack:

        def begin() -> str | None:
            if not processes.is_main:
                return None
            check_folder(path.parent)
            folder = stack.enter_context(atomic_write(path))
            folder.mkdir()
            return folder.name

        def write() -> dict[str, Any]:
            try:
                return write_rank_file(draft, tensors, config, processes.rank, processes.world) if writes else {}
            except UserError as error:
                raise UserError(str(error).replace(draft.name, path.name)) from error

        def finish() -> None:
            with stack.pop_all():  # renames the draft, or removes it after an error
                if processes.is_main:
                    _check_visible(draft, entries)
                    write_rest(draft)
                    seal(draft, {name: entry for files in entries for name, entry in files.items()})

        draft = path.with_name(processes.run_all(begin)[0])
        entries = processes.run_all(write)
        processes.run_all(finish)


def write_rank_file(
    folder: Path, tensors: Mapping[str, Tensor | Rows], config: ModelConfig, rank: int, world: int
) -> dict[str, Any]:
    """Write and sync one process's rows, and in process 0 the whole tensors; return the file's entry for digests.json
    by name. A process without rows writes no file.
    """
    values, rows = dict[str, Tensor](), dict[str, Any]()
    for name, value in tensors.items():
        if isinstance(value, Rows):
            if rank == 0 or len(value.local):
                values[name], rows[name] = value.local, [value.start, list(value.shape)]
        elif rank == 0:
            values[name] = value
    if not values:
        return {}
    path = folder / RANK_FILE.format(rank, world)
    write_tensors(path, values, {**native.header(config), ROWS: json.dumps(rows)})
    return {path.name: digest_entry(path)}


def _check_visible(draft: Path, entries: list[dict[str, Any]]) -> None:
    """Raise UserError if the main process does not see the files of the others."""
    for rank, files in enumerate(entries):
        for name, entry in files.items():
            size = (draft / name).stat().st_size if (draft / name).is_file() else 0
            if size != entry["bytes"]:
                raise UserError(
                    f"process {rank} wrote {name} with {entry['bytes']:,} bytes, but process 0 sees {size:,} in "
                    f"{draft.parent}; choose a folder that all machines share with --run"
                )


@contextmanager
def gathered(tensors: Mapping[str, Tensor | Rows], processes: Processes) -> Iterator[dict[str, Tensor]]:
    """In the main process, the whole tensors, each collected from all processes when it is used, which must be in their
    order and once. The others send their rows when they leave the context. All processes enter and leave it; UserError
    of one is raised in all.
    """
    rows = {name: value for name, value in tensors.items() if isinstance(value, Rows)}
    if not rows:
        yield dict(tensors)  # type: ignore[arg-type]
        return
    owners = processes.gather_objects([[value.start, len(value.local)] for value in rows.values()])
    owned = {name: [tuple(parts[index]) for parts in owners] for index, name in enumerate(rows)}
    error: UserError | None = None

    def collect(name: str) -> Tensor:
        return _collect(rows.pop(name), owned[name], processes)

    try:
        yield {
            name: DeferredTensor(value.shape, value.local.dtype, partial(collect, name))
            if isinstance(value, Rows)
            else value
            for name, value in tensors.items()
        }
    except UserError as raised:
        error = raised
    for name in list(rows):  # also after an error, because a process that sends waits until its rows are received
        collect(name)

    def report() -> None:
        if error is not None:
            raise error

    processes.run_all(report)


@torch.no_grad()
def _collect(value: Rows, owned: list[tuple[int, int]], processes: Processes) -> Tensor:
    """The whole tensor in the main process, to which the others send their rows. `owned` are the first row and the
    number of rows of each process; of equal rows, those of the first process are sent.
    """
    local = value.local.detach().contiguous()
    whole = torch.empty(value.shape if processes.is_main else 0, dtype=local.dtype)
    for start, count in sorted(set(owned)):
        owner = owned.index((start, count))
        if count and owner == processes.rank and not processes.is_main:
            processes.send(_bytes(local), 0)
        elif count and processes.is_main:
            part = whole[start : start + count]
            if owner == 0:
                part.copy_(local)
                continue
            received = part.to(processes.device)  # the same memory on a CPU
            processes.receive(_bytes(received), owner)
            part.copy_(received)
    return whole


def _bytes(values: Tensor) -> Tensor:
    return values.view(-1).view(torch.uint8)
