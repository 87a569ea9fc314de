"""The settings of a run with several processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headway.errors import ConfigError


@dataclass(frozen=True)
class ParallelConfig:
    """How several processes share a run. All but `exact` may change when the run resumes.

    exact: sum gradients as integers, so that any number of processes gives the same bits; none: if the run starts with
        several processes on CPUs.
    shard: number of processes that share the weights of one copy of the model, each with its own rows; -1: all
        processes, divided by replicas.
    replicas: number of copies of the model; -1: all processes, divided by shard.
    timeout: seconds without a heartbeat after which a process counts as lost.
    """

    exact: bool | None = None
    shard: int = 1
    replicas: int = -1
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("shard", "replicas"):
            value = getattr(self, name)
            if value < 1 and value != -1:
                raise ConfigError(f"parallel.{name} is {value}; use a number of processes, or -1 for as many as fit")
        if self.shard == self.replicas == -1:
            raise ConfigError("parallel.shard and parallel.replicas are both -1; set one of them")
        if not 1 <= self.timeout < math.inf:
            raise ConfigError(f"parallel.timeout is {self.timeout:g}; use 1 second or more")

    def sizes(self, world: int) -> tuple[int, int]:
        """Replicas and shards for `world` processes. Raises ConfigError if they do not use all processes."""
        shard = world // self.replicas if self.shard == -1 else self.shard
        replicas = world // shard if self.replicas == -1 and shard else self.replicas
        if replicas * shard != world:
            divisors = ", ".join(str(number) for number in range(1, world + 1) if world % number == 0)
            raise ConfigError(
                f"parallel.shard={self.shard} and parallel.replicas={self.replicas} do not use {world} processes; "
                f"use numbers whose product is {world}, from {divisors}"
            )
        return replicas, shard
