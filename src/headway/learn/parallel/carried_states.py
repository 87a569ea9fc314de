"""Recurrent states that carry over between batches, when several processes share the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from headway.errors import UserError
from headway.learn.examples import Batch
from headway.learn.objective import StatefulObjective
from headway.learn.parallel.processes import Processes
from headway.nn.mixers import State, tree_map
from headway.nn.models import Loss


class CarriedStates:
    """The recurrent states after this process's micro-batches of the last step, detached from their gradients.

    Micro-batch i, counted over all processes, continues micro-batch i from the previous step, so each has its own rows.
    """

    def __init__(self, objective: StatefulObjective[Any], processes: Processes, accumulate: int) -> None:
        self.objective = objective
        self.processes = processes
        self.accumulate = accumulate
        self.states: list[State | None] = [None] * processes.local_micro_batches(accumulate)
        self._gathered: list[list[Tensor]] = []

    def loss(self, model: nn.Module, index: int, batch: Batch) -> dict[str, Loss]:
        """The losses for micro-batch `index`, which continues the same micro-batch from the previous step."""
        losses, states = self.objective.stateful_loss(model, batch, self.states[index])
        self.states[index] = tree_map(Tensor.detach, states)
        return losses

    def gather(self) -> None:
        """Send all states to the main process, which writes checkpoints; all processes call it after the same step."""
        processes = self.processes
        if processes.world > 1:
            local = [_flatten(state) for state in self.states]
            self._gathered = [[torch.zeros_like(t) for t in local[0]] for _ in range(self.accumulate)]
            self._gathered[processes.rank :: processes.world] = local
            for index, stream in enumerate(self._gathered):
                for tensor in stream:
                    processes.broadcast(tensor, index % processes.world)

    def state_dict(self) -> dict[str, Tensor]:
        """The states from all processes, keyed by micro-batch and tensor index."""
        is_single = self.processes.world == 1
        streams = [_flatten(state) for state in self.states] if is_single else self._gathered
        return {f"carried.{i}.{n}": tensor for i, stream in enumerate(streams) for n, tensor in enumerate(stream)}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Load saved states; raise UserError if they do not belong to this model and step."""
        template, device = self.objective.initial_state(model, 1), next(model.parameters()).device
        for index in range(len(self.states)):
            stream, indices = self.processes.rank + index * self.processes.world, count()

            def tensor(_: Tensor, stream: int = stream, indices: Iterator[int] = indices) -> Tensor:
                key = f"carried.{stream}.{next(indices)}"
                if key not in state:
                    raise UserError(f"the checkpoint has no recurrent state {key}; start a new run")
                return state[key].to(device)

            self.states[index] = tree_map(tensor, template)


def _flatten(states: State) -> list[Tensor]:
    tensors: list[Tensor] = []
    tree_map(tensors.append, states)
    return tensors
