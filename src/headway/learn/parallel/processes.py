"""The processes that train one model: their group, and the operations between them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from headway.errors import UserError
from headway.learn.examples import Shard
from headway.learn.parallel.heartbeat import Heartbeat

# The other processes wait while the main process evaluates.
_TIMEOUT = timedelta(hours=12)


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

    def shard(self, accumulate: int) -> Shard:
        """The part of the training data for this process, with `accumulate` micro-batches per step in total."""
        return Shard(self.rank, self.world, accumulate)

    def local_micro_batches(self, accumulate: int) -> int:
        """The number of micro-batches per step for this process, out of `accumulate` in total: rank, rank + world, and
        so on.
        """
        if accumulate < self.world:
            raise UserError(
                f"train.accumulate={accumulate} has fewer micro-batches than {self.world} processes; set it to "
                f"{self.world} or more"
            )
        return len(range(self.rank, accumulate, self.world))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            with _collective():
                dist.all_reduce(values)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The maximum of each element over all processes, in place; not for NaN."""
        if self.world > 1:
            with _collective():
                dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def broadcast(self, values: Tensor, source: int = 0) -> None:
        """Broadcast values from the main process, or from the process `source`, to all processes, in place."""
        if self.world > 1:
            with _collective():
                dist.broadcast(values, source)

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

    def gather_objects(self, data: Any) -> list[Any]:
        """The `data` (any JSON value) of all processes, by rank, in each process."""
        if self.world == 1:
            return [data]
        text = json.dumps(data).encode()
        sizes = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(text)
        lengths = self.sum(sizes).tolist()
        content = torch.zeros(max(lengths), dtype=torch.uint8)
        content[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        contents = [torch.empty_like(content, device=self.device) for _ in lengths]
        with _collective():
            dist.all_gather(contents, content.to(self.device))
        return [json.loads(bytes(part[:length].cpu().numpy())) for part, length in zip(contents, lengths)]

    def run_all(self, work: Callable[[], Any]) -> list[Any]:
        """Run `work`, which uses no other process, in all processes, and return its results (JSON values) by rank. If
        it raises UserError or OSError in one process, all raise UserError with the rank of that process.
        """
        if self.world == 1:
            return [work()]
        result, error = None, None
        try:
            result = work()
        except (UserError, OSError) as raised:
            error = str(raised)
        outcomes = self.gather_objects([result, error])
        errors = {rank: error for rank, (_, error) in enumerate(outcomes) if error is not None}
        if errors:
            rank = min(errors)
            is_shared = len(errors) == self.world and len(set(errors.values())) == 1
            raise UserError(errors[rank] if is_shared else f"process {rank}: {errors[rank]}")
        return [result for result, _ in outcomes]

    def send(self, values: Tensor, rank: int) -> None:
        """Send values to a process, which has to receive them."""
        with _collective():
            dist.send(values, rank)

    def receive(self, values: Tensor, rank: int) -> None:
        """Receive values from a process, in place."""
        with _collective():
            dist.recv(values, rank)

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
