"""A learner whose tensors are spread over processes: as much of one as checkpoints need.

Run as a program it saves, loads and collects them (for tests with several processes, and for some that end early).
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from tiny_task import SYMBOLS, counting, counting_recipe
from torch import Tensor

from headway.errors import UserError
from headway.formats import native
from headway.formats.stored_tensors import StoredTensors
from headway.learn import checkpoint
from headway.learn.checkpoint import Checkpoints
from headway.learn.learner import Learner
from headway.learn.parallel import saving
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.rows import Rows
from headway.learn.run import Progress
from headway.nn.models import build

RECIPE = counting_recipe(ema=0.9, optim="muon", **{"model.vocab_size": SYMBOLS})


@cache
def whole_learner(updates: int = 3) -> Learner:
    """A learner of one process after a few updates."""
    with patch.dict(os.environ, RANK="0", WORLD_SIZE="1"):
        task, processes = counting(RECIPE.task, 1), Processes(torch.device("cpu"))  # type: ignore[arg-type]
    learner = Learner(build(RECIPE.model, 1), RECIPE, task, processes)
    for step in range(updates):
        learner.update(step, [task.examples.batch(step)])  # type: ignore[attr-defined]
    return learner


def split(tensor: Tensor, shard: int, shards: int) -> Rows:
    """The rows of one of several shards, as FSDP2 splits them: some shards may have none."""
    size = -(-len(tensor) // shards)
    return Rows(tensor[shard * size : (shard + 1) * size].clone(), min(shard * size, len(tensor)), tensor.shape)


class RowLearner:
    """Shard `shard` of the learner of one process. Numbers without dimensions are whole."""

    def __init__(self, shard: int, shards: int, processes: Any = None, updates: int = 3) -> None:
        whole = whole_learner(updates)
        self.recipe, self.processes = RECIPE, processes or whole.processes
        self.model: dict[str, Any] = {n: split(t.detach(), shard, shards) for n, t in whole.saved_tensors().items()}
        self.state = {n: split(t, shard, shards) if t.dim() else t.clone() for n, t in whole.state_dict().items()}
        local = [rows.local.view(-1) for rows in self.model.values()]
        self.flat = SimpleNamespace(data=torch.cat(local))
        parts = iter(self.flat.data.split([part.numel() for part in local]))
        self.model = {name: rows._replace(local=next(parts).view_as(rows.local)) for name, rows in self.model.items()}

    def saved_tensors(self) -> dict[str, Any]:
        return self.model

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: StoredTensors) -> None:
        assert state.keys() == self.state.keys()
        for name, value in self.state.items():
            rows = value if isinstance(value, Rows) else Rows(value, 0, value.shape)
            assert state.tensors[name].shape == rows.shape, name
            state.copy(name, rows.local, rows.start)

    def forget(self) -> RowLearner:
        for value in (*self.model.values(), *self.state.values()):
            (value.local if isinstance(value, Rows) else value).zero_()
        return self

    def values(self) -> dict[str, Tensor]:
        both = {**self.model, **{f"state {name}": value for name, value in self.state.items()}}
        return {name: value.local if isinstance(value, Rows) else value for name, value in both.items()}


def assert_equal(one: RowLearner, other: RowLearner) -> None:
    for (name, a), b in zip(one.values().items(), other.values().values(), strict=True):
        assert torch.equal(a, b), name


def save(folder: Path, learner: Any, step: int) -> None:
    Checkpoints(folder / "checkpoints").save(learner, Progress(step=step, best={"step": step, "loss": 1.0}), keep=3)


def _limited(size: int, work: Callable[[], Any]) -> str:
    """What an error reports where files may have `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        work()
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return ""


def _collect(folder: Path, learner: RowLearner, processes: Processes) -> None:
    with saving.gathered(learner.saved_tensors(), processes) as tensors:
        if processes.is_main:
            native.save_tensors(tensors, RECIPE.model, folder)


def check(folder: Path, shards: int) -> None:
    """Save and load; then one process has a full disk while it saves, and then the main process while it collects."""
    with Processes(torch.device("cpu")) as processes:
        rank, most = processes.rank, 1 << 40
        learner = RowLearner(rank % shards, shards, processes)
        save(folder, learner, 1)
        again = RowLearner(rank % shards, shards, processes).forget()
        Checkpoints(folder / "checkpoints").load_newest(again, "loss")  # type: ignore[arg-type]
        assert_equal(learner, again)
        _collect(folder, learner, processes)
        print(_limited(300 if rank == shards - 1 else most, lambda: save(folder, learner, 2)), flush=True)
        (folder / "full").mkdir(exist_ok=True)
        print(_limited(2000 if rank == 0 else most, lambda: _collect(folder / "full", learner, processes)), flush=True)
        other = RowLearner(rank % shards, shards, processes)
        other.model["extra"] = other.model.pop("embed.table")
        print(_limited(most, lambda: Checkpoints(folder / "checkpoints").load_newest(other, "loss")), flush=True)  # type: ignore[arg-type]


def lose(folder: Path) -> None:
    """Save a checkpoint in two processes, of which the second is killed after its file."""
    with Processes(torch.device("cpu")) as processes:
        learner = RowLearner(processes.rank, 2, processes)
        save(folder, learner, 1)
        if processes.rank == 1:
            MOMENTS["after a file"]()
        print(_limited(1 << 40, lambda: save(folder, learner, 2)), flush=True)


def _kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **settings: (function(*given, **settings), _kill())


def _replace(first: bool, draft: Path, path: Path, replace: Callable[[Path, Path], None] = os.replace) -> None:
    """Replace a path, and end when a checkpoint is replaced: afterwards if `first`."""
    is_last = path.name.startswith("step-")
    if first or not is_last:
        replace(draft, path)
    if is_last:
        _kill()


MOMENTS: dict[str, Callable[[], None]] = {
    "before a file": lambda: setattr(saving, "write_rank_file", _kill),
    "after a file": lambda: setattr(saving, "write_rank_file", _after(saving.write_rank_file)),
    "before the rest": lambda: setattr(checkpoint, "write_json", _kill),
    "before the seal": lambda: setattr(saving, "seal", _kill),
    "after the seal": lambda: setattr(saving, "seal", _after(saving.seal)),
    "before the rename": lambda: setattr(os, "replace", partial(_replace, False)),
    "after the rename": lambda: setattr(os, "replace", partial(_replace, True)),
}


def kill(folder: Path) -> None:
    """Save a second checkpoint in processes that are killed at each of the moments."""
    learner = RowLearner(0, 1)
    for moment, trap in MOMENTS.items():
        run = folder / moment
        save(run, learner, 1)
        child = os.fork()
        if not child:
            trap()
            save(run, learner, 2)
            os._exit(0)
        print(moment, os.waitpid(child, 0)[1], *sorted(p.name for p in (run / "checkpoints").iterdir()), sep="|")


SHARDS = {4: 2, 3: 3, 2: 2}  # of each number of processes

if __name__ == "__main__":
    torch.set_num_threads(1)
    place, *ports = sys.argv[1:]
    if not ports:
        kill(Path(place))
    for (world, shards), port in zip((*SHARDS.items(), (2, 0)), ports):
        os.environ |= {"WORLD_SIZE": str(world), "MASTER_PORT": port}
        if int(os.environ["RANK"]) < world:
            check(Path(place, str(world)), shards) if shards else lose(Path(place, "lost"))
