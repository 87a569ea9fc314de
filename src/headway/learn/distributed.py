"""Data parallelism (several processes with equal weights), and recurrent states that carry over between batches."""

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
from headway.learn.objective import StatefulObjective
from headway.learn.task import Shard
from headway.nn.mixers import State, tree_map
from headway.nn.models import Loss

# The other processes wait while the main process evaluates.
_TIMEOUT = timedelta(hours=12)
# Seconds between heartbeats, and the number of our own heartbeats after which a silent process counts as lost. They
# are counted, not timed, so that pausing all processes (Ctrl-Z, a sleeping laptop) does not matter.
_HEARTBEAT_SECONDS, _MAX_MISSED = 5.0, 60
_FINISHED = 1 << 40  # more heartbeats than any process sends


class Processes:
    """The processes that train one model. With a single process, every operation is free.

    torchrun starts them and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        self._heartbeat: Heartbeat | None = None
        if self.world > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.set_device(self.device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            if not dist.is_initialized():
                store, rank, world = next(rendezvous("env://", timeout=_TIMEOUT))
                dist.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=world)
                self._heartbeat = Heartbeat(store.clone(), self.rank, self.world)  # type: ignore[attr-defined]

    @property
    def is_main(self) -> bool:
        """Whether this is the process that evaluates, writes and reports."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.world)

    def local_micro_batches(self, accumulate: int) -> int:
        """The number of micro-batches per step for this process, out of `accumulate` in total."""
        if accumulate % self.world:
            raise UserError(
                f"train.accumulate={accumulate} is not divisible by {self.world} processes; "
                f"set it to {self.world} or a multiple"
            )
        return accumulate // self.world

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            with _collective():
                dist.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> None:
        """Broadcast values from the main process to all processes, in place."""
        if self.world > 1:
            with _collective():
                dist.broadcast(values, 0)

    def broadcast_object(self, data: Any) -> Any:
        """Broadcast `data` (any JSON value) from the main process to all processes."""
        if self.world == 1:
            return data
        text = json.dumps(data).encode() if self.is_main else b""
        size = torch.tensor(len(text), device=self.device)
        self.broadcast(size)
        content = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.is_main:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self.broadcast(content)
        return json.loads(bytes(content.cpu().tolist()))

    def close(self) -> None:
        """Leave the process group."""
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _collective() -> Iterator[None]:
    """Run a collective operation; raise UserError if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).split("\n")[0].rpartition("] ")[2]
        raise UserError(
            f"another training process has ended ({first.rstrip('.')}); check its log for the reason, then resume from "
            "the last checkpoint with --resume"
        ) from error


class Heartbeat:
    """Sends heartbeats to the other processes, and ends this one if another stays silent for too long. Otherwise a
    process that was stopped, or whose machine was lost, would block all others.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._closed = threading.Event()
        self._rounds = 0
        for target in (self._exchange, self._watch_store):
            threading.Thread(target=target, daemon=True, name="watch").start()

    def close(self) -> None:
        """Tell the other processes that this one has finished."""
        if not self._closed.is_set():
            self._closed.set()
            with suppress(RuntimeError):  # the store ended with its process
                self._store.add(f"headway/{self._rank}", _FINISHED)

    def _exchange(self) -> None:
        """Send heartbeats and read those of the others."""
        other_ranks = [rank for rank in range(self._world) if rank != self._rank]
        last_counts, missed = dict.fromkeys(other_ranks, -1), dict.fromkeys(other_ranks, 0)
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            try:
                self._store.add(f"headway/{self._rank}", 1)
                for rank in other_ranks:
                    count = self._store.add(f"headway/{rank}", 0)
                    missed[rank] = 0 if count != last_counts[rank] or count >= _FINISHED else missed[rank] + 1
                    last_counts[rank] = count
            except RuntimeError:  # the main process has ended; the next collective operation reports it
                self._closed.set()
                return
            self._rounds += 1
            for rank in other_ranks:
                if missed[rank] >= _MAX_MISSED:
                    self._exit(rank)

    def _watch_store(self) -> None:
        """End this process if the process that runs the store does not respond."""
        last_rounds, silent_beats = 0, 0
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            silent_beats = silent_beats + 1 if self._rounds == last_rounds else 0
            last_rounds = self._rounds
            if silent_beats >= _MAX_MISSED:
                self._exit(0)

    def _exit(self, lost: int) -> None:
        if self._closed.is_set():
            return
        print(
            f"headway: training process {lost} has not responded for {_HEARTBEAT_SECONDS * _MAX_MISSED:g} s (it may "
            "be stopped, or its machine may be down); end it, then resume from the last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread is blocked in a collective operation


class CarriedStates:
    """The recurrent states after this process's micro-batches of the last step, detached from their gradients.

    Micro-batch i, counted over all processes, continues micro-batch i from the previous step, so each has its own rows.
    """

    def __init__(self, objective: StatefulObjective[Any], processes: Processes, accumulate: int) -> None:
        self.objective = objective
        self.processes = processes
        self._states: list[State | None] = [None] * processes.local_micro_batches(accumulate)
        self._gathered: list[list[Tensor]] = []

    def loss(self, model: nn.Module, index: int, batch: Batch) -> dict[str, Loss]:
        """The losses for micro-batch `index`, which continues the same micro-batch from the previous step."""
        losses, states = self.objective.stateful_loss(model, batch, self._states[index])
        self._states[index] = tree_map(Tensor.detach, states)
        return losses

    def gather(self) -> None:
        """Send all states to the main process, which writes checkpoints; all processes call it after the same step."""
        if self.processes.world > 1:
            local = [_flatten(state) for state in self._states]
            all_states = [[torch.zeros_like(t) for t in local[0]] for _ in range(len(local) * self.processes.world)]
            all_states[self.processes.rank :: self.processes.world] = local
            self._gathered = [[self.processes.sum(t) for t in stream] for stream in all_states]

    def state_dict(self) -> dict[str, Tensor]:
        """The states from all processes, keyed by micro-batch and tensor index."""
        is_single = self.processes.world == 1
        streams = [_flatten(state) for state in self._states] if is_single else self._gathered
        return {f"carried.{i}.{n}": tensor for i, stream in enumerate(streams) for n, tensor in enumerate(stream)}

    def load_state_dict(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Load saved states; raise UserError if they do not belong to this model and step."""
        template, device = self.objective.initial_state(model, 1), next(model.parameters()).device
        for index in range(len(self._states)):
            stream, indices = self.processes.rank + index * self.processes.world, count()

            def tensor(_: Tensor, stream: int = stream, indices: Iterator[int] = indices) -> Tensor:
                key = f"carried.{stream}.{next(indices)}"
                if key not in state:
                    raise UserError(f"the checkpoint has no recurrent state {key}; start a new run")
                return state[key].to(device)

            self._states[index] = tree_map(tensor, template)


def _flatten(states: State) -> list[Tensor]:
    tensors: list[Tensor] = []
    tree_map(tensors.append, states)
    return tensors
