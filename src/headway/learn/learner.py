"""Training steps: one update from all micro-batches in a step, exactly as if they were one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.data.shuffling import GOLDEN_GAMMA, splitmix64
from headway.errors import UserError
from headway.formats.native import named_tensors
from headway.learn.examples import Batch, OnPolicyExamples
from headway.learn.objective import StatefulObjective
from headway.learn.optim import Optimizer
from headway.learn.parallel.carried_states import CarriedStates
from headway.learn.parallel.evaluation import shared_evaluation
from headway.learn.parallel.processes import Processes
from headway.learn.precision import effective_precision, products
from headway.learn.recipe import Recipe
from headway.learn.task import Task
from headway.nn.kernels import GeluPasses, gelu_passes
from headway.nn.models import Loss, evaluation_mode
from headway.nn.parts.dropout import Dropout

# Indices of the statistics stored after the gradients, so that one all-reduce sums both.
_STOP_INDEX, _TOKENS_INDEX, _LOSSES_INDEX = 0, 1, 2


class Update(NamedTuple):
    """Statistics from one step, as tensors that are read later, because reading waits for the GPU.

    `norm` is the gradient norm before clipping; `stats` are sums over all processes.
    """

    names: tuple[str, ...]
    norm: Float[Tensor, ""]
    stats: Float[Tensor, "F"]

    def losses(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each loss."""
        values = self.stats.tolist()[_LOSSES_INDEX:]
        return {name: (values[2 * i + 1], values[2 * i]) for i, name in enumerate(self.names)}

    def tokens(self) -> int:
        """The number of target tokens."""
        return round(self.stats[_TOKENS_INDEX].item())

    def stop(self) -> bool:
        """Whether any process requested a stop."""
        return self.stats[_STOP_INDEX].item() > 0


