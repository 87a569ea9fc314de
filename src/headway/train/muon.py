"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headway.config import register
from headway.train.flat import FlatParameters
from headway.train.optim import AdamSettings, Group, OptimConfig, adam_groups, trainable

_QUINTIC = (3.4445, -4.7750, 2.0315)


@register("muon")
@dataclass(frozen=True)
class MuonConfig(OptimConfig):
    """`lr` is for the matrices inside stacks; embeddings, heads, norms and biases are under AdamW with `adam_lr`, heads
    with `head_lr` where it is given.
    """

    lr: float = 0.02  # peak learning rate of the matrices inside stacks
    momentum: float = 0.95  # of Muon
    weight_decay: float = 0.0  # of Muon's matrices
    adam_lr: float = 3e-3  # peak learning rate of all else, which AdamW updates
    head_lr: float | None = None  # of heads; none: adam_lr
    adam_betas: tuple[float, float] = (0.9, 0.95)  # as betas of adamw
    adam_eps: float = 1e-8  # as eps of adamw
    adam_weight_decay: float = 0.0  # as weight_decay of adamw

    def groups(self, model: nn.Module, precision: str) -> list[Group]:
        parameters = trainable(model)
        matrices = {name: _slices(p) for name, p in parameters.items() if is_matrix(name, p)}
        names = sorted(matrices, key=lambda name: (parameters[name].shape, matrices[name]))
        others = [name for name in parameters if name not in matrices]
        settings = AdamSettings(self.adam_lr, self.adam_betas, self.adam_eps, self.adam_weight_decay)
        muon = Group(names, lambda flat, part: Muon(flat, part, names, matrices, self, precision))
        if self.head_lr is None:
            return [muon, *adam_groups(others, model, settings)]
        heads = [name for name in others if "heads" in name.split(".")]
        rest = [name for name in others if name not in heads]
        own = settings._replace(lr=self.head_lr)
        return [muon, *adam_groups(rest, model, settings), *adam_groups(heads, model, own)]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a linear map inside a stack: what Muon is for."""
    return "stack" in name.split(".") and parameter.dim() >= 2 and hasattr(parameter, "slices")


def _slices(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(parameter.slices)  # type: ignore[attr-defined]


def orthogonalise(x: Float[Tensor, "N R C"], steps: int = 5) -> Float[Tensor, "N R C"]:
    """U V^T of each matrix U S V^T, roughly: a Newton-Schulz iteration whose quintic brings all singular values near 1.

    Five steps leave them between about 0.7 and 1.2. R must not exceed C, so that the Gram matrix is the small one.
    """
    a, b, c = _QUINTIC
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    x = x / (norm + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class _Piece(NamedTuple):
    """The same slice of n equal parameters, as views of the flat tensors, with the part of the batch that it fills."""

    data: Float[Tensor, "n e r c"]
    direction: Float[Tensor, "n e r c"]
    part: Float[Tensor, "n e r c"]
    scale: float


class Muon:
    """Nesterov momentum, orthogonalised, times sqrt(max(1, rows / columns)).

    Fused projections are taken apart into their slices. Slices of equal shape, from all layers, go through
    Newton-Schulz as one batch, tall ones transposed: a chain of fifteen products a shape, not fifteen a matrix.
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
        self.config = config
        self.data, self.grads = flat.data[segment], flat.grads[segment]
        self.buffers = {"velocity": torch.zeros_like(self.data)}
        dtype = torch.bfloat16 if precision == "bf16" else self.data.dtype
        views = list(_views(flat, names, slices))
        self._batches: list[Tensor] = []
        self._pieces: list[list[_Piece]] = []
        for shape, group in groupby(sorted(views, key=lambda v: _wide(v[0])), key=lambda v: _wide(v[0])):
            members = list(group)
            count = sum(data.shape[0] * data.shape[1] for data, _ in members)
            batch = torch.empty(count, *shape, dtype=dtype, device=self.data.device)
            self._batches.append(batch)
            self._pieces.append(list(_pieces(members, batch)))

    def step(self, factor: float, count: int) -> None:
        lr = self.config.lr * factor
        velocity = self.buffers["velocity"].lerp_(self.grads, 1 - self.config.momentum)
        self.grads.lerp_(velocity, self.config.momentum)
        if self.config.weight_decay:
            self.data.mul_(1 - lr * self.config.weight_decay)
        for batch, pieces in zip(self._batches, self._pieces):
            for piece in pieces:
                piece.part.copy_(piece.direction)
            batch.copy_(orthogonalise(batch))
            for piece in pieces:
                piece.data.add_(piece.part, alpha=-lr * piece.scale)


def _wide(view: Tensor) -> tuple[int, int]:
    rows, columns = view.shape[-2:]
    return min(rows, columns), max(rows, columns)


def _views(
    flat: FlatParameters, names: list[str], slices: dict[str, tuple[int, ...]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(data, gradients) of each slice of each run of equal parameters, [n, e, r, c]; e is 1, or counts experts."""
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


def _pieces(members: list[tuple[Tensor, Tensor]], batch: Tensor) -> Iterator[_Piece]:
    start = 0
    for data, direction in members:
        rows, columns = data.shape[-2:]
        scale = math.sqrt(max(1.0, rows / columns))
        if rows > columns:
            data, direction = data.mT, direction.mT
        count = data.shape[0] * data.shape[1]
        yield _Piece(data, direction, batch[start : start + count].view(data.shape), scale)
        start += count
