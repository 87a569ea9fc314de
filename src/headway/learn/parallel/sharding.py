"""Models whose weights, gradients and optimiser states are spread over processes: PyTorch's FSDP2, as a plan over
modules (Zhao et al. 2023, PyTorch FSDP; Rajbhandari et al. 2020, ZeRO stage 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import compress
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter

from headway.errors import UserError
from headway.formats.native import named_tensors
from headway.learn.adapters import with_adapter
from headway.learn.optim import FlatParameters, Muon
from headway.learn.parallel.exact import ExactGradients, exact_norm
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.rows import Rows, span, whole_shape
from headway.learn.parallel.sharded_muon import ShardedMuon
from headway.learn.recipe import Recipe
from headway.nn.mixers.recurrence import Recurrence
from headway.nn.models import build
from headway.nn.models.block import Block

_BLOCK_ENTRIES = ("encode", "remember")  # methods besides `forward` that read a block's weights


def units(model: nn.Module) -> list[Block]:
    """The blocks of all stacks: each is gathered when it runs. The other weights are gathered for a whole
    micro-batch, because objectives read them outside a forward pass.
    """
    return [module for module in model.modules() if isinstance(module, Block)]


def whole_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that every process has whole: numbers, and the start vectors that blocks read outside their
    forward pass.
    """
    starts = [module.start for module in model.modules() if isinstance(module, Recurrence) and module.start is not None]
    return {p for p in model.parameters() if p.dim() == 0} | {p for start in starts for p in start.parameters()}


class Sharding:
    """The rows of a model's weights that this process has, and the groups of processes that share it.

    Process r has shard r % shards of replica r // shards.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, processes: Processes, precision: str) -> None:
        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise UserError(f"parallel.shard needs PyTorch 2.13, but this is {torch.__version__}; install a newer one")
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # views of a block's output are not changed in place
        self.replicas, self.shards = recipe.parallel.sizes(processes.world)
        self.recipe = recipe
        self.device = device = processes.device
        names = ("replica", "shard")
        self.mesh = init_device_mesh(device.type, (self.replicas, self.shards), mesh_dim_names=names)
        self.model = model
        self.replica_group, self.shard_group = (self.mesh.get_group(name) for name in names)
        self.rank = self.mesh.get_local_rank("shard")
        self.shapes = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
        attributes = {name: vars(parameter).copy() for name, parameter in model.named_parameters()}
        is_bf16 = precision == "bf16" and device.type == "cuda"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_bf16 else None,
            reduce_dtype=torch.float32 if is_bf16 else None,
            cast_forward_inputs=False,
        )
        whole = whole_parameters(model)
        settings: dict[str, Any] = {"mesh": self.mesh["shard"], "mp_policy": policy, "ignored_params": whole}
        for block in units(model):
            _shard(block, self.rank, settings)
            for entry in _BLOCK_ENTRIES:
                register_fsdp_forward_method(block, entry)
        _shard(model, self.rank, settings)
        for parameter in whole:
            parameter.data = parameter.data.to(device)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # sums, which the learner divides by counts
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                module.set_reduce_scatter_unused_params(True)
        root = cast(Any, model)._get_fsdp_state()
        root._lazy_init()
        self.groups = [state._fsdp_param_group for state in root._state_ctx.all_states if state._fsdp_param_group]
        self.parameters: dict[str, Any] = {p._param_fqn: p for group in self.groups for p in group.fsdp_params}
        for name, parameter in model.named_parameters():
            vars(parameter).update({key: value for key, value in attributes[name].items() if key == "slices"})

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Gather the weights that do not belong to a block for a forward and a backward pass inside the context."""
        cast(FSDPModule, self.model).unshard()
        yield
        for group in self.groups:
            if not group.is_sharded:  # nothing that it gathered took part in the backward pass
                group.post_backward()
                group.finalize_backward()

    def sum_gradients(self) -> None:
        """Sum what FSDP has not: whole parameters and the tail over the shards, and everything over the replicas."""
        flat = self._flat
        whole = [gradient for name, gradient in flat.views(flat.grads) if name not in self.parameters]
        self.sum_whole([*whole, flat.tail])
        if self.replicas > 1:
            dist.all_reduce(flat.grads_and_tail, group=self.replica_group)

    def sum_whole(self, values: Sequence[Tensor]) -> None:
        """Sum tensors over the shards, in place."""
        joined = torch.cat([part.flatten() for part in values])
        dist.all_reduce(joined, group=self.shard_group)
        for part, total in zip(values, joined.split([part.numel() for part in values])):
            part.copy_(total.view(part.shape))

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """A copy of the model with all weights, for evaluation, on the main process; the others get their rows."""
        if self.mesh.get_local_rank("replica") > 0:
            yield self.model
            return
        copy = None
        if dist.get_rank() == 0:
            copy = with_adapter(build(self.recipe.model, None), self.recipe.adapter, (), self.recipe.train.seed)
            copy = copy.to(next(self.model.parameters())).eval()
        targets = {} if copy is None else dict(named_tensors(copy))
        for name, tensor in named_tensors(self.model):
            sharded, values = self.parameters.get(name), tensor
            if sharded is not None:
                local = sharded._sharded_param_data
                parts = [torch.empty_like(local) for _ in range(self.shards)] if copy is not None else []
                dist.gather(local, parts or None, group=self.shard_group, group_dst=0)
                values = torch.cat(parts)[: self.shapes[name].numel()] if parts else local
            if copy is not None:
                targets[name].data.copy_(values.view(targets[name].shape))
                targets[name].requires_grad_(tensor.requires_grad)
        yield self.model if copy is None else copy

    def flat(self, model: nn.Module, groups: Sequence[Sequence[str]], exact: bool = False) -> ShardedParameters:
        """The flat parameters of this process."""
        self._flat = ShardedParameters(self, model, groups, exact)
        return self._flat

    def exact_gradients(self, flat: FlatParameters, accumulate: int, processes: Processes) -> ExactGradients:
        """The exact sums of this process's gradients."""
        return ShardedExactGradients(self, flat, accumulate, processes)

    def named_tensors(self) -> Iterator[tuple[str, Tensor | Rows]]:
        """The tensors that a checkpoint contains: parameters and saved buffers, tied ones once."""
        for name, tensor in named_tensors(self.model):
            sharded = self.parameters.get(name)
            yield name, tensor if sharded is None else self.rows(name, sharded.sharded_param._local_tensor)

    def rows(self, name: str, local: Tensor) -> Tensor | Rows:
        """What `local`, laid out like parameter `name` of this process, is of the whole tensor."""
        return Rows(local, self.span(name, self.rank)[0], self.shapes[name]) if name in self.parameters else local

    def span(self, name: str, rank: int) -> tuple[int, int]:
        """The first row of a parameter that shard `rank` has, and how many it has."""
        return span(self.shapes[name][0], rank, self.shards)


