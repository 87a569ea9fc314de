"""Adapters: small trainable additions to a model whose own weights are frozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import from_dict, setting
from headway.config_kinds import family, register
from headway.errors import ConfigError, nearest
from headway.formats.deferred import DeferredTensor, computed
from headway.formats.native import Weights, named_tensors
from headway.nn.kernels import linear
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.projection import Projection, slice_names

GROUPS = {"attention": ("q", "k", "v", "o"), "feed_forward": ("gate", "up", "down")}
_EXCLUDED = ("router",)  # not part of "all": routers choose experts, they do not transform features


@family
@dataclass(frozen=True)
class AdapterConfig:
    """An adapter that is trained instead of all weights. New heads are also trained in full."""

    @property
    def title(self) -> str:
        """A description for the training log."""
        raise NotImplementedError

    def attach(self, model: nn.Module, seed: int) -> None:
        """Add the adapter to `model`, initialised from `seed`, without changing any output."""
        raise NotImplementedError

    def save(self, model: nn.Module, start: str, directory: Path, family: str) -> None:
        """Replace the folder `directory` with the adapter of `model`, using the tensor names of its published
        family.
        """
        raise NotImplementedError


@register("lora")
@dataclass(frozen=True)
class LoRAConfig(AdapterConfig):
    """Low-rank adapters (Hu et al. 2021): h = W x + s B A x, where A has `rank` rows, B starts at zero, and s = alpha /
    rank.

    `targets` are names of projections inside the stacks (q, k, v, o, gate, up, down), "attention", "feed_forward", or
    "all"; each slice of a fused projection has its own A and B. `dropout` applies to the adapters' input. `rslora`
    scales by alpha / sqrt(rank) (Kalajdzievski 2023), so that high ranks learn as fast as low ones.

    `base` stores the frozen projections of the stacks in 8 or 4 bits (QLoRA, Dettmers et al. 2023), on a CPU only; the
    adapter stays in fp32. Groups of 64 weights share a scale, as in the CPU engine. Embeddings and heads stay in fp32.
    """

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # B A x is multiplied by alpha / rank
    targets: tuple[str, ...] = ("all",)
    dropout: float = 0.0
    rslora: bool = False
    base: Weights = "fp32"  # number format of the frozen projections

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"adapter.rank is {self.rank}; use 1 or more")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"adapter.alpha is {self.alpha}; use a number above 0, often twice the rank")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout is {self.dropout}; use a probability of at least 0 and below 1")
        if not self.targets:
            raise ConfigError("adapter.targets is empty; name projections such as q, v, or all")

    @property
    def scale(self) -> float:
        """The scale s."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def title(self) -> str:
        base = "" if self.base == "fp32" else f", frozen weights in {self.base}"
        return f"rank-{self.rank} LoRA on {', '.join(self.targets)}{base}"

    def attach(self, model: nn.Module, seed: int) -> None:
        projections = list(target_projections(model))
        known = {name for target in projections for name in target.names}
        selected: set[str] = set()
        for wanted in self.targets:
            matching = known - set(_EXCLUDED) if wanted == "all" else {wanted, *GROUPS.get(wanted, ())} & known
            if not matching:
                suggestion = nearest(wanted, [*known, *GROUPS, "all"])
                raise ConfigError(f"adapter.targets: the model has no projection {wanted!r}; {suggestion}")
            selected |= matching
        generator = torch.Generator().manual_seed(seed)
        for target in projections:
            chosen = tuple(i for i, name in enumerate(target.names) if name in selected)
            if chosen:
                target.projection.add_module("lora", LoRA(self, target.projection, chosen, generator))
                target.projection.register_forward_hook(_add)

    def save(self, model: nn.Module, start: str, directory: Path, family: str) -> None:
        from headway.formats.peft import (  # imports all published families
            AdapterSettings,
            Factors,
            save_adapter,
        )

        loras = adapters(model)
        factors = {f"{path}.weight": Factors(lora.a, lora.b, lora.chosen, lora.slices) for path, lora in loras.items()}
        adapter_names = _adapter_tensor_names(loras)
        fresh = {
            name: lora for name, lora in model.named_parameters() if lora.requires_grad and name not in adapter_names
        }
        settings = AdapterSettings(self.rank, self.alpha, self.dropout, self.rslora, start)
        save_adapter(directory, model, factors, fresh, settings, family)


class TargetProjection(NamedTuple):
    """A projection inside a stack, its name in the model, and the names of its slices."""

    path: str
    projection: Projection
    names: tuple[str, ...]


def target_projections(model: nn.Module) -> Iterator[TargetProjection]:
    """Projections that can have an adapter."""
    for path, module in model.named_modules():
        parts = path.split(".")
        if isinstance(module, Projection) and "stack" in parts:
            yield TargetProjection(path, module, slice_names(parts[-1], module))