class Learner:
    """A model with its optimiser, moving average and recurrent states, which is everything that a step changes."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, task: Task, processes: Processes, precision: str = "fp32"
    ) -> None:
        """`precision` is that of matrix products: fp32, or bf16 if the device multiplies it faster
        (`effective_precision`).
        """
        self.device = processes.device
        self.model = model.to(self.device).train()
        self.recipe = recipe
        self.task = task
        self.processes = processes
        self.precision = effective_precision(precision, self.device)
        self.optimizer = Optimizer(recipe.optim, self.model, self.precision)
        self.flat = self.optimizer.flat
        processes.broadcast(self.flat.data)
        self.average = self.flat.data.clone() if recipe.train.ema is not None else None
        self._generator = attach_generator(self.model, self.device)
        objective, examples = task.objective, task.examples
        carries = isinstance(objective, StatefulObjective)
        self._carried_states = CarriedStates(objective, processes, recipe.train.accumulate) if carries else None
        self._on_policy = examples if isinstance(examples, OnPolicyExamples) else None
        if self._on_policy is not None:
            self._on_policy.start_exploring(self.model)
        if recipe.train.compile:
            self.model.compile()

    def update(self, step: int, batches: Sequence[Batch], stop: bool = False) -> Update:
        """One update from this process's micro-batches for step `step` (from 0); `stop` is sent to the other
        processes.
        """
        train, tail = self.recipe.train, self.flat.tail
        # A 63-bit seed, far from the seeds for neighbouring steps and ranks.
        counter = (train.seed + (step - 1) * GOLDEN_GAMMA + self.processes.rank * 0xD1342543DE82EF95) % (1 << 64)
        self._generator.manual_seed(int(splitmix64(np.uint64(counter))) >> 1)
        self.flat.zero_grads()
        names, is_divided = (), False
        with products(self.precision, self.device), gelu_passes(None if train.compile else _compiled_gelu):
            counts, batch_counts = None, [self.task.objective.counts(batch) for batch in batches]
            if batch_counts[0]:  # the task knows the count of each loss over the whole step in advance
                sums = [sum(c[name] for c in batch_counts) for name in batch_counts[0]]
                totals = self.processes.sum(torch.tensor(sums, dtype=torch.float64).to(self.device))
                counts = dict(zip(batch_counts[0], totals.tolist()))
            for index, batch in enumerate(batches):
                batch = batch.to(self.device)
                if self._carried_states is not None:
                    losses = self._carried_states.loss(self.model, index, batch)
                else:
                    losses = self.task.loss(self.model, batch)
                names = tuple(losses)
                is_divided = self._backward(losses, counts, is_only_batch=len(batches) == self.processes.world == 1)
            tail[_STOP_INDEX] += float(stop)
            tail[_TOKENS_INDEX] += sum(batch.tokens for batch in batches)
            self.processes.sum(self.flat.grads_and_tail)
            scale = 1.0 if is_divided else 1 / tail[_LOSSES_INDEX].clamp(min=1)
            norm = torch.linalg.vector_norm(self.flat.grads) * scale
            if train.clip is not None:
                scale = scale * (train.clip / (norm + 1e-6)).clamp(max=1)
            self.flat.grads.mul_(scale)
            self.optimizer.step(self.recipe.schedule.factor(step, train.steps))
        if self.average is not None:  # the first steps count more, because it still contains the initial weights
            decay = min(train.ema or 0.0, (1 + step) / (10 + step))
            self.average.lerp_(self.flat.data, 1 - decay)
        return Update(names, norm, tail.clone())

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model for evaluation and saving: averaged weights if there are any, no dropout, full precision."""
        trained = self.flat.data.clone() if self.average is not None else None
        with evaluation_mode(self.model), products("fp32", self.device), torch.no_grad():
            try:
                if self.average is not None:
                    self.flat.data.copy_(self.average)
                yield self.model
            finally:
                if trained is not None:  # first, because a second Ctrl-C may interrupt the rest
                    self.flat.data.copy_(trained)

    def evaluate(
        self,
        split: str,
        limit: int | None,
        breakable: Callable[[], AbstractContextManager[None]] = nullcontext,
        stops: Callable[[], bool] = bool,
    ) -> dict[str, Any]:
        """Scores on at most `limit` samples from a split, equal in all processes, which share the work if the objective
        can; otherwise the main process does it. If `stops` is true in one process, KeyboardInterrupt in all that share
        it; in the context `breakable`, a signal interrupts at once.
        """
        processes, task = self.processes, self.task
        if processes.world > 1 and task.objective.shares_evaluation:
            with self.evaluating() as model, shared_evaluation(processes, stops):
                return processes.broadcast_object(task.evaluate(model, split, limit))
        if not processes.is_main:
            with breakable():
                return processes.broadcast_object(None)
        with self.evaluating() as model, breakable():
            scores = task.evaluate(model, split, limit)
        return processes.broadcast_object(scores)

    @property
    def trained(self) -> int:
        """The number of trainable parameters."""
        return sum(shape.numel() for shape in self.flat.shapes.values())

    def saved_tensors(self) -> dict[str, Tensor]:
        """The model tensors that a checkpoint contains; with an adapter, only the trainable ones."""
        tensors = dict(named_tensors(self.model))
        if self.recipe.adapter is None:
            return tensors
        return {name: tensors[name] for name in self.flat.names}

    def gather(self) -> None:
        """Collect states from all processes after a step that the main process may checkpoint."""
        if self._carried_states is not None:
            self._carried_states.gather()

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors in a checkpoint besides the model weights."""
        state = self.optimizer.state_dict()
        if self._carried_states is not None:
            state.update(self._carried_states.state_dict())
        if self._on_policy is not None:
            state.update((f"explored.{name}", value) for name, value in self._on_policy.exploration_state().items())
        if self.average is not None:
            state.update((f"average.{name}", value) for name, value in self.flat.views(self.average))
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a saved state; raise UserError if it belongs to another model or optimiser."""
        self.optimizer.load_state_dict(state)
        if self._carried_states is not None:
            self._carried_states.load_state_dict(self.model, state)
        if self._on_policy is not None:
            exploration = {name: value for name, value in state.items() if name.startswith("explored.")}
            self._on_policy.load_exploration_state(
                {name.removeprefix("explored."): value for name, value in exploration.items()}
            )
        if self.average is not None:
            for name, parameter in self.flat.views(self.average):
                if f"average.{name}" not in state:
                    raise UserError(f"the checkpoint has no average.{name}; remove train.ema, or start a new run")
                parameter.copy_(state[f"average.{name}"])

    def _backward(self, losses: dict[str, Loss], counts: dict[str, float] | None, is_only_batch: bool) -> bool:
        """Add a micro-batch's gradient; return whether it is already divided by counts.

        Losses that share a count are summed, then divided at the end of the step by the total count.
        """
        tail = self.flat.tail
        if _LOSSES_INDEX + 2 * len(losses) > tail.numel():
            raise UserError(f"the task has {len(losses)} losses; use at most {(tail.numel() - _LOSSES_INDEX) // 2}")
        is_divided = counts is not None or len({loss.count for loss in losses.values()}) > 1
        if is_divided and counts is None and not is_only_batch:
            raise UserError(
                f"losses {', '.join(losses)} have different counts that this task does not know in advance, so "
                "they cannot be accumulated; set train.accumulate=1 and use one process"
            )
        total_loss = tail.new_zeros(())
        for i, (name, loss) in enumerate(losses.items()):
            tail[_LOSSES_INDEX + 2 * i] += loss.count
            tail[_LOSSES_INDEX + 2 * i + 1] += loss.total.detach()
            count = max(1, loss.count if counts is None else counts[name]) if is_divided else 1
            total_loss = total_loss + loss.total / count
        total_loss.backward()
        return is_divided


def _compiled_gelu() -> GeluPasses:
    from headway.engine.slopes import GELU_TANH  # imports LLVM, which small models do not need

    return GELU_TANH


def attach_generator(model: nn.Module, device: torch.device | str = "cpu") -> torch.Generator:
    """Attach one generator to all dropout layers of `model` and return it; the trainer reseeds it at each step."""
    generator = torch.Generator(device=device)
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
    return generator
