"""What each process of a run on many GPUs needs: memory, traffic and time of a step, computed without a GPU."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headway.errors import ConfigError, UserError, nearest
from headway.learn.adapters import LoRAConfig, with_adapter
from headway.learn.examples import Batch
from headway.learn.frozen_base import check_frozen_base
from headway.learn.learner import attach_generator
from headway.learn.memory import training_bytes
from headway.learn.objectives.sequences import Likelihood
from headway.learn.parallel.sharding import units
from headway.learn.recipe import Recipe
from headway.learn.recomputing import prepare_blocks
from headway.learn.task import Task
from headway.nn.mixers import tree_map
from headway.nn.models import TransformerConfig, describe, outline

_FREE_SHARE = 0.9  # of a GPU's memory; the rest is for the CUDA context, NCCL's buffers and fragmentation
UTILISATION = 0.4  # of the peak rate of matrix products, as large models reach it in practice
_LAUNCH = 5e-6  # seconds to start an operation from Python, which decides where they are small


_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class Gpu(NamedTuple):
    """A GPU by its data sheet: dense bf16 FLOP per second; bytes of memory; and bytes per second of its memory, of its
    links to the other GPUs of a machine and of its share of the network, in one direction.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    per_machine: int = 8


GPUS = {
    "b200": Gpu(2250e12, 180e9, 8.0e12, 900e9, 50e9),
    "h200": Gpu(989e12, 141e9, 4.8e12, 450e9, 50e9),
    "h100": Gpu(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "a100": Gpu(312e12, 80e9, 2.0e12, 300e9, 25e9),
    "l40s": Gpu(362e12, 48e9, 0.86e12, 32e9, 12.5e9),
    "rtx-4090": Gpu(165e12, 24e9, 1.0e12, 32e9, 1.25e9),
    "rtx-3090": Gpu(71e12, 24e9, 0.94e12, 32e9, 1.25e9),
}


class RankPlan(NamedTuple):
    """What one of `processes` needs: bytes of memory by category, bytes that it receives in a step by purpose, and the
    seconds of a step by activity, of which computing and receiving overlap.
    """

    processes: int
    shard: int
    replicas: int
    micro_batches: int  # of a process in a step, at most
    tokens: int  # of all processes in a step
    memory: dict[str, int]
    available: int  # bytes of memory of a GPU
    traffic: dict[str, int]
    seconds: dict[str, float]
    reasons: tuple[str, ...]

    @property
    def step_seconds(self) -> float:
        return max(self.seconds["computing"], self.seconds["receiving"]) + self.seconds["updating"]


class Demand(NamedTuple):
    """Bytes of a model on one process: everything that is split among the shards, by category; the peak of a
    micro-batch's activations; how much higher the peak is with the weights and gradients that shards gather; and the
    operations of the micro-batch.
    """

    split: dict[str, int]
    activations: int
    gathered: int
    operations: int  # of a micro-batch
    tokens: int  # of a micro-batch


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`. Raises UserError for an unknown one."""
    if name not in GPUS:
        raise UserError(f"there are no figures for a GPU called {name!r}; {nearest(name, sorted(GPUS))}")
    return GPUS[name]


def plan_ranks(recipe: Recipe, task: Task | None, processes: int, gpu: Gpu) -> RankPlan:
    """Plan a step of the recipe on so many GPUs. Without shards in the recipe, it uses the fewest that fit.

    Raises ConfigError for shards and replicas that do not use all processes, and for frozen weights that a GPU cannot
    compute with; UserError if a task's loss cannot be
    computed without values.
    """
    if isinstance(recipe.adapter, LoRAConfig):
        check_frozen_base(recipe.adapter.base, torch.device("cuda"), recipe.parallel.shard, recipe.train.compile)
    demand, parallel, train = measure_demand(recipe, task, 2), recipe.parallel, recipe.train
    if processes > train.accumulate:
        train = replace(train, accumulate=processes)
    chosen, reasons = parallel.shard, list[str]()
    divisors = [number for number in range(1, processes + 1) if processes % number == 0]
    if parallel.shard == 1 and parallel.replicas == -1:
        fitting = [n for n in divisors if sum(rank_memory(demand, n).values()) <= _FREE_SHARE * gpu.memory]
        chosen = fitting[0] if fitting else processes
        reasons.append(
            f"parallel.shard={chosen}: the fewest shards that fit"
            if fitting
            else f"it does not fit on {processes} GPUs: lower the micro-batch, or set train.recompute=1"
        )
    replicas, shard = replace(parallel, shard=chosen).sizes(processes)
    memory, micro_batches = rank_memory(demand, shard), -(-train.accumulate // processes)
    weights, gradients = demand.split["weights"], demand.split["gradients"]
    gathers = 2 * micro_batches * (weights // 2) * (shard - 1) // shard if shard > 1 else 0
    traffic = {
        "weights": gathers,
        "gradients": micro_batches * gradients * (shard - 1) // shard,
        "replicas": 2 * (gradients // shard) * (replicas - 1) // replicas,
    }
    inside = gpu.link if shard <= gpu.per_machine else gpu.network
    across = gpu.link if processes <= gpu.per_machine else gpu.network
    forward = describe(recipe.model)["flop_per_token"] * demand.tokens
    flop = forward * (3 if recipe.adapter is None else 2)  # frozen weights have no gradients
    flop += forward // train.recompute if train.recompute else 0
    touched = sum(demand.split[name] for name in ("weights", "gradients", "optimiser")) // shard
    seconds = {
        "computing": micro_batches * max(flop / (UTILISATION * gpu.flops), _LAUNCH * demand.operations),
        "receiving": (traffic["weights"] + traffic["gradients"]) / inside + traffic["replicas"] / across,
        "updating": 2 * touched / gpu.bandwidth,  # read and written once
    }
    tokens = demand.tokens * train.accumulate
    return RankPlan(
        processes, shard, replicas, micro_batches, tokens, memory, int(gpu.memory), traffic, seconds, tuple(reasons)
    )


def rank_memory(demand: Demand, shard: int) -> dict[str, int]:
    """Bytes of memory of one of `shard` processes."""
    rows = {name: -(-size // shard) for name, size in demand.split.items()}
    gathered = {"gathered weights and gradients": demand.gathered} if shard > 1 else {}
    return {**rows, **gathered, "activations": demand.activations}


def measure_demand(recipe: Recipe, task: Task | None, number_bytes: int) -> Demand:
    """The memory that a recipe needs. Activations are measured on tensors without values, with numbers of
    `number_bytes` bytes; without a task, those of a language model on rows as long as its context.
    """
    split = {name: size for name, size in training_bytes(recipe, outline(recipe.model)).items() if size}
    batch, loss = _synthetic(recipe) if task is None else (next(task.batches("train")), task.loss)
    try:
        meter = _activations(recipe, batch, loss, torch.bfloat16 if number_bytes == 2 else torch.float32)
    except UserError:  # some models mix both formats, as only autocast can
        meter = _activations(recipe, batch, loss, torch.float32)
    return Demand(split, meter.peak, meter.gathered_peak - meter.peak, meter.operations, batch.computed)


def _synthetic(recipe: Recipe) -> tuple[Batch, Callable[[nn.Module, Batch], Mapping[str, Any]]]:
    """A micro-batch for a language model, and its loss."""
    config = recipe.model
    if not (isinstance(config, TransformerConfig) and "vocabulary" in config.heads and config.stack.causal):
        raise ConfigError(f"planning {recipe.name} for GPUs needs its data, for the shapes of a batch; pass --data")
    length = recipe.row_length(recipe.task.context)
    ids = torch.zeros(recipe.train.rows(length), length, dtype=torch.int64)
    return Batch((ids,), ids, ids.numel(), ids.numel()), Likelihood().loss


def _activations(
    recipe: Recipe, batch: Batch, loss: Callable[[nn.Module, Batch], Mapping[str, Any]], dtype: torch.dtype
) -> MemoryMeter:
    """Measures the memory that a micro-batch needs besides weights and their gradients."""
    inputs, targets = tree_map(
        lambda item: item.to(dtype) if isinstance(item, Tensor) and item.is_floating_point() else item,
        (batch.inputs, batch.targets),
    )
    batch = batch._replace(inputs=inputs, targets=targets)
    with _default_dtype(dtype), FakeTensorMode(allow_non_fake_inputs=True):
        model = with_adapter(recipe.model.build(seed=None), recipe.adapter, (), recipe.train.seed).train()
        prepare_blocks(model, recipe.train.recompute, attach_generator(model), compiles=False)
        meter = MemoryMeter(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        root = _hold_gathered(model, meter)
        try:
            with meter:
                total = sum(part.total for part in loss(model, batch).values())
                cast(Tensor, total).backward()
                meter.hold("copies of root gradients", root)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            first = str(error).partition("\n")[0]
            raise UserError(f"the memory of {recipe.name} cannot be planned without computing it: {first}") from error
    return meter


def _indices(index: Tensor | None) -> list[Tensor | None]:
    """Index tensors for an index; if it is a mask without values, as if all its elements were true."""
    if index is None or index.dtype != torch.bool:
        return [index]
    with unset_fake_temporarily():
        count = index.numel() if isinstance(index, FakeTensor) else int(index.sum())
    return [torch.zeros(count, dtype=torch.int64) for _ in range(index.dim())]


def _hold_gathered(model: nn.Module, meter: MemoryMeter) -> int:
    """Let the meter hold what FSDP gathers: while a block computes, its weights and those of the next one; in its
    backward pass also its fp32 gradients, at its end twice, because they are summed in a copy; during the whole
    micro-batch, the weights and gradients outside blocks. Returns the bytes of the latter gradients.
    """
    blocks = units(model)
    shared = {parameter for block in blocks for parameter in block.parameters()}
    root = [parameter for parameter in model.parameters() if parameter not in shared]
    meter.hold("root weights", sum(parameter.nbytes for parameter in root))
    for parameter in root:
        if parameter.requires_grad:
            held = partial(meter.hold, parameter, 4 * parameter.numel())
            parameter.register_post_accumulate_grad_hook(lambda _, held=held: held())
    for block in blocks:
        weights = sum(parameter.nbytes for parameter in block.parameters())
        gradients = sum(4 * parameter.numel() for parameter in block.parameters() if parameter.requires_grad)

        def enter(_: nn.Module, args: tuple[Any, ...], weights: int = weights, gradients: int = gradients) -> None:
            meter.hold("block", 2 * weights)
            if isinstance(args[0], Tensor) and args[0].requires_grad:  # its gradient ends the block's backward pass
                args[0].register_hook(lambda _: meter.hold("block", 2 * (weights + gradients), then=0))

        def leave(_: nn.Module, __: Any, output: Any, weights: int = weights, gradients: int = gradients) -> None:
            meter.hold("block", 0)
            if output.x.requires_grad:
                output.x.register_hook(lambda _: meter.hold("block", 2 * weights + gradients))

        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    return sum(4 * parameter.numel() for parameter in root if parameter.requires_grad)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


class MemoryMeter(TorchDispatchMode):
    """Counts operations inside the context and the bytes of the storages that they create, except those of a model's
    weights; `peak` is the largest sum at any time, and `gathered_peak` the largest one including `hold`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = self.gathered_peak = self.operations = 0
        self._held: dict[Any, int] = {}
        self._held_bytes = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():  # integers of the batch, which decide about shapes
                return func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:  # a count of targets, or a condition
            return 1 if tensors[0].dtype == torch.bool else math.prod(tensors[0].shape) << 40
        if func in _INDEXED:
            indices = [part for index in args[1] for part in _indices(index)]
            args = (args[0], indices, *args[2:])
        if func is torch.ops.aten.nonzero.default:
            return torch.stack(cast(list[Tensor], _indices(tensors[0])), -1)
        result, self.operations = func(*args, **(kwargs or {})), self.operations + 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    self.gathered_peak = max(self.gathered_peak, self.live + self._held_bytes)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return result

    def hold(self, key: Any, size: int, then: int | None = None) -> None:
        """Hold so many bytes under this key instead of those before, and `then` so many."""
        self._held[key] = size
        self._held_bytes = sum(self._held.values())
        self.gathered_peak = max(self.gathered_peak, self.live + self._held_bytes)
        if then is not None:
            self.hold(key, then)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
