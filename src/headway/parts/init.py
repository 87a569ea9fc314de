"""Initial weights, drawn from one seeded generator in the order of the module tree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from headway.errors import ConfigError
from headway.parts.projection import Projection


@dataclass(frozen=True)
class InitConfig:
    """How matrices and embeddings start.

    matrices: "normal" draws N(0, std^2); "xavier" draws uniformly within sqrt(6 / (in + out)) of each fused slice
    (Glorot and Bengio 2010); "fan_in" draws uniformly with variance 1 / in. `residual` treats maps that write to the
    residual stream: "same" as any other, "scaled" by 1 / sqrt(2 L) (GPT-2), or "zero". `embedding` is the standard
    deviation of embeddings, None for 1 / sqrt(width). `head` is how an untied head starts. `uniform` draws all of
    these, biases included, uniformly within it (Sutskever et al. 2014: 0.08).
    """

    matrices: Literal["normal", "xavier", "fan_in"] = "normal"
    std: float = 0.02
    residual: Literal["same", "scaled", "zero"] = "scaled"
    embedding: float | None = 0.02
    head: Literal["same", "zero"] = "same"
    uniform: float | None = None

    def __post_init__(self) -> None:
        if self.uniform is not None and self.uniform <= 0:
            raise ConfigError(f"init.uniform is {self.uniform}; give a bound above 0, or none")


def initialise(model: nn.Module, config: InitConfig, depth: int, seed: int) -> None:
    """Draw the weights of every Projection and every embedding table (parameters named `table`) in `model`."""
    generator = torch.Generator().manual_seed(seed)
    if config.uniform is not None:
        _uniform(model, config.uniform, generator)
        return
    tables: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, Projection):
            _projection(module, config, depth, generator)
        table = getattr(module, "table", None)
        if isinstance(table, nn.Parameter) and table not in tables:
            tables.add(table)
            std = config.embedding if config.embedding is not None else table.shape[-1] ** -0.5
            _normal(table, std, generator)


def _uniform(model: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Draw every parameter of a Projection or of a module with a table, tied ones once."""
    drawn: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, Projection) or hasattr(module, "table"):
            for parameter in module.parameters(recurse=False):
                if parameter not in drawn:
                    drawn.add(parameter)
                    with torch.no_grad():
                        parameter.uniform_(-bound, bound, generator=generator)


def _projection(module: Projection, config: InitConfig, depth: int, generator: torch.Generator) -> None:
    start = 0
    with torch.no_grad():
        for rows in module.slices:
            _draw(module.weight[start : start + rows], config, generator)
            start += rows
        if module.writes and config.residual == "scaled":
            module.weight.div_(math.sqrt(2 * depth))
        if module.writes and config.residual == "zero":
            module.weight.zero_()


def _draw(weight: Tensor, config: InitConfig, generator: torch.Generator) -> None:
    fan_out, fan_in = weight.shape
    if config.matrices == "normal":
        _normal(weight, config.std, generator)
        return
    bound = math.sqrt(6 / (fan_in + fan_out)) if config.matrices == "xavier" else math.sqrt(3 / fan_in)
    weight.uniform_(-bound, bound, generator=generator)


def _normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        weight.normal_(0.0, std, generator=generator)
