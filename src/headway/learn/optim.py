"""Optimisers: one class for flat parameters, and the update rules for groups of them, including Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

from headway.config_kinds import family, register
from headway.errors import ConfigError, UserError

if TYPE_CHECKING:
    from headway.learn.parallel.processes import Processes
    from headway.learn.parallel.rows import Rows

_ALIGNMENT = 64  # bytes: a vector register and a cache line
_TAIL_LENGTH = 32
_CHUNK = 1 << 16  # elements per temporary tensor, which fits in a processor's cache
_MAX_SETTING = 1000.0  # maximum value of optimiser settings; larger ones overflow in the first step


class FlatParameters:
    """Moves a model's parameters into one tensor `data` and their gradients into `grads`; the parameters become views.

    Operations on all weights (clipping, optimisers, moving averages, all-reduce) then take one operation on one tensor,
    however many parameters there are. `groups` are lists of names; each group is contiguous (`segments[i]`), in the
    given order. `tail` is space after the gradients for statistics that are all-reduced together with them.

    With `exact`, update rules give an element the same bits whichever elements are next to it.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]], exact: bool = False) -> None:
        self.exact = exact
        parameters = dict(model.named_parameters())
        self.names = [name for group in groups for name in group]
        tensors = {name: self._tensor(name, parameters[name]) for name in self.names}
        first = tensors[self.names[0]]
        step = _ALIGNMENT // first.element_size()
        self.offsets: dict[str, int] = {}
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.segments: list[slice] = []
        end = 0
        for group in groups:
            start = end
            for name in group:
                self.offsets[name] = end
                end += -(-self._memory(name, tensors[name]) // step) * step
            self.segments.append(slice(start, end))
        self.data = first.new_zeros(end)
        self.grads_and_tail = first.new_zeros(end + _TAIL_LENGTH)
        self.grads, self.tail = self.grads_and_tail[:end], self.grads_and_tail[end:]
        gradients = dict(self.views(self.grads))
        with torch.no_grad():
            for name, view in self.views(self.data):
                view.copy_(tensors[name])
                self._bind(name, parameters[name], view, gradients[name])

    def _tensor(self, name: str, parameter: nn.Parameter) -> Tensor:
        """What this process has of a parameter."""
        return parameter

    def _memory(self, name: str, tensor: Tensor) -> int:
        """The number of elements to reserve for it."""
        return tensor.numel()

    def _bind(self, name: str, parameter: nn.Parameter, data: Tensor, gradient: Tensor) -> None:
        parameter.data, parameter.grad = data, gradient

    def muon(
        self,
        segment: slice,
        names: list[str],
        slices: dict[str, tuple[int, ...]],
        config: MuonConfig,
        precision: str,
    ) -> UpdateRule:
        """Muon for the matrices of one segment."""
        return Muon(self, segment, names, slices, config, precision)

    @property
    def count(self) -> int:
        """The number of trainable parameters."""
        return sum(shape.numel() for shape in self.shapes.values())

    def broadcast(self, processes: Processes) -> None:
        """Copy the weights of the main process to the others."""
        processes.broadcast(self.data)

    def norm(self) -> Float[Tensor, ""]:
        """The norm of all gradients."""
        return torch.linalg.vector_norm(self.grads)

    def views(self, flat: Float[Tensor, "N"]) -> Iterator[tuple[str, Tensor]]:
        """Views of a tensor laid out like `data`, one per parameter, by name."""
        for name in self.names:
            shape, start = self.shapes[name], self.offsets[name]
            yield name, flat[start : start + shape.numel()].view(shape)

    def saved(self, name: str, values: Tensor) -> Tensor | Rows:
        """What a view of parameter `name` is of the tensor that a checkpoint contains."""
        return values

    def zero_grads(self) -> None:
        """Zero the gradients and the tail."""
        self.grads_and_tail.zero_()


class UpdateRule(Protocol):
    """The update rule for one segment of flat parameters. Its state is in `buffers`, flat tensors of the same
    length.
    """

    buffers: dict[str, Tensor]

    def step(self, factor: float, count: int) -> None:
        """Apply update number `count` (from 1), with the learning rate multiplied by `factor`."""
        ...


class Group(NamedTuple):
    """Parameters that share an update rule, which `make(flat, segment)` creates."""

    names: list[str]
    make: Callable[[FlatParameters, slice], UpdateRule]


@family
@dataclass(frozen=True)
class OptimConfig:
    """`lr` is the peak learning rate; the schedule multiplies it."""

    lr: float = 1e-3  # peak learning rate; the schedule multiplies it

    def __post_init__(self) -> None:
        if not 0 < self.lr <= _MAX_SETTING:
            raise ConfigError(f"optim.lr is {self.lr}; use a number above 0, at most {_MAX_SETTING:g}")
        for field in fields(self):
            value = getattr(self, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, (int, float)) and not 0 <= number <= _MAX_SETTING for number in parts):
                raise ConfigError(f"optim.{field.name} is {value}; use a number from 0 to {_MAX_SETTING:g}")
            decays = field.name.endswith(("betas", "momentum"))
            if decays and any(number >= 1 for number in parts):
                raise ConfigError(f"optim.{field.name} is {value}; use decays from 0 to below 1")

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        """The trainable parameters by update rule. `precision` is that of matrix products: fp32 or bf16."""
        raise NotImplementedError


