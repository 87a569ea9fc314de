"""Training steps: one update from all micro-batches in a step, exactly as if they were one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.data.shuffling import GOLDEN_GAMMA, splitmix64
from headway.errors import UserError
from headway.formats.native import named_tensors
from headway.layout import to_device
from headway.learn.examples import Batch, OnPolicyExamples
from headway.learn.objective import StatefulObjective
from headway.learn.optim import FlatParameters, Optimizer, lerp
from headway.learn.parallel.carried_states import CarriedStates
from headway.learn.parallel.evaluation import EvaluationStoppedError, shared_evaluation
from headway.learn.parallel.exact import ExactGradients
from headway.learn.parallel.overlap import OverlappedSum
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.rows import Rows, load
from headway.learn.precision import effective_precision, evaluation_precision, products
from headway.learn.recipe import Recipe
from headway.learn.recomputing import prepare_blocks
from headway.learn.task import Task
from headway.nn.kernels import GeluPasses, gelu_passes
from headway.nn.models import evaluation_mode
from headway.nn.parts.dropout import Dropout

if TYPE_CHECKING:
    from headway.learn.parallel.sharding import Sharding

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

    def stop_later(self) -> Callable[[], bool]:
        """A function like `stop` that waits only for this step, and not for steps which a GPU was given after it."""
        flag, copied = self.stats[_STOP_INDEX].to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()

        def read() -> bool:
            copied.synchronize()
            return flag.item() > 0

        return read


class _Gradients(NamedTuple):
    """What adding the gradients of a step leaves in addition to them: the names of the losses, whether the gradients
    are divided by counts, the statistics, and the norm.
    """

    names: tuple[str, ...]
    is_divided: bool
    stats: Float[Tensor, "F"]
    norm: Float[Tensor, ""]


class Learner:
    """A model with its optimiser, moving average and recurrent states, which is everything that a step changes."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, task: Task, processes: Processes, precision: str = "fp32"
    ) -> None:
        """`precision` is that of matrix products: fp32, or bf16 if the device multiplies it faster
        (`effective_precision`).
        """
        self.device = processes.device
        self.recipe = recipe
        self.task = task
        self.processes = processes
        self.precision = effective_precision(precision, self.device)
        self._generator = attach_generator(model, self.device, recipe.parallel.exact)
        is_sharded = recipe.parallel.sizes(processes.world)[1] > 1
        is_compiled_whole = recipe.train.compile and not (is_sharded or recipe.train.recompute)
        prepare_blocks(model, recipe.train.recompute, self._generator, recipe.train.compile and not is_compiled_whole)
        self.sharding: Sharding | None = None  # how processes share the weights; None: each has all of them
        if is_sharded:
            from headway.learn.parallel.sharding import Sharding  # imports FSDP

            self.sharding = Sharding(model, recipe, processes, self.precision)
        self.model = (model if self.sharding else model.to(self.device)).train()
        flat = FlatParameters if self.sharding is None else self.sharding.flat
        self.optimizer = Optimizer(recipe.optim, self.model, self.precision, bool(recipe.parallel.exact), flat)
        self.flat = self.optimizer.flat
        self.flat.broadcast(processes)
        self.average = self.flat.data.clone() if recipe.train.ema is not None else None
        objective, examples = task.objective, task.examples
        carries = isinstance(objective, StatefulObjective)
        self._carried_states = CarriedStates(objective, processes, recipe.train.accumulate) if carries else None
        sums = ExactGradients if self.sharding is None else self.sharding.exact_gradients
        self._exact = sums(self.flat, recipe.train.accumulate, processes) if recipe.parallel.exact else None
        is_overlapped = processes.world > 1 and self.sharding is None and self._exact is None
        self._overlap = OverlappedSum(self.flat, self.model, processes) if is_overlapped else None
        self._on_policy = examples if isinstance(examples, OnPolicyExamples) else None
        if self._on_policy is not None:
            self._on_policy.start_exploring(self.model)
        if is_compiled_whole:
            self.model.compile()

    def products(self) -> AbstractContextManager[None]:
        """A context for all of a step, in which a model also makes its own samples."""
        return products(self.precision, self.device)

    def update(self, step: int, batches: Sequence[Batch], stop: Callable[[], bool] = bool) -> Update:
        """One update from this process's micro-batches for step `step` (from 0); `stop`, asked after them, is sent to
        the other processes.
        """
        train = self.recipe.train
        with self.products(), gelu_passes(None if train.compile else _compiled_gelu):
            counts: dict[str, float | Tensor] | None = None
            batch_counts = [self.task.objective.counts(batch) for batch in batches]
            if batch_counts[0]:  # the task knows the count of each loss over the whole step in advance
                sums = {name: sum(each[name] for each in batch_counts) for name in batch_counts[0]}
                counts = {name: max(1, total) for name, total in sums.items()}
                if self.processes.world > 1:  # the sums over all processes stay on the GPU
                    values = to_device(torch.tensor([*sums.values()], dtype=torch.float64), self.device)
                    counts = dict(zip(sums, self.processes.sum(values).clamp(min=1).unbind()))
            batches = [batch.to(self.device) for batch in batches]  # copies are made ahead of all computations
            add_gradients = self._add_gradients if self._exact is None else self._add_exact_gradients
            names, is_divided, stats, norm = add_gradients(step, batches, counts, stop)
            scale = 1.0 if is_divided else 1 / stats[_LOSSES_INDEX].clamp(min=1)
            norm = norm * scale
            if train.clip is not None:
                scale = scale * (train.clip / (norm + 1e-6)).clamp(max=1)
            self.flat.grads.mul_(scale)
            self.optimizer.step(self.recipe.schedule.factor(step, train.steps))
        if self.average is not None:  # the first steps count more, because it still contains the initial weights
            decay = min(train.ema or 0.0, (1 + step) / (10 + step))
            interpolate = Tensor.lerp_ if self._exact is None else lerp
            interpolate(self.average, self.flat.data, 1 - decay)
        return Update(names, norm, stats)

    def _add_gradients(
        self, step: int, batches: Sequence[Batch], counts: dict[str, float | Tensor] | None, stop: Callable[[], bool]
    ) -> _Gradients:
        """Leave the sum of all micro-batches' gradients in `flat`, added in floating point."""
        tail = self.flat.tail
        self._seed(step, self.processes.rank)
        self.flat.zero_grads()
        names, is_divided = (), False
        for index in range(self._rounds(batches)):
            names, is_divided = self._backward(index, batches, counts)
        tail[_STOP_INDEX] += float(stop())
        tail[_TOKENS_INDEX] += sum(batch.tokens for batch in batches)
        sums = self.sharding or self._overlap
        if sums is not None:
            sums.sum_gradients()
        return _Gradients(names, is_divided, tail.clone(), self.flat.norm())

    def _add_exact_gradients(
        self, step: int, batches: Sequence[Batch], counts: dict[str, float | Tensor] | None, stop: Callable[[], bool]
    ) -> _Gradients:
        """Leave the sum of all micro-batches' gradients in `flat`, with the same bits for any number of processes."""
        exact, tail, carried, world = self._exact, self.flat.tail, self._carried_states, self.processes.world
        assert exact is not None
        states = [] if carried is None else carried.states.copy()
        names, is_divided = (), False

        def compute() -> Iterator[int]:
            nonlocal names, is_divided
            if carried is not None:
                carried.states = states.copy()
            for index in range(self._rounds(batches)):
                number = self.processes.rank + index * world
                self._seed(step, number)
                self.flat.zero_grads()
                names, is_divided = self._backward(index, batches, counts)
                if index < len(batches):
                    tail[_STOP_INDEX], tail[_TOKENS_INDEX] = float(stop()), batches[index].tokens
                    yield number

        stats = exact.sum(compute)
        return _Gradients(names, is_divided, stats, exact.norm())

    def _rounds(self, batches: Sequence[Batch]) -> int:
        """The number of micro-batches to compute. With shards, all processes compute equally many, because all take
        part in gathering weights; those that have fewer repeat their last one without effect.
        """
        return len(batches) if self.sharding is None else -(-self.recipe.train.accumulate // self.processes.world)

    def _seed(self, step: int, number: int) -> None:
        """Seed dropout with a 63-bit number far from those for neighbouring steps and micro-batches or processes."""
        counter = (self.recipe.train.seed + (step - 1) * GOLDEN_GAMMA + number * 0xD1342543DE82EF95) % (1 << 64)
        self._generator.manual_seed(int(splitmix64(np.uint64(counter))) >> 1)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model for evaluation and saving: averaged weights if there are any, no dropout, `evaluation_precision`.

        With shards all processes enter, and the main process gets a copy with all weights.
        """
        precision = evaluation_precision(self.precision, self.device)
        with self.averaged(), products(precision, self.device), torch.no_grad():
            if self.sharding is not None:
                with self.sharding.whole_model() as whole:
                    yield whole
                return
            with evaluation_mode(self.model):
                yield self.model

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights, if there are any, inside the context."""
        if self.average is None:
            yield
            return
        trained = self.flat.data.clone()
        try:
            self.flat.data.copy_(self.average)
            yield
        finally:  # a second Ctrl-C may interrupt what comes after it
            self.flat.data.copy_(trained)

    def evaluate(
        self,
        split: str,
        limit: int | None,
        breakable: Callable[[], AbstractContextManager[None]] = nullcontext,
        stops: Callable[[], bool] = bool,
    ) -> dict[str, Any] | None:
        """Scores on at most `limit` samples from a split, equal in all processes, which share the work if the objective
        can; otherwise the main process does it. None if it is interrupted: by a signal in the context `breakable`, or
        by `stops` in one of the processes that share it.
        """
        processes, task, scores = self.processes, self.task, None
        if processes.world > 1 and self.sharding is None and task.objective.shares_evaluation:
            sharing = shared_evaluation(processes, stops, breakable)
            with suppress(EvaluationStoppedError), self.evaluating() as model, sharing:
                scores = task.evaluate(model, split, limit)
        elif processes.is_main or self.sharding is not None:
            try:
                with self.evaluating() as model, suppress(KeyboardInterrupt), breakable():
                    scores = task.evaluate(model, split, limit) if processes.is_main else None
            except KeyboardInterrupt:  # a second signal, while weights were swapped
                if self.sharding is not None:  # the others wait for more than the result
                    raise
                scores = None
        return processes.broadcast_object(scores)

    @property
    def trained(self) -> int:
        """The number of trainable parameters."""
        return self.flat.count

    def saved_tensors(self) -> dict[str, Tensor | Rows]:
        """The model tensors that a checkpoint contains; with an adapter, only the trainable ones."""
        tensors = dict(named_tensors(self.model) if self.sharding is None else self.sharding.named_tensors())
        if self.recipe.adapter is None:
            return tensors
        return {name: tensors[name] for name in self.flat.names}

    def gather(self) -> None:
        """Collect states from all processes after a step that the main process may checkpoint."""
        if self._carried_states is not None:
            self._carried_states.gather()

    def state_dict(self) -> dict[str, Tensor | Rows]:
        """The tensors in a checkpoint besides the model weights."""
        state: dict[str, Tensor | Rows] = self.optimizer.state_dict()
        if self._carried_states is not None:
            state.update(self._carried_states.state_dict())
        if self._exact is not None:
            state.update(self._exact.sums.state_dict())
        if self._on_policy is not None:
            state.update((f"explored.{name}", value) for name, value in self._on_policy.exploration_state().items())
        if self.average is not None:
            views = self.flat.views(self.average)
            state.update((f"average.{name}", self.flat.saved(name, value)) for name, value in views)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a saved state; raise UserError if it belongs to another model or optimiser."""
        self.optimizer.load_state_dict(state)
        if self._carried_states is not None:
            self._carried_states.load_state_dict(self.model, state)
        if self._exact is not None:
            self._exact.sums.load_state_dict(state)
        if self._on_policy is not None:
            exploration = {name: state[name] for name in state if name.startswith("explored.")}
            self._on_policy.load_exploration_state(
                {name.removeprefix("explored."): value for name, value in exploration.items()}
            )
        if self.average is not None:
            for name, parameter in self.flat.views(self.average):
                if f"average.{name}" not in state:
                    raise UserError(f"the checkpoint has no average.{name}; remove train.ema, or start a new run")
                load(self.flat.saved(name, parameter), f"average.{name}", state)

    def _backward(
        self, index: int, batches: Sequence[Batch], counts: dict[str, float | Tensor] | None
    ) -> tuple[tuple[str, ...], bool]:
        """Add the gradient of this process's micro-batch `index`; return the names of its losses, and whether the
        gradient is already divided by counts.

        Losses that share a count are summed, then divided at the end of the step by the total count.
        """
        is_repeated, is_only_batch = index >= len(batches), len(batches) == self.processes.world == 1
        number = min(index, len(batches) - 1)
        batch, carried, tail = batches[number], self._carried_states, self.flat.tail
        with nullcontext() if self.sharding is None else self.sharding.micro_batch():
            if carried is not None:
                states = carried.states[number]
                losses = carried.loss(self.model, number, batch)
                carried.states[number] = states if is_repeated else carried.states[number]
            else:
                losses = self.task.loss(self.model, batch)
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
                if not is_repeated:
                    tail[_LOSSES_INDEX + 2 * i] += loss.count
                    tail[_LOSSES_INDEX + 2 * i + 1] += loss.total.detach()
                count = (max(1, loss.count) if counts is None else counts[name]) if is_divided else 1
                total_loss = total_loss + loss.total / count
            overlap = self._overlap if index == len(batches) - 1 else None
            with nullcontext() if overlap is None else overlap.last_backward():
                (total_loss * 0 if is_repeated else total_loss).backward()
        return tuple(losses), is_divided


def _compiled_gelu() -> GeluPasses:
    from headway.engine.slopes import GELU_TANH  # imports LLVM, which small models do not need

    return GELU_TANH


def attach_generator(
    model: nn.Module, device: torch.device | str = "cpu", exact: bool | None = False
) -> torch.Generator:
    """Attach one generator to all dropout layers of `model` and return it; the trainer reseeds it at each step. On an
    NVIDIA GPU it is the default one, from which fused attention samples, unless sums are `exact`.
    """
    place, generator, fused = torch.device(device), torch.Generator(device=device), False
    if place.type == "cuda" and not exact:
        index = torch.cuda.current_device() if place.index is None else place.index
        generator, fused = torch.cuda.default_generators[index], True
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator, module.fused = generator, fused
    return generator
