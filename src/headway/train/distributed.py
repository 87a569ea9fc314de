"""Data parallelism: several processes with equal weights, each with its share of every step's micro-batches."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headway.errors import UserError
from headway.train.task import Shard

# The first process evaluates while the others wait for it.
_PATIENCE = timedelta(hours=12)


class Processes:
    """The processes that train one model together; alone, every operation is free.

    Started by torchrun, whose environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) says who is who.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        if self.world > 1:
            if device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.set_device(self.device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            if not dist.is_initialized():
                dist.init_process_group(backend, timeout=_PATIENCE)

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
            dist.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> None:
        """Give all processes the first one's values, in place."""
        if self.world > 1:
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
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
