"""Adapters: small trained additions to a model whose own weights stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import family, from_dict, register, setting
from headway.errors import ConfigError, nearest
from headway.formats.native import named_tensors
from headway.nn.kernels import linear
from headway.nn.parts.dropout import Dropout
from headway.nn.parts.projection import Projection, slice_names

GROUPS = {"attention": ("q", "k", "v", "o"), "feed_forward": ("gate", "up", "down")}
_LEFT_OUT = ("router",)  # of "all": what chooses among experts is no map of features


@family
@dataclass(frozen=True)
class AdapterConfig:
    """What is trained in place of all weights. Heads that the start does not have are trained in full beside it."""

    @property
    def title(self) -> str:
        """What it is, for a line of the display."""
        raise NotImplementedError

    def attach(self, model: nn.Module, seed: int) -> None:
        """Add what is trained to `model`, drawn from `seed`, where it changes no output yet."""
        raise NotImplementedError

    def save(self, model: nn.Module, start: str, directory: Path, family: str) -> None:
        """Replace the folder `directory` by the adapter of `model` alone, under the names of its published family."""
        raise NotImplementedError


@register("lora")
@dataclass(frozen=True)
class LoRAConfig(AdapterConfig):
    """Low-rank adapters (Hu et al. 2021): h = W x + s B A x with A of `rank` rows, B zero at first, s = alpha / rank.

    `targets` are maps by their plain names (q, k, v, o, gate, up, down), "attention" or "feed_forward" for those of
    either, or "all" inside the stacks; of a fused map each slice has its own A and B. `dropout` is that of the
    adapters' input. `rslora` scales by alpha / sqrt(rank) (Kalajdzievski 2023), so that a high rank learns as fast.
    """

    rank: int = 8  # rows of A, columns of B
    alpha: float = 16.0  # what B A x is multiplied by, over the rank
    targets: tuple[str, ...] = ("all",)
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"adapter.rank is {self.rank}; give 1 or more")
        if self.alpha <= 0:
            raise ConfigError(f"adapter.alpha is {self.alpha}; give a number above 0, often twice the rank")
        if not self.targets:
            raise ConfigError("adapter.targets is empty; name maps such as q, v, or all")

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def title(self) -> str:
        return f"LoRA of rank {self.rank} on {', '.join(self.targets)}"

    def attach(self, model: nn.Module, seed: int) -> None:
        places = list(maps(model))
        known = {name for place in places for name in place.names}
        wanted = self._wanted(known)
        generator = torch.Generator().manual_seed(seed)
        for place in places:
            chosen = tuple(i for i, name in enumerate(place.names) if name in wanted)
            if chosen:
                place.projection.add_module("lora", LoRA(self, place.projection, chosen, generator))
                place.projection.register_forward_hook(_add)

    def save(self, model: nn.Module, start: str, directory: Path, family: str) -> None:
        from headway.formats.peft import (  # with all families that are published
            AdapterSettings,
            Factors,
            save_adapter,
        )

        found = adapters(model)
        factors = {f"{path}.weight": Factors(each.a, each.b, each.chosen, each.slices) for path, each in found.items()}
        own = _own_names(found)
        fresh = {name: each for name, each in model.named_parameters() if each.requires_grad and name not in own}
        settings = AdapterSettings(self.rank, self.alpha, self.dropout, self.rslora, start)
        save_adapter(directory, model, factors, fresh, settings, family)

    def _wanted(self, known: Collection[str]) -> set[str]:
        wanted: set[str] = set()
        for target in self.targets:
            found = set(known) - set(_LEFT_OUT) if target == "all" else {target, *GROUPS.get(target, ())} & set(known)
            if not found:
                choice = nearest(target, [*known, *GROUPS, "all"])
                raise ConfigError(f"adapter.targets: the model has no map {target!r}; {choice}")
            wanted |= found
        return wanted


class Map(NamedTuple):
    """A projection inside a stack, by its name in the model, and the plain names of its slices."""

    path: str
    projection: Projection
    names: tuple[str, ...]


def maps(model: nn.Module) -> Iterator[Map]:
    """The maps that can have an adapter."""
    for path, module in model.named_modules():
        parts = path.split(".")
        if isinstance(module, Projection) and "stack" in parts:
            yield Map(path, module, slice_names(parts[-1], module))


@setting(LoRAConfig, "targets")
def _targets(adapter: LoRAConfig, value: Any) -> LoRAConfig:
    """A list, or names with commas between them."""
    names = value.split(",") if isinstance(value, str) else value
    return replace(adapter, targets=from_dict(tuple[str, ...], names, "adapter.targets"))  # type: ignore[arg-type]


class LoRA(nn.Module):
    """The adapter of a projection: A [n r, D] and B [E, r] of its n `chosen` slices, which have E rows together."""

    def __init__(
        self, config: LoRAConfig, projection: Projection, chosen: tuple[int, ...], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.slices = projection.slices
        self.chosen = chosen
        weight, rows = projection.weight, tuple(projection.slices[i] for i in chosen)
        self.a = nn.Parameter(weight.new_empty(len(chosen) * config.rank, weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(sum(rows), config.rank))
        bound = weight.shape[1] ** -0.5
        with torch.no_grad():
            self.a.copy_(torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator))
        # Optimisers that work matrix by matrix take the slices apart.
        self.a.slices, self.b.slices = (config.rank,) * len(chosen), rows  # type: ignore[attr-defined]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "... D"], y: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        """`y`, the projection's own output, with what the adapter adds to its slices."""
        inner = linear(self.dropout(x), self.a).split(self.config.rank, dim=-1)
        added = {i: linear(z, b) for i, z, b in zip(self.chosen, inner, self.parts())}
        parts = [added[i] if i in added else y.new_zeros(*y.shape[:-1], n) for i, n in enumerate(self.slices)]
        return y.add(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), alpha=self.config.scale)

    def parts(self) -> list[Float[Tensor, "E r"]]:
        """B of each chosen slice."""
        return list(self.b.split([self.slices[i] for i in self.chosen]))

    def product(self) -> Float[Tensor, "F D"]:
        """s B A of all slices: what merging adds to the weight."""
        whole = self.a.new_zeros(sum(self.slices), self.a.shape[1])
        rows = whole.split(list(self.slices))
        for i, a, b in zip(self.chosen, self.a.split(self.config.rank), self.parts()):
            torch.mm(b, a, out=rows[i])
        return whole.mul_(self.config.scale)


def _add(projection: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return projection.lora(inputs[0], output)  # type: ignore[operator]


def adapted(model: nn.Module, config: AdapterConfig | None, fresh: Collection[str], seed: int) -> nn.Module:
    """`model` with the adapters of `config`, all else frozen but the parameters named in `fresh`; as it is without."""
    if config is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in fresh)
        config.attach(model, seed)
    return model


def adapters(model: nn.Module) -> dict[str, LoRA]:
    """The adapters of a model by the name of their projection."""
    return {path: place.lora for path, place, _ in maps(model) if isinstance(getattr(place, "lora", None), LoRA)}  # type: ignore[misc]


@torch.no_grad()
def merged(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model without adapters that computes the same; of one without adapters, its own."""
    found = adapters(model)
    own = _own_names(found)
    tensors = {name: tensor for name, tensor in named_tensors(model) if name not in own}
    for path, lora in found.items():
        tensors[f"{path}.weight"] = tensors[f"{path}.weight"] + lora.product()
    return tensors


def _own_names(found: Iterable[str]) -> set[str]:
    """The names of the adapters' own tensors."""
    return {f"{path}.lora.{part}" for path in found for part in ("a", "b")}
