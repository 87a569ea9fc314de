"""Optimisers: one class over flat parameters, and the update rules it applies to groups of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from headway.config import elsewhere, family, register
from headway.errors import ConfigError, UserError
from headway.train.flat import FlatParameters


class Rule(Protocol):
    """An update of one segment of flat parameters. `buffers` are its state: flat tensors as long as the segment."""

    buffers: dict[str, Tensor]

    def step(self, factor: float, count: int) -> None:
        """Update number `count` (from 1), with the learning rate times `factor`."""
        ...


class Group(NamedTuple):
    """Parameters under one rule; `make(flat, segment)` builds it."""

    names: list[str]
    make: Callable[[FlatParameters, slice], Rule]


@family
@dataclass(frozen=True)
class OptimConfig:
    """`lr` is the peak learning rate; the schedule multiplies it."""

    lr: float = 1e-3  # peak learning rate; the schedule multiplies it

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optim.lr is {self.lr}; give a number above 0")

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        """Which rule each trainable parameter is under. `precision` is that of matrix products: fp32 or bf16."""
        raise NotImplementedError


class Optimizer:
    """Updates a model in place; `flat` holds its weights and gradients."""

    def __init__(self, config: OptimConfig, model: nn.Module, precision: str = "fp32") -> None:
        groups = [group for group in config.groups(model, precision) if group.names]
        if not groups:
            raise UserError("the model has no trainable weights; unfreeze some, or only evaluate it")
        self.flat = FlatParameters(model, [group.names for group in groups])
        self.rules = [group.make(self.flat, part) for group, part in zip(groups, self.flat.segments)]
        self.count = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update from the gradients in `flat`, with learning rates times `factor`."""
        self.count += 1
        for rule in self.rules:
            rule.step(factor, self.count)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors by buffer and parameter name, such as `mean.embed.table`, and `count`."""
        state = {"count": torch.tensor(self.count)}
        for name, buffer, place in self._places():
            state[f"{buffer}.{name}"] = place
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved state; raises UserError naming a tensor that is missing or of another shape."""
        for name, buffer, place in self._places():
            saved = state.get(f"{buffer}.{name}")
            if saved is None or saved.shape != place.shape:
                found = "missing" if saved is None else f"of shape {tuple(saved.shape)}"
                wanted = f"of shape {tuple(place.shape)}"
                raise UserError(f"the optimiser's {buffer}.{name} is {found}, not {wanted}; start another run")
            place.copy_(saved)
        self.count = int(state["count"])

    def _places(self) -> Iterator[tuple[str, str, Tensor]]:
        """(parameter, buffer, the buffer's part in the parameter's shape)."""
        for rule, segment in zip(self.rules, self.flat.segments):
            for name in self.flat.names:
                start, shape = self.flat.offsets[name] - segment.start, self.flat.shapes[name]
                if segment.start <= self.flat.offsets[name] < segment.stop:
                    for buffer, values in rule.buffers.items():
                        yield name, buffer, values[start : start + shape.numel()].view(shape)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adam_groups(names: list[str], model: nn.Module, config: AdamSettings) -> list[Group]:
    """Two groups: parameters of two and more dimensions, which decay, and the others, which do not."""
    parameters = trainable(model)
    matrices = [name for name in names if parameters[name].dim() >= 2]
    others = [name for name in names if parameters[name].dim() < 2]
    plain = config._replace(weight_decay=0.0)
    return [
        Group(matrices, lambda flat, part: AdamW(flat, part, config)),
        Group(others, lambda flat, part: AdamW(flat, part, plain)),
    ]


class AdamSettings(NamedTuple):
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


elsewhere(OptimConfig, lambda: {"muon": "headway.train.muon"})


@register("adamw")
@dataclass(frozen=True)
class AdamWConfig(OptimConfig):
    """Loshchilov and Hutter 2019; weight decay on parameters of two and more dimensions only."""

    betas: tuple[float, float] = (0.9, 0.95)  # decays of the means of gradients and of their squares
    eps: float = 1e-8  # added to the root of the mean square
    weight_decay: float = 0.1  # times the learning rate, of matrices and tables only

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        settings = AdamSettings(self.lr, self.betas, self.eps, self.weight_decay)
        return adam_groups(list(trainable(model)), model, settings)


class AdamW:
    """torch's fused AdamW on one flat tensor."""

    def __init__(self, flat: FlatParameters, segment: slice, settings: AdamSettings) -> None:
        self.settings = settings
        self.data, self.grads = flat.data[segment], flat.grads[segment]
        self.buffers = {"mean": torch.zeros_like(self.data), "square": torch.zeros_like(self.data)}
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

    They descend the sum over a sentence's tokens, and losses here are means over tokens: with sentences of L tokens the
    same step takes L times their rate, and train.clip 5 / L.
    """

    lr: float = 0.7
    momentum: float = 0.0  # decay of the velocity; 0: plain gradient descent

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        return [Group(list(trainable(model)), lambda flat, part: SGD(flat, part, self))]


class SGD:
    def __init__(self, flat: FlatParameters, segment: slice, config: SGDConfig) -> None:
        self.config = config
        self.data, self.grads = flat.data[segment], flat.grads[segment]
        self.buffers = {"velocity": torch.zeros_like(self.data)} if config.momentum else {}

    def step(self, factor: float, count: int) -> None:
        direction = self.grads
        if self.config.momentum:
            direction = self.buffers["velocity"].mul_(self.config.momentum).add_(self.grads)
        self.data.add_(direction, alpha=-self.config.lr * factor)