def _shard(module: nn.Module, rank: int, settings: dict[str, Any]) -> None:
    """Apply `fully_shard`, also to parameters of which the process has only its rows: they get memory for the whole
    tensor, which is not written and is free again when FSDP has taken its rows from it.
    """
    rows = {parameter: parameter.data for parameter in module.parameters() if whole_shape(parameter) != parameter.shape}
    for parameter, values in rows.items():
        parameter.data = values.new_empty(whole_shape(parameter))
        start, count = span(parameter.shape[0], rank, settings["mesh"].size())
        parameter.data[start : start + count] = values
    fully_shard(module, **settings)


class ShardedParameters(FlatParameters):
    """`FlatParameters` over the rows of this process; FSDP gathers from `data` and adds to `grads`.

    The memory of each parameter has as many rows as the first process has, because collectives need equal sizes.
    """

    def __init__(self, sharding: Sharding, model: nn.Module, groups: Sequence[Sequence[str]], exact: bool) -> None:
        self.sharding = sharding
        super().__init__(model, groups, exact)

    def _tensor(self, name: str, parameter: nn.Parameter) -> Tensor:
        sharded = self.sharding.parameters.get(name)
        return parameter.data if sharded is None else sharded.sharded_param._local_tensor.detach()

    def _memory(self, name: str, tensor: Tensor) -> int:
        sharded = self.sharding.parameters.get(name)
        return tensor.numel() if sharded is None else sharded._sharded_param_data.numel()

    def _bind(self, name: str, parameter: nn.Parameter, data: Tensor, gradient: Tensor) -> None:
        sharded = self.sharding.parameters.get(name)
        if sharded is None:
            return super()._bind(name, parameter, data, gradient)
        start = self.offsets[name]
        sharded._sharded_param_data = self.data[start : start + self._memory(name, data)]
        sharded.sharded_param._local_tensor = data
        sharded.sharded_param.grad = sharded.to_sharded_dtensor(gradient)
        return None

    def broadcast(self, processes: Processes) -> None:
        """Copy the rows of the first replica to the others."""
        if self.sharding.replicas > 1:
            dist.broadcast(self.data, group=self.sharding.replica_group, group_src=0)

    def saved(self, name: str, values: Tensor) -> Tensor | Rows:
        return self.sharding.rows(name, values)

    def muon(self, *arguments: Any) -> Muon:
        return ShardedMuon(self, *arguments)

    @property
    def count(self) -> int:
        return sum(self.sharding.shapes[name].numel() for name in self.names)

    def norm(self) -> Float[Tensor, ""]:
        """The norm of all gradients; whole ones count once."""
        is_first = self.sharding.rank == 0
        own = [view for name, view in self.views(self.grads) if is_first or name in self.sharding.parameters]
        square = torch.nn.utils.get_total_norm(own).square()
        dist.all_reduce(square, group=self.sharding.shard_group)
        return square.sqrt()


