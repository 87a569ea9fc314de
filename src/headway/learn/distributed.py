"""Data parallelism: several processes with equal weights; and the states that batches leave to later ones."""

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

# The first process evaluates while the others wait for it.
_PATIENCE = timedelta(hours=12)
# Seconds between signs of life, and how many of its own a process gives before another that gives none counts as lost.
# They are counted, not timed, so that a pause of all (Ctrl-Z, a laptop that sleeps) is none of one.
_BEAT, _LOST = 5.0, 60
_DONE = 1 << 40  # more signs than any process gives


def is_first() -> bool:
    """Whether this is the process that writes, by the environment of torchrun; a lone process is."""
    return int(os.environ.get("RANK", "0")) == 0


class Processes:
    """The processes that train one model together; alone, every operation is free.

    Started by torchrun, whose environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) says who is who.
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
        """This process's number of micro-batches a step; `accumulate` is that of all."""
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
        """Give all processes the first one's values, in place."""
        if self.world > 1:
            with _together():
                dist.broadcast(values, 0)

    def tell(self, data: Any) -> Any:
        """The first process's `data` (anything JSON can hold), in all processes."""
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
        """End the group; nothing can be shared afterwards."""
        if self._watch is not None:
            self._watch.close()
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Inside all processes do the same; UserError where one has ended."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).split("\n")[0].rpartition("] ")[2]
        raise UserError(
            f"another process of this training has ended ({first.rstrip('.')}); its own lines say why, and --resume "
            "goes on from the last checkpoint"
        ) from error


class Watch:
    """Gives signs of life to the other processes, and ends this one when another gives none for long: one that is
    stopped, or whose machine is gone, would keep all others waiting.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._closed = threading.Event()
        self._rounds = 0
        for run in (self._talk, self._guard):
            threading.Thread(target=run, daemon=True, name="watch").start()

    def close(self) -> None:
        """Leave the others, who do not miss this process from now on."""
        if not self._closed.is_set():
            self._closed.set()
            with suppress(RuntimeError):  # the store went with its process
                self._store.add(f"headway/{self._rank}", _DONE)

    def _talk(self) -> None:
        """Tell and hear who is there."""
        others = [rank for rank in range(self._world) if rank != self._rank]
        seen, missed = dict.fromkeys(others, -1), dict.fromkeys(others, 0)
        while not self._closed.wait(_BEAT):
            try:
                self._store.add(f"headway/{self._rank}", 1)
                for rank in others:
                    count = self._store.add(f"headway/{rank}", 0)
                    missed[rank] = 0 if count != seen[rank] or count >= _DONE else missed[rank] + 1
                    seen[rank] = count
            except RuntimeError:  # the first process has ended, as the next thing that all do together will tell
                self._closed.set()
                return
            self._rounds += 1
            for rank in others:
                if missed[rank] >= _LOST:
                    self._end(rank)

    def _guard(self) -> None:
        """Whoever keeps the store does not answer while it is stopped."""
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
            f"headway: process {lost} of this training has not answered for {_BEAT * _LOST:g} s (is it stopped, or its "
            "machine gone?); end it, and --resume goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread waits in a call that nothing else ends


class Carried:
    """The states after this process's micro-batches of the last step, each cut off from its gradient.

    Micro-batch i of all processes together goes on from micro-batch i of the step before: each has rows of its own.
    """

    def __init__(self, objective: Carrying[Any], processes: Processes, accumulate: int) -> None:
        self.objective = objective
        self.processes = processes
        self._states: list[State | None] = [None] * processes.share_of(accumulate)
        self._gathered: list[list[Tensor]] = []

    def loss(self, model: nn.Module, place: int, batch: Batch) -> dict[str, Loss]:
        """The losses of this step's micro-batch `place`, which goes on from the one of the step before."""
        losses, states = self.objective.carry(model, batch, self._states[place])
        self._states[place] = tree_map(Tensor.detach, states)
        return losses

    def gather(self) -> None:
        """Tell the first process, which writes checkpoints, the states of all; all call it after the same step."""
        if self.processes.world > 1:
            own = [_tensors(state) for state in self._states]
            every = [[torch.zeros_like(t) for t in own[0]] for _ in range(len(own) * self.processes.world)]
            every[self.processes.rank :: self.processes.world] = own
            self._gathered = [[self.processes.sum(t) for t in lane] for lane in every]

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all processes, by the number of the micro-batch and that of the tensor."""
        alone = self.processes.world == 1
        lanes = [_tensors(state) for state in self._states] if alone else self._gathered
        return {f"carried.{i}.{n}": tensor for i, lane in enumerate(lanes) for n, tensor in enumerate(lane)}

    def load_state_dict(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Go on from saved states; UserError where they are not those of this model and step."""
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
            raise UserError(f"the checkpoint lacks {key}, a state to go on from; start another run")
        return saved[key].to(device)

    return tree_map(tensor, form)