class Optimizer:
    """Updates a model in place; `flat` contains its weights and gradients."""

    def __init__(
        self,
        config: OptimConfig,
        model: nn.Module,
        precision: str = "fp32",
        exact: bool = False,
        flat: Callable[[nn.Module, Sequence[Sequence[str]], bool], FlatParameters] = FlatParameters,
    ) -> None:
        """`flat` moves the parameters of each update rule, by name, into one tensor."""
        groups = [group for group in config.groups(model, precision) if group.names]
        if not groups:
            raise UserError("the model has no trainable parameters; unfreeze some, or only evaluate it")
        self.flat = flat(model, [group.names for group in groups], exact)
        self.rules = [group.make(self.flat, part) for group, part in zip(groups, self.flat.segments)]
        self.count = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update once from the gradients in `flat`, with learning rates multiplied by `factor`."""
        self.count += 1
        for rule in self.rules:
            rule.step(factor, self.count)

    def state_dict(self) -> dict[str, Tensor | Rows]:
        """The state as tensors by buffer and parameter name, such as `mean.embed.table`, and `count`."""
        state: dict[str, Tensor | Rows] = {"count": torch.tensor(self.count)}
        for name, buffer, view in self._state_views():
            state[f"{buffer}.{name}"] = self.flat.saved(name, view)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a saved state; raise UserError for a tensor that is missing or has another shape."""
        from headway.learn.parallel.rows import load  # loading a model for inference does not need it

        for name, buffer, view in self._state_views():
            key, target = f"{buffer}.{name}", self.flat.saved(name, view)
            saved = state.get(key)
            if saved is None or saved.shape != target.shape:
                problem = "is missing" if saved is None else f"has shape {tuple(saved.shape)}"
                expected = f"shape {tuple(target.shape)}"
                raise UserError(f"the optimiser's {key} {problem}, expected {expected}; start a new run")
            load(target, key, state)
        self.count = int(state["count"])

    def _state_views(self) -> Iterator[tuple[str, str, Tensor]]:
        """(parameter name, buffer name, the buffer's view in the parameter's shape)."""
        for rule, segment in zip(self.rules, self.flat.segments):
            for name in self.flat.names:
                start, shape = self.flat.offsets[name] - segment.start, self.flat.shapes[name]
                if segment.start <= self.flat.offsets[name] < segment.stop:
                    for buffer, values in rule.buffers.items():
                        yield name, buffer, values[start : start + shape.numel()].view(shape)


def lerp(start: Float[Tensor, "N"], end: Float[Tensor, "N"], weight: float) -> None:
    """Add `weight` times the difference to `start`, in operations that round each element by itself: torch's own lerp
    may round the last elements of a tensor differently.
    """
    for values, ends in zip(start.split(_CHUNK), end.split(_CHUNK)):
        values.add_((ends - values).mul_(weight))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name; tied ones appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adam_groups(names: list[str], model: nn.Module, config: AdamSettings) -> list[Group]:
    """Two groups: parameters with two or more dimensions, which get weight decay, and the others, which do not."""
    parameters = trainable(model)
    matrices = [name for name in names if parameters[name].dim() >= 2]
    vectors = [name for name in names if parameters[name].dim() < 2]
    without_decay = config._replace(weight_decay=0.0)
    return [
        Group(matrices, lambda flat, part: AdamW(flat, part, config)),
        Group(vectors, lambda flat, part: AdamW(flat, part, without_decay)),
    ]


class AdamSettings(NamedTuple):
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


@register("adamw")
@dataclass(frozen=True)
class AdamWConfig(OptimConfig):
    """AdamW (Loshchilov and Hutter 2019), with weight decay only on parameters with two or more dimensions."""

    betas: tuple[float, float] = (0.9, 0.95)  # decay rates for the moving averages of the gradients and their squares
    eps: float = 1e-8  # added to the root of the mean square
    weight_decay: float = 0.1  # multiplied by the learning rate; only for matrices and embeddings

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        settings = AdamSettings(self.lr, self.betas, self.eps, self.weight_decay)
        return adam_groups(list(trainable(model)), model, settings)


