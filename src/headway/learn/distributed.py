"""Data parallelism: several processes with equal weights; and recurrent states that pass from batch to batch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from headway.errors import UserError
from headway.learn.examples import Batch
from headway.learn.objective import Carrying
from headway.learn.task import Shard
from headway.nn.mixers import State, tree_map
from headway.nn.models import Loss

# The other processes wait while the main process evaluates.
_PATIENCE = timedelta(hours=12)
# Seconds between heartbeats, and the number of own heartbeats after which a silent process counts as lost. They are
# counted, not timed, so that a pause of all processes (Ctrl-Z, a sleeping laptop) does not count.
_BEAT, _LOST = 5.0, 60
_DONE = 1 << 40  # more heartbeats than any process sends


def is_first() -> bool:
    """Whether this is the main process, according to torchrun's environment; a single process is."""
    return int(os.environ.get("RANK", "0")) == 0


class Processes:
    """The processes that train one model; for a single process every operation is free.

    torchrun starts them and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        self._watch: Watch | None = None
        if self.world > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.set_device(self.device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            if not dist.is_initialized():
                store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
                dist.init_process_group(backend, timeout=_PATIENCE, store=store, rank=rank, world_size=world)
                self._watch = Watch(store.clone(), self.rank, self.world)  # type: ignore[attr-defined]

    @property
    def first(self) -> bool:
        """Whether this is the process that evaluates, writes and reports."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.world)

    def share_of(self, accumulate: int) -> int:
        """This process's number of micro-batches per step, of `accumulate` in total."""
        if accumulate % self.world:
            raise UserError(
                f"train.accumulate {accumulate} is not divisible by {self.world} processes; "
                f"set it to {self.world} or a multiple"
            )
        return accumulate // self.world

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        if self.world > 1:
            with _together():
                dist.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> None:
        """Broadcast the main process's values to all processes, in place."""
        if self.world > 1:
            with _together():
                dist.broadcast(values, 0)

    def tell(self, data: Any) -> Any:
        """Broadcast the main process's `data` (any JSON value) to all processes."""
        if self.world == 1:
            return data
        text = json.dumps(data).encode() if self.first else b""
        size = torch.tensor(len(text), device=self.device)
        self.broadcast(size)
        content = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.broadcast(content)
        return json.loads(bytes(content.cpu().tolist()))

    def leave(self) -> None:
        """Leave the process group."""
        if self._watch is not None:
            self._watch.close()
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """A collective operation; UserError if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).split("\n")[0].rpartition("] ")[2]
        raise UserError(
            f"another training process has ended ({first.rstrip('.')}); see its log for the reason, and continue from "
            "the last checkpoint with --resume"
        ) from error


class Watch:
    """Sends heartbeats to the other processes, and ends this one when another is silent for long: a stopped process, or
    one on a lost machine, would block all others.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._closed = threading.Event()
        self._rounds = 0
        for run in (self._talk, self._guard):
            threading.Thread(target=run, daemon=True, name="watch").start()

    def close(self) -> None:
        """Tell the other processes that this one has finished."""
        if not self._closed.is_set():
            self._closed.set()
            with suppress(RuntimeError):  # the store ended with its process
                self._store.add(f"headway/{self._rank}", _DONE)

    def _talk(self) -> None:
        """Send heartbeats and read those of the others."""
        others = [rank for rank in range(self._world) if rank != self._rank]
        seen, missed = dict.fromkeys(others, -1), dict.fromkeys(others, 0)
        while not self._closed.wait(_BEAT):
            try:
                self._store.add(f"headway/{self._rank}", 1)
                for rank in others:
                    count = self._store.add(f"headway/{rank}", 0)
                    missed[rank] = 0 if count != seen[rank] or count >= _DONE else missed[rank] + 1
                    seen[rank] = count
            except RuntimeError:  # the main process has ended, which the next collective operation will report
                self._closed.set()
                return
            self._rounds += 1
            for rank in others:
                if missed[rank] >= _LOST:
                    self._end(rank)

    def _guard(self) -> None:
        """End this process if the process of the store does not respond."""
        rounds, silent = 0, 0
        while not self._closed.wait(_BEAT):
            silent = silent + 1 if self._rounds == rounds else 0
            rounds = self._rounds
            if silent >= _LOST:
                self._end(0)

    def _end(self, lost: int) -> None:
        if self._closed.is_set():
            return
        print(
            f"headway: training process {lost} has not responded for {_BEAT * _LOST:g} s (it may be stopped, or its "
            "machine may be down); end it, and continue from the last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread is blocked in a collective operation


class Carried:
    """The recurrent states after this process's micro-batches of the last step, detached from their gradients.

    Micro-batch i over all processes continues micro-batch i of the previous step: each has its own rows.
    """

    def __init__(self, objective: Carrying[Any], processes: Processes, accumulate: int) -> None:
        self.objective = objective
        self.processes = processes
        self._states: list[State | None] = [None] * processes.share_of(accumulate)
        self._gathered: list[list[Tensor]] = []

    def loss(self, model: nn.Module, place: int, batch: Batch) -> dict[str, Loss]:
        """The losses of this step's micro-batch `index`, which continues that of the previous step."""
        losses, states = self.objective.carry(model, batch, self._states[place])
        self._states[place] = tree_map(Tensor.detach, states)
        return losses

    def gather(self) -> None:
        """Send all states to the main process, which writes checkpoints; all processes call it after the same step."""
        if self.processes.world > 1:
            own = [_tensors(state) for state in self._states]
            every = [[torch.zeros_like(t) for t in own[0]] for _ in range(len(own) * self.processes.world)]
            every[self.processes.rank :: self.processes.world] = own
            self._gathered = [[self.processes.sum(t) for t in lane] for lane in every]

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all processes, by the indices of micro-batch and tensor."""
        alone = self.processes.world == 1
        lanes = [_tensors(state) for state in self._states] if alone else self._gathered
        return {f"carried.{i}.{n}": tensor for i, lane in enumerate(lanes) for n, tensor in enumerate(lane)}

    def load_state_dict(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Load saved states; UserError if they do not belong to this model and step."""
        form = self.objective.begin(model, 1)
        for place in range(len(self._states)):
            lane = self.processes.rank + place * self.processes.world
            self._states[place] = _filled(form, state, f"carried.{lane}", model)


def _tensors(states: State) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(found.append, states)
    return found


def _filled(form: State, saved: dict[str, Tensor], name: str, model: nn.Module) -> State:
    device, numbers = next(model.parameters()).device, count()

    def tensor(_: Tensor) -> Tensor:
        key = f"{name}.{next(numbers)}"
        if key not in saved:
            raise UserError(f"the checkpoint lacks the recurrent state {key}; start another run")
        return saved[key].to(device)

    return tree_map(tensor, form)
