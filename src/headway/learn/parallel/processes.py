"""The processes that train one model: their group, and the operations between them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headway.errors import UserError
from headway.learn.examples import Shard
from headway.learn.parallel.group import joined, process_rank, world_size
from headway.learn.parallel.speed import ComputeTimer

# A backstop: heartbeats notice a lost process, and the others may wait long for one that only is slow.
_TIMEOUT = timedelta(hours=12)


class Processes:
    """The processes that train one model. With a single process, every operation is free.

    torchrun starts them and sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """

    def __init__(self, device: torch.device, timeout: float = 60.0) -> None:
        """`timeout`: see `ParallelConfig`."""
        self.rank, self.world = process_rank(), world_size()
        self.device = device
        self._membership = ExitStack()
        self.heartbeat = self._membership.enter_context(joined(timeout))
        if self.world > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.set_device(self.device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            if not dist.is_initialized() and self.heartbeat is not None:
                store, rank, world = self.heartbeat.store.clone(), self.rank, self.world
                dist.init_process_group(backend, timeout=_TIMEOUT, store=store, rank=rank, world_size=world)
        self.timer = ComputeTimer(self.device if self.world > 1 else None)
        self._pending_stop: Callable[[], bool] | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the process group; if there was an error, end the other processes, and SystemExit if another process
        reports it.
        """
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
        self._membership.__exit__(*error)

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
            with self._collective():
                dist.all_reduce(values)
        return values

    def start_sum(self, values: Tensor) -> Callable[[], None]:
        """Start to sum a tensor over all processes, in place; the result waits for the sum, on a GPU without the
        program.
        """
        with self._collective():
            work = dist.all_reduce(values, async_op=True)

        def wait() -> None:
            with self._collective():
                work.wait()  # type: ignore[union-attr]

        return wait

    def maximum(self, values: Tensor) -> Tensor:
        """The maximum of each element over all processes, in place; not for NaN."""
        if self.world > 1:
            with self._collective():
                dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def broadcast(self, values: Tensor, source: int = 0) -> None:
        """Broadcast values from the main process, or from the process `source`, to all processes, in place."""
        if self.world > 1:
            with self._collective():
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

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of all processes, in their order."""
        if self.world == 1:
            return [data]
        sizes = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(data)
        self.sum(sizes)
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=self.device)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        with self._collective():
            dist.all_gather(parts, padded)
        return [part[:size].cpu().numpy().tobytes() for part, size in zip(parts, sizes.tolist())]

    def gather_objects(self, data: Any) -> list[Any]:
        """The `data` (any JSON value) of all processes, by rank, in each process."""
        return [json.loads(part) for part in self.gather_bytes(json.dumps(data).encode())]

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
        with self._collective():
            dist.send(values, rank)

    def receive(self, values: Tensor, rank: int) -> None:
        """Receive values from a process, in place."""
        with self._collective():
            dist.recv(values, rank)

    def should_stop(
        self, step: int, requested: bool, stop: Callable[[], bool], stop_later: Callable[[], Callable[[], bool]]
    ) -> bool:
        """Whether all processes stop after this step, because one has received a signal; see `Update`. On a GPU it is
        known one step later, so that no step waits for the GPU.
        """
        if self.heartbeat is None:
            return requested
        self.heartbeat.step = step
        if self.device.type != "cuda":
            return stop()
        pending, self._pending_stop = self._pending_stop, stop_later()
        return pending is not None and pending()

    def slow_process(self) -> str | None:
        """Publish the speed of this process; in the main process, a warning that names a slow one."""
        if self.heartbeat is None:
            return None
        self.heartbeat.seconds = self.timer.mean()
        return self.timer.slow_process(self.heartbeat) if self.is_main else None

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """Run a collective operation; SystemExit if another process has ended, which one of the others reports."""
        try:
            with self.timer.wait():
                yield
        except RuntimeError as error:
            first = str(error).split("\n")[0].rpartition("] ")[2]
            raise SystemExit(1 if self.heartbeat is None else self.heartbeat.broken(first.rstrip("."))) from error
