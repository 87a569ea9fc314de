"""The states that batches leave to those that go on after them."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from headway.errors import UserError
from headway.mixers import State, tree_map
from headway.models import Loss
from headway.train.distributed import Processes
from headway.train.examples import Batch
from headway.train.objective import Carrying


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