class AdamW:
    """PyTorch's fused AdamW on one flat tensor. Only elements after the last multiple of a vector register's size are
    rounded differently, which are padding (`_ALIGNMENT`).
    """

    def __init__(self, flat: FlatParameters, segment: slice, settings: AdamSettings) -> None:
        self.settings = settings
        self.data, self.grads = flat.data[segment], flat.grads[segment]
        self.buffers = {"mean": self.data.new_zeros(self.data.shape), "square": self.data.new_zeros(self.data.shape)}
        self._count = torch.zeros((), device=self.data.device)

    def step(self, factor: float, count: int) -> None:
        lr, (beta1, beta2), eps, decay = self.settings
        self._count.fill_(count - 1)  # adamw adds 1
        adamw(
            [self.data],
            [self.grads],
            [self.buffers["mean"]],
            [self.buffers["square"]],
            [],
            [self._count],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr * factor,
            weight_decay=decay,
            eps=eps,
            maximize=False,
        )


@register("sgd")
@dataclass(frozen=True)
class SGDConfig(OptimConfig):
    """Plain gradient descent; the defaults are those of Sutskever et al. 2014.

    Their loss is the sum over a sentence's tokens, while losses here are means over tokens. With sentences of L tokens,
    the same step needs L times their learning rate, and train.clip=5/L.
    """

    lr: float = 0.7
    momentum: float = 0.0  # decay of the velocity; 0: no momentum

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        return [Group(list(trainable(model)), lambda flat, part: SGD(flat, part, self))]


class SGD:
    def __init__(self, flat: FlatParameters, segment: slice, config: SGDConfig) -> None:
        self.config = config
        self.data, self.grads, self.exact = flat.data[segment], flat.grads[segment], flat.exact
        self.buffers = {"velocity": self.data.new_zeros(self.data.shape)} if config.momentum else {}

    def step(self, factor: float, count: int) -> None:
        direction, lr = self.grads, self.config.lr * factor
        if self.config.momentum:
            direction = self.buffers["velocity"].mul_(self.config.momentum).add_(self.grads)
        if self.exact:
            self.data.sub_(direction * lr)
        else:
            self.data.add_(direction, alpha=-lr)


_QUINTIC = (3.4445, -4.7750, 2.0315)


