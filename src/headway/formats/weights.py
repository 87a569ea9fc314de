"""Tensors of published files by name, independent of the file format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from headway.errors import UserError, nearest
from headway.formats.mapped import one_view
from headway.formats.native import named_tensors, replace_tensor
from headway.formats.rules import Family, Fused, TensorRule
from headway.nn.parts.projection import Projection

_MOST_ITEMS = 1024  # matrices per stack; the largest models have some hundred experts


class Weights(Protocol):
    """Named tensors that are read on request; `source` is the file or folder, for messages."""

    source: str

    def names(self) -> Collection[str]: ...

    def get(self, name: str) -> Tensor:
        """Return a tensor as stored (fp16 stays fp16); it may be a read-only view of a mapped file."""
        ...

    def done(self, name: str) -> None:
        """The tensor is no longer needed, and its pages may be released."""
        ...


class StoredPart(NamedTuple):
    """A tensor of the file, or one part of one item of a stacked tensor (see `Stacked`)."""

    name: str
    item: int | None = None
    part: int = 0
    parts: int = 1


class Renamed:
    """Weights under the names that a family's rules use; other spellings are mapped to them."""

    def __init__(self, weights: Weights, family: Family) -> None:
        self.source = weights.source
        self._weights = weights
        self._own: dict[str, StoredPart] = {}
        skipped = [re.compile(pattern) for pattern in family.skipped]
        for name in weights.names():
            renamed = name
            for pattern, replacement in family.renames:
                renamed = re.sub(pattern, replacement, renamed)
            if not any(pattern.search(renamed) for pattern in skipped):
                self._own.update(self._pieces(name, renamed, family))
        self._left = Counter(piece.name for piece in self._own.values())

    def _pieces(self, name: str, renamed: str, family: Family) -> dict[str, StoredPart]:
        for fused in family.fused:
            if fused.whole in renamed:
                parts = len(fused.parts)
                self._check_parts(name, parts)
                return {own: StoredPart(name, None, part, parts) for part, own in enumerate(fused.names(renamed))}
        for each in family.stacked:
            if re.search(each.pattern, renamed):
                items, parts = self._items(name, len(each.names)), len(each.names)
                return {
                    re.sub(each.pattern, new.format(item), renamed): StoredPart(name, item, part, parts)
                    for item in range(items)
                    for part, new in enumerate(each.names)
                }
        return {renamed: StoredPart(name)}

    def _check_parts(self, name: str, parts: int) -> None:
        shape = tuple(self._weights.get(name).shape)
        if not shape or not shape[0] or shape[0] % parts:
            raise UserError(
                f"{self.source}: {name} has shape {shape}; its rows should be a multiple of {parts}; get the file again"
            )

    def _items(self, name: str, parts: int) -> int:
        """Return how many matrices a tensor stacks, of this many parts each; UserError if it is not such a stack."""
        found = self._weights.get(name)
        shape = found.shape
        if found.dim() != 3 or not found.numel() or shape[0] > _MOST_ITEMS or shape[1] % parts:
            raise UserError(
                f"{self.source}: {name} has shape {tuple(shape)}; it should be one of 1 to {_MOST_ITEMS} matrices "
                f"whose rows are a multiple of {parts}; download the model again"
            )
        return shape[0]

    def names(self) -> Collection[str]:
        return self._own.keys()

    def get(self, name: str) -> Tensor:
        piece = self._own[name]
        tensor = self._weights.get(piece.name)
        if piece.item is not None:
            tensor = tensor[piece.item]
        return tensor if piece.parts == 1 else tensor.chunk(piece.parts)[piece.part]

    def done(self, name: str) -> None:
        """Release a stacked tensor after its last piece."""
        piece = self._own[name]
        self._left[piece.name] -= 1
        if not self._left[piece.name]:
            self._weights.done(piece.name)


def fill(model: nn.Module, rules: Sequence[TensorRule], weights: Weights, dtype: torch.dtype | None = None) -> None:
    """Fill the uninitialized `model` with the tensors that `rules` make from `weights`, each in `dtype` (None: as
    stored).

    Everything is checked before the first tensor is read. A UserError names a tensor that is missing or has no rule,
    with the closest existing name, or one whose shape disagrees with the configuration.
    """
    own = dict(named_tensors(model))
    _check_names(rules, weights, own)
    for each in _made(rules):
        parts = [_number_tensor(weights, name) for name in each.theirs]
        slices, place = _slices(each, parts, weights), own[each.ours]
        shape = _shape(slices)
        if shape != place.shape:
            shapes = " + ".join(str(tuple(part.shape)) for part in parts)
            raise UserError(
                f"{weights.source}: {' + '.join(each.theirs)} of shape {shapes} makes {shape}, but the "
                f"configuration needs {tuple(place.shape)}; config.json and weights do not belong together"
            )
        replace_tensor(place, _laid(slices, dtype or slices[0].dtype))
        for name in each.theirs:
            weights.done(name)