class ShardedExactGradients(ExactGradients):
    """`ExactGradients` over shards: each micro-batch's gradients are rounded to integers before they are scattered, and
    each process adds its rows. What FSDP adds in floating point is 0.
    """

    def __init__(self, sharding: Sharding, flat: FlatParameters, accumulate: int, processes: Processes) -> None:
        super().__init__(flat, accumulate, processes)
        self.sharding = sharding
        self._is_observing = False
        size = flat.grads.numel()
        self._rows = dict(flat.views(self._integers[:size]))
        whole = [name not in sharding.parameters for name in flat.names]
        self._whole_names = list(compress(flat.names, whole))
        self._whole_gradients = list(compress(self._gradients, whole))
        self._whole_totals = list(compress(self._totals, whole))
        for group in sharding.groups:
            group._reduce_scatter_comm = _RoundedReduceScatter(self, group)

    def scatter(
        self, names: list[str], sizes: list[int], gradients: Tensor, reduce_scatter: Callable[[Tensor, Tensor], Any]
    ) -> None:
        """Add the gradients [shard, sum(sizes)] of a micro-batch, of which each process gets a row by `reduce_scatter`
        (output, input).
        """
        all_names = names * len(gradients)
        pieces = [piece for row in gradients for piece in row.split(sizes)]
        if self._is_observing:
            if self.processes.is_main:
                self.sums.observe(all_names, pieces)
            return
        integers = torch.zeros_like(gradients, dtype=torch.int64)
        self.sums.add(all_names, pieces, [piece for row in integers for piece in row.split(sizes)])
        own = integers.new_empty(gradients.shape[1])
        reduce_scatter(own, integers.view(-1))
        for name, values in zip(names, own.split(sizes)):
            rows = self._rows[name]
            rows.add_(values[: rows.numel()].view(rows.shape))

    def _observe(self, compute: Callable[[], Iterator[int]]) -> None:
        self._is_observing = True
        next(compute())  # all processes take part in gathering weights
        self._is_observing = False
        if self.processes.is_main:
            self.sums.observe(self._whole_names, self._whole_gradients)

    def _add(self) -> None:
        self.sums.add(self._whole_names, self._whole_gradients, self._whole_totals)

    def _reduce(self) -> None:
        self.sharding.sum_whole([*self._whole_totals, self._table.view(torch.int64)])
        if self.sharding.replicas > 1:
            dist.all_reduce(self._integers, group=self.sharding.replica_group)

    def norm(self) -> Float[Tensor, ""]:
        """The norm of the summed gradients; whole ones count once."""

        def reduce(operation: Any, values: Tensor) -> Tensor:
            dist.all_reduce(values, operation, self.sharding.shard_group)
            return values

        owned = self.sharding.parameters.keys() if self.sharding.rank else self._rows.keys()
        gradients = [g if name in owned else g.flatten()[:0] for name, g in zip(self._rows, self._gradients)]
        sizes = {name: self.sharding.shapes[name].numel() for name in self._rows}
        norm = exact_norm(sizes, gradients, partial(reduce, dist.ReduceOp.MAX), partial(reduce, dist.ReduceOp.SUM))
        return torch.tensor(norm, dtype=torch.float64, device=self.flat.data.device)


class _RoundedReduceScatter(DefaultReduceScatter):
    """Hands the gradients of a group of parameters to `ShardedExactGradients`."""

    def __init__(self, sums: ShardedExactGradients, group: Any) -> None:
        self.sums = sums
        parameters = [p for p in group.fsdp_params if p.sharded_param.requires_grad]
        self.names = [p._param_fqn for p in parameters]
        self.sizes = [p._sharded_param_data.numel() for p in parameters]

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> Any:
        reduce_scatter = partial(super().__call__, group=group, op=dist.ReduceOp.SUM)
        self.sums.scatter(self.names, self.sizes, input_tensor.view(group.size(), -1), reduce_scatter)
        output_tensor.zero_()