@setting(LoRAConfig, "targets")
def _targets(adapter: LoRAConfig, value: Any) -> LoRAConfig:
    """Accept a list, or comma-separated names."""
    names = value.split(",") if isinstance(value, str) else value
    return replace(adapter, targets=from_dict(tuple[str, ...], names, "adapter.targets"))  # type: ignore[arg-type]


class LoRA(nn.Module):
    """The adapter of one projection: A [n r, D] and B [E, r] for its n `chosen` slices, which have E rows in total."""

    def __init__(
        self, config: LoRAConfig, projection: Projection, chosen: tuple[int, ...], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.slices = projection.slices
        self.chosen = chosen
        weight, rows = projection.weight, tuple(projection.slices[i] for i in chosen)
        like: Any = {"dtype": weight.dtype, "device": weight.device}  # its method new_empty would unpack a packed one
        self.a = nn.Parameter(torch.empty(len(chosen) * config.rank, weight.shape[1], **like))
        self.b = nn.Parameter(torch.zeros(sum(rows), config.rank, **like))
        bound = weight.shape[1] ** -0.5
        with torch.no_grad():
            self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator))
        # Optimisers that work per matrix split the slices.
        self.a.slices, self.b.slices = (config.rank,) * len(chosen), rows  # type: ignore[attr-defined]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "... D"], y: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """`y`, the projection's own output, plus the adapter's contribution to its slices."""
        inner = linear(self.dropout(x), self.a).split(self.config.rank, dim=-1)
        added = {i: linear(z, b) for i, z, b in zip(self.chosen, inner, self.parts())}
        parts = [added[i] if i in added else y.new_zeros(*y.shape[:-1], n) for i, n in enumerate(self.slices)]
        return y.add(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), alpha=self.config.scale)

    def parts(self) -> list[Float[Tensor, "E r"]]:
        """B for each chosen slice."""
        return list(self.b.split([self.slices[i] for i in self.chosen]))

    def product(self) -> Float[Tensor, "F D"]:
        """s B A for all slices: the weight update when merging."""
        update = self.a.new_zeros(sum(self.slices), self.a.shape[1])
        rows = update.split(list(self.slices))
        for i, a, b in zip(self.chosen, self.a.split(self.config.rank), self.parts()):
            torch.mm(b, a, out=rows[i])
        return update.mul_(self.config.scale)


def _add(projection: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return projection.lora(inputs[0], output)  # type: ignore[operator]


def with_adapter(model: nn.Module, config: AdapterConfig | None, fresh: Collection[str], seed: int) -> nn.Module:
    """Add the adapters in `config` to `model` and freeze everything except them and the parameters in `fresh`. If
    `config` is None, the model is unchanged.
    """
    if config is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in fresh)
        config.attach(model, seed)
    return model


def frozen_format(config: AdapterConfig | None) -> Weights:
    """The number format of the projections that an adapter freezes."""
    return config.base if isinstance(config, LoRAConfig) else "fp32"


def frozen_formats(model: nn.Module, config: AdapterConfig | None, fresh: Collection[str] = ()) -> dict[str, Weights]:
    """The number formats of the matrices of `model`, which may be an outline, that an adapter keeps quantised, by name:
    the projections of its stacks, but not routers, matrices from a state to the next, and the trained `fresh` ones.
    """
    dtype = frozen_format(config)
    if dtype == "fp32":
        return {}
    return {
        f"{path}.weight": dtype
        for path, projection, names in target_projections(model)
        if not projection.recurrent and not set(names) & set(_EXCLUDED) and f"{path}.weight" not in fresh
    }


def adapters(model: nn.Module) -> dict[str, LoRA]:
    """A model's adapters, by projection name."""
    return {path.removesuffix(".lora"): part for path, part in model.named_modules() if isinstance(part, LoRA)}


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of an equivalent model with the adapters merged into the weights. Quantised weights are unpacked, and
    changed, when they are read.
    """
    loras = adapters(model)
    adapter_names = _adapter_tensor_names(loras)
    tensors = {name: tensor for name, tensor in named_tensors(model) if name not in adapter_names}
    for path, lora in loras.items():
        weight = tensors[f"{path}.weight"]
        merge = partial(_merge, weight, lora)
        is_deferred = isinstance(weight, DeferredTensor)
        tensors[f"{path}.weight"] = DeferredTensor(weight.shape, weight.dtype, merge) if is_deferred else merge()
    return tensors


@torch.no_grad()
def _merge(weight: Tensor, lora: LoRA) -> Tensor:
    return computed(weight.detach()) + lora.product()


def _adapter_tensor_names(paths: Iterable[str]) -> set[str]:
    """The names of the adapter tensors."""
    return {f"{path}.lora.{part}" for path in paths for part in ("a", "b")}