def _number_tensor(weights: Weights, name: str) -> Tensor:
    """Return a tensor of the file. UserError for integers and booleans: they are quantisation codes, not weights."""
    found = weights.get(name)
    if not found.is_floating_point():
        kind = str(found.dtype).removeprefix("torch.")
        raise UserError(
            f"{weights.source}: {name} has dtype {kind}, which only quantised models have; use the model that it was "
            "made from, with weights in float32, float16 or bfloat16"
        )
    return found


def differing_copy(rules: Sequence[TensorRule], weights: Weights) -> str | None:
    """Return the first tensor of the file that is tied to another one but differs from it."""
    sources = {each.ours: each.theirs[0] for each in _made(rules) if len(each.theirs) == 1}
    there = weights.names()
    for each in rules:
        source = sources.get(each.ours) if each.copy else None
        if source is not None and source in there and each.theirs[0] in there:
            tensor, repeated = weights.get(source), weights.get(each.theirs[0])
            if tensor.shape != repeated.shape or not torch.equal(tensor, repeated):
                return each.theirs[0]
    return None


def _slices(each: TensorRule, parts: list[Tensor], weights: Weights) -> list[Tensor]:
    reason = ""
    try:
        slices = each.form.slices(parts)
        if len(slices) == 1 or all(one.dim() and one.shape[1:] == slices[0].shape[1:] for one in slices):
            return slices
    except RuntimeError as error:  # torch's error for shapes that do not match
        reason = f" ({error})"
    shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(each.theirs, parts))
    raise UserError(f"{weights.source}: {shapes} do not fit together{reason}; config.json and weights do not match")


def _shape(slices: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the shape of the concatenated slices."""
    first = slices[0]
    return (sum(map(len, slices)), *first.shape[1:]) if first.dim() else ()


def _laid(slices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Concatenate slices of a file: the mapped memory itself if they are adjacent in it, otherwise a copy.

    Each number is moved once, in its new dtype, by as many threads as torch has.
    """
    found = one_view(slices) if all(each.dtype == dtype for each in slices) else None
    if found is not None:
        return found
    whole = torch.empty(_shape(slices), dtype=dtype)
    for place, each in zip(whole.split([len(each) for each in slices]) if whole.dim() else [whole], slices):
        place.copy_(each)
    return whole


def _check_names(rules: Sequence[TensorRule], weights: Weights, own: dict[str, Tensor]) -> None:
    there, used, made = set(weights.names()), set(), set()
    for each in _made(rules):
        made.add(each.ours)
        if each.ours not in own:
            raise UserError(
                f"{weights.source}: a model with these settings has no tensor for {each.theirs[0]}; config.json and "
                "weights do not belong together"
            )
        for name in each.theirs:
            used.add(name)
            if name not in there:
                raise UserError(f"{weights.source} lacks tensor {name!r}; {nearest(name, there)}")
    copies = {name for each in rules if each.copy for name in each.theirs}
    for name in sorted(there - used - copies):
        raise UserError(f"{weights.source} has unknown tensor {name!r}; {nearest(name, used)}")
    for name in own:
        if name not in made:
            raise UserError(f"no rule of {weights.source} makes {name!r}; {nearest(name, made)}")


def _made(rules: Iterable[TensorRule]) -> list[TensorRule]:
    return [each for each in rules if not each.copy]


def unfilled(model: nn.Module, rules: Sequence[TensorRule]) -> dict[str, Tensor]:
    """Return the tensors of `model` under the names and in the layout of the files; the reverse of `fill`."""
    own = dict(named_tensors(model))
    sizes = slice_sizes(model)
    found: dict[str, Tensor] = {}
    for each in _made(rules):
        whole = own[each.ours].detach()
        parts = each.form.split(whole, sizes.get(each.ours, (whole.shape[0],) if whole.dim() else ()))
        found.update(zip(each.theirs, (part.contiguous() for part in parts)))
    return found


def joined(tensors: dict[str, Tensor], fused: Sequence[Fused]) -> dict[str, Tensor]:
    """Return `tensors` with those that the file fuses concatenated."""
    found = dict(tensors)
    for each in fused:
        for name in tensors:
            if each.parts[0] in name:
                whole = name.replace(each.parts[0], each.whole)
                found[whole] = torch.cat([found.pop(part) for part in each.names(whole)])
    return found


def slice_sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the rows of the fused slices of every projection's weight and bias."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            found[f"{name}.weight"] = module.slices
            found[f"{name}.bias"] = tuple(size for size, has in zip(module.slices, module.biased) if has)
    return found