@register("muon")
@dataclass(frozen=True)
class MuonConfig(OptimConfig):
    """Muon with `lr` for the matrices inside stacks; AdamW with `adam_lr` for embeddings, heads, norms and biases, or
    with `head_lr` for heads if it is set.
    """

    lr: float = 0.02  # peak learning rate for the matrices inside stacks
    momentum: float = 0.95  # Muon momentum
    weight_decay: float = 0.0  # weight decay for matrices updated by Muon
    adam_lr: float = 3e-3  # peak learning rate for the other parameters, which AdamW updates
    head_lr: float | None = None  # peak learning rate for heads; none: adam_lr
    adam_betas: tuple[float, float] = (0.9, 0.95)  # same as betas in adamw
    adam_eps: float = 1e-8  # same as eps in adamw
    adam_weight_decay: float = 0.0  # same as weight_decay in adamw

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        parameters = trainable(model)
        matrices = {name: tuple(p.slices) for name, p in parameters.items() if is_matrix(name, p)}  # type: ignore[attr-defined]
        names = sorted(matrices, key=lambda name: (parameters[name].shape, matrices[name]))
        adam_names = [name for name in parameters if name not in matrices]
        settings = AdamSettings(self.adam_lr, self.adam_betas, self.adam_eps, self.adam_weight_decay)
        muon = Group(names, lambda flat, part: flat.muon(part, names, matrices, self, precision))
        if self.head_lr is None:
            return [muon, *adam_groups(adam_names, model, settings)]
        heads = [name for name in adam_names if "heads" in name.split(".")]
        non_head_names = [name for name in adam_names if name not in heads]
        head_settings = settings._replace(lr=self.head_lr)
        return [muon, *adam_groups(non_head_names, model, settings), *adam_groups(heads, model, head_settings)]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a linear map inside a stack, which Muon updates."""
    return "stack" in name.split(".") and parameter.dim() >= 2 and hasattr(parameter, "slices")


def orthogonalise(x: Float[Tensor, "N R C"], steps: int = 5) -> Float[Tensor, "N R C"]:
    """Approximate U V^T for each matrix U S V^T by a Newton-Schulz iteration with a quintic polynomial.

    Five steps bring all singular values between about 0.7 and 1.2. R must not exceed C, so that the Gram matrix is the
    smaller one.
    """
    a, b, c = _QUINTIC
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    x = x / (norm + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class _SliceViews(NamedTuple):
    """The same slice from n equal parameters, as views of the flat tensors, and its part of the Newton-Schulz batch."""

    data: Float[Tensor, "n e r c"]
    direction: Float[Tensor, "n e r c"]
    batch_part: Float[Tensor, "n e r c"]
    scale: float


class Muon:
    """Nesterov momentum, orthogonalised, times sqrt(max(1, rows / columns)).

    Fused projections are split into their slices. Slices with the same shape, from all layers, form one Newton-Schulz
    batch (tall ones are transposed). So there are fifteen products per shape, not per matrix. In exact updates a batch
    has slices of one parameter, so that it does not depend on which parameters a process updates.
    """

    def __init__(
        self,
        flat: FlatParameters,
        segment: slice,
        names: list[str],
        slices: dict[str, tuple[int, ...]],
        config: MuonConfig,
        precision: str,
    ) -> None:
        self.config, self.names = config, names
        self.data, self.grads, self.exact = flat.data[segment], flat.grads[segment], flat.exact
        self.buffers = {"velocity": self.data.new_zeros(self.data.shape)}
        self._prepare(flat, names, slices, torch.bfloat16 if precision == "bf16" else self.data.dtype)

    def _prepare(self, flat: Any, names: list[str], slices: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._batches: list[Tensor] = []
        self._views: list[list[_SliceViews]] = []
        groups = [[name] for name in names] if flat.exact else [names]
        views = (sorted(_views(flat, group, slices), key=lambda v: _wide_shape(v[0])) for group in groups)
        batches = chain.from_iterable(groupby(views, key=lambda v: _wide_shape(v[0])) for views in views)
        for shape, group in batches:
            members = list(group)
            count = sum(data.shape[0] * data.shape[1] for data, _ in members)
            batch = torch.empty(count, *shape, dtype=dtype, device=self.data.device)
            slice_views, start = [], 0
            for data, direction in members:
                rows, columns = data.shape[-2:]
                part = data.shape[0] * data.shape[1]
                if rows > columns:
                    data, direction = data.mT, direction.mT
                batch_part, scale = batch[start : start + part].view(data.shape), math.sqrt(max(1.0, rows / columns))
                slice_views.append(_SliceViews(data, direction, batch_part, scale))
                start += part
            self._batches.append(batch)
            self._views.append(slice_views)

    def step(self, factor: float, count: int) -> None:
        lr = self.config.lr * factor
        velocity, interpolate = self.buffers["velocity"], lerp if self.exact else Tensor.lerp_
        interpolate(velocity, self.grads, 1 - self.config.momentum)
        interpolate(self.grads, velocity, self.config.momentum)
        if self.config.weight_decay:
            self.data.mul_(1 - lr * self.config.weight_decay)
        self._apply(lr)

    def _apply(self, lr: float) -> None:
        """Orthogonalise the directions and add them to the weights."""
        for batch, views in zip(self._batches, self._views):
            for view in views:
                view.batch_part.copy_(view.direction)
            batch.copy_(orthogonalise(batch))
            for view in views:
                if self.exact:
                    view.data.sub_(view.batch_part * (lr * view.scale))
                else:
                    view.data.add_(view.batch_part, alpha=-lr * view.scale)


def _wide_shape(view: Tensor) -> tuple[int, int]:
    rows, columns = view.shape[-2:]
    return min(rows, columns), max(rows, columns)


def _views(
    flat: FlatParameters, names: list[str], slices: dict[str, tuple[int, ...]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(data, gradients) of each slice of each group of equal parameters, [n, e, r, c]; e counts experts."""
    for (shape, rows), group in groupby(names, key=lambda name: (flat.shapes[name], slices[name])):
        members = list(group)
        stride = flat.offsets[members[1]] - flat.offsets[members[0]] if len(members) > 1 else shape.numel()
        experts, height, width = shape[:-2].numel(), shape[-2], shape[-1]
        size, strides = (len(members), experts, height, width), (stride, height * width, width, 1)
        start = 0
        for count in rows:
            yield tuple(  # type: ignore[misc]
                tensor.as_strided(size, strides, flat.offsets[members[0]])[:, :, start : start + count]
                for tensor in (flat.data, flat.grads)
            )
            start += count
