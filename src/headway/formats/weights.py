"""Tensors in published files by name, independent of the file format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from headway.errors import UserError, nearest
from headway.formats.deferred import DeferredTensor, SequentialReader, combined, computed, deferred_parts, is_deferring
from headway.formats.native import named_tensors, replace_tensor
from headway.formats.tensor_rules import Family, TensorRule
from headway.formats.tensorfile import Shards, adjacent_view
from headway.nn.parts.projection import Projection

_MAX_ITEMS = 1024  # matrices per stack; the largest models have a few hundred experts


class Weights(Protocol):
    """Named tensors that are read on request; `source` is the file or folder, for messages."""

    source: str

    def names(self) -> Collection[str]: ...

    def get(self, name: str) -> Tensor:
        """Return a tensor as stored (fp16 stays fp16); it may be a read-only view of a mapped file."""
        ...

    def done(self, name: str) -> None:
        """Release the pages of a tensor that is no longer needed."""
        ...


class StoredPart(NamedTuple):
    """A tensor of the file, or one part of one item of a stacked tensor (see `Stacked`)."""

    name: str
    item: int | None = None
    part: int = 0
    parts: int = 1


class RenamedWeights:
    """Weights under the names that a family's rules use; other names are mapped to them."""

    def __init__(self, weights: Weights, family: Family) -> None:
        self.source = weights.source
        self.is_mapped = isinstance(weights, Shards)  # tensors are views of files, which are not decoded
        self._weights = weights
        self._entries: dict[str, StoredPart] = {}
        skipped = [re.compile(pattern) for pattern in family.skipped]
        for name in weights.names():
            renamed = name
            for pattern, replacement in family.renames:
                renamed = re.sub(pattern, replacement, renamed)
            if not any(pattern.search(renamed) for pattern in skipped):
                self._entries.update(self._stored_parts(name, renamed, family))
        self._counts = Counter(part.name for part in self._entries.values())
        self._remaining = self._counts.copy()

    def _stored_parts(self, name: str, renamed: str, family: Family) -> dict[str, StoredPart]:
        for fused in family.fused:
            if fused.stored_name in renamed:
                parts, shape = len(fused.parts), tuple(self._weights.get(name).shape)
                if not shape or not shape[0] or shape[0] % parts:
                    raise UserError(
                        f"{self.source}: {name} has shape {shape}; its rows should be a multiple of {parts}; get the "
                        "file again"
                    )
                return {
                    part_name: StoredPart(name, None, part, parts)
                    for part, part_name in enumerate(fused.names(renamed))
                }
        for stack in family.stacked:
            if re.search(stack.pattern, renamed):
                parts, tensor = len(stack.names), self._weights.get(name)
                shape = tuple(tensor.shape)
                if tensor.dim() != stack.dims or not tensor.numel() or shape[0] > _MAX_ITEMS or shape[1] % parts:
                    raise UserError(
                        f"{self.source}: {name} has shape {shape}; it should be one of 1 to {_MAX_ITEMS} matrices "
                        f"whose rows are a multiple of {parts}; download the model again"
                    )
                return {
                    re.sub(stack.pattern, new.format(index), renamed): StoredPart(name, index, part, parts)
                    for index in range(shape[0])
                    for part, new in enumerate(stack.names)
                }
        return {renamed: StoredPart(name)}

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def get(self, name: str) -> Tensor:
        stored = self._entries[name]
        tensor = self._weights.get(stored.name)
        if stored.item is not None:
            tensor = tensor[stored.item]
        return tensor if stored.parts == 1 else tensor.chunk(stored.parts)[stored.part]

    def done(self, name: str) -> None:
        """Release a stacked tensor after its last piece."""
        stored = self._entries[name]
        self._remaining[stored.name] -= 1
        if not self._remaining[stored.name]:
            self._weights.done(stored.name)
            self._remaining[stored.name] = self._counts[stored.name]


def fill(model: nn.Module, rules: Sequence[TensorRule], weights: Weights, dtype: torch.dtype | None = None) -> None:
    """Fill the uninitialized `model` with the tensors that `rules` make from `weights`, each in `dtype` (None: as
    stored). Within `deferred_weights` they are read when they are used.

    All names are checked before the first tensor is read. A UserError names a tensor that is missing or has no rule,
    with the closest existing name, or one whose shape disagrees with the configuration.
    """
    model_tensors = dict(named_tensors(model))
    stored_names, used, targets = set(weights.names()), set(), set()
    for rule in _without_copies(rules):
        targets.add(rule.target)
        if rule.target not in model_tensors:
            raise UserError(
                f"{weights.source}: a model with these settings has no tensor for {rule.sources[0]}; config.json does "
                "not match the weights"
            )
        for name in rule.sources:
            used.add(name)
            if name not in stored_names:
                raise UserError(f"{weights.source} lacks tensor {name!r}; {nearest(name, stored_names)}")
    copies = {name for rule in rules if rule.is_copy for name in rule.sources}
    for name in sorted(stored_names - used - copies):
        raise UserError(f"{weights.source} has unknown tensor {name!r}; {nearest(name, used)}")
    for name in model_tensors:
        if name not in targets:
            raise UserError(f"no rule of {weights.source} makes {name!r}; {nearest(name, targets)}")
    reader = SequentialReader(weights.done)
    for rule in _without_copies(rules):
        target = model_tensors[rule.target]
        shape = target.shape
        make = partial(_make, rule, weights, shape, dtype)
        if is_deferring():
            stored = dtype or weights.get(rule.sources[0]).dtype
            if isinstance(weights, RenamedWeights) and weights.is_mapped:  # wrong shapes are found before work starts
                parts = [_float_tensor(weights, name).to("meta") for name in rule.sources]
                _checked_slices(rule, parts, weights, shape)
            replace_tensor(target, DeferredTensor(shape, stored, partial(reader.read, rule.sources, make)))
        else:
            replace_tensor(target, make())
            for name in rule.sources:
                weights.done(name)


def _make(rule: TensorRule, weights: Weights, needed: torch.Size, dtype: torch.dtype | None) -> Tensor:
    """Return the tensor of the shape `needed` that a rule makes."""
    slices = _checked_slices(rule, [_float_tensor(weights, name) for name in rule.sources], weights, needed)
    return _concatenate(slices, dtype or slices[0].dtype)


def _checked_slices(rule: TensorRule, parts: list[Tensor], weights: Weights, needed: torch.Size) -> list[Tensor]:
    """Return the slices of the tensor that a rule makes. UserError if its shape is not the one `needed`."""
    slices = _slices(rule, parts, weights)
    shape = _shape(slices)
    if shape != needed:
        shapes = " + ".join(str(tuple(part.shape)) for part in parts)
        raise UserError(
            f"{weights.source}: {' + '.join(rule.sources)} of shape {shapes} makes {shape}, but the "
            f"configuration needs {tuple(needed)}; config.json does not match the weights"
        )
    return slices


def _float_tensor(weights: Weights, name: str) -> Tensor:
    """Return a tensor of the file. UserError for integers and booleans: they are quantisation codes, not weights."""
    tensor = weights.get(name)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"{weights.source}: {name} has dtype {kind}, which only quantised models have; use the model that it was "
            "made from, with weights in float32, float16 or bfloat16"
        )
    return tensor


def find_differing_copy(rules: Sequence[TensorRule], weights: Weights) -> str | None:
    """Return the first tensor of the file that is tied to another one but differs from it."""
    sources = {rule.target: rule.sources[0] for rule in _without_copies(rules) if len(rule.sources) == 1}
    names = weights.names()
    for rule in rules:
        source = sources.get(rule.target) if rule.is_copy else None
        if source is not None and source in names and rule.sources[0] in names:
            tensor, repeated = weights.get(source), weights.get(rule.sources[0])
            differs = tensor.shape != repeated.shape or not torch.equal(tensor, repeated)
            for name in (source, rule.sources[0]):
                weights.done(name)
            if differs:
                return rule.sources[0]
    return None


def _slices(rule: TensorRule, parts: list[Tensor], weights: Weights) -> list[Tensor]:
    reason = ""
    try:
        slices = rule.transform.slices(parts)
        if len(slices) == 1 or all(tensor.dim() and tensor.shape[1:] == slices[0].shape[1:] for tensor in slices):
            return slices
    except RuntimeError as error:  # torch's error for shapes that do not match
        reason = f" ({error})"
    shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(rule.sources, parts))
    raise UserError(f"{weights.source}: {shapes} do not fit together{reason}; config.json and weights do not match")


def _shape(slices: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the shape of the concatenated slices."""
    first = slices[0]
    return (sum(map(len, slices)), *first.shape[1:]) if first.dim() else ()


def _concatenate(slices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Concatenate slices from a file: the mapped memory itself if they are adjacent, otherwise a copy.

    Each value is copied once, in its new dtype, by as many threads as torch has.
    """
    view = adjacent_view(slices) if all(piece.dtype == dtype for piece in slices) else None
    if view is not None:
        return view
    output = torch.empty(_shape(slices), dtype=dtype)
    for destination, piece in zip(output.split([len(piece) for piece in slices]) if output.dim() else [output], slices):
        destination.copy_(piece)
    return output


def _without_copies(rules: Iterable[TensorRule]) -> list[TensorRule]:
    return [rule for rule in rules if not rule.is_copy]


def published_tensors(model: nn.Module, rules: Sequence[TensorRule]) -> dict[str, Tensor]:
    """Return the tensors of `model` under the names and in the layout of the files; the reverse of `fill`. Those of a
    deferred tensor are deferred.
    """
    model_tensors = dict(named_tensors(model))
    sizes = slice_sizes(model)
    tensors: dict[str, Tensor] = {}
    for rule in _without_copies(rules):
        tensor = model_tensors[rule.target].detach()
        rows = sizes.get(rule.target, (tensor.shape[0],) if tensor.dim() else ())
        if isinstance(tensor, DeferredTensor):
            like = rule.transform.split(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), rows)
            parts = deferred_parts(like, partial(_split, rule, tensor, rows))
        else:
            parts = _split(rule, tensor, rows)
        tensors.update(zip(rule.sources, parts))
    return tensors


def _split(rule: TensorRule, tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    return [part.contiguous() for part in rule.transform.split(computed(tensor), rows)]


def fuse_tensors(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return `tensors`, concatenating those that the file fuses and stacking those that it stacks."""
    fused_tensors = dict(tensors)
    for stack in (stack for stack in family.stacked if stack.written):
        first = stack.names[0].format(0)
        for name in [name for name in tensors if name.endswith(first)]:
            start, items = name.removesuffix(first), []
            while start + stack.names[0].format(len(items)) in fused_tensors:
                parts = [start + part.format(len(items)) for part in stack.names]
                items.append(combined(torch.cat, [fused_tensors.pop(part) for part in parts]))
            fused_tensors[start + stack.written] = combined(torch.stack, items)
    for group in family.fused:
        for name in tensors:
            if group.parts[0] in name:
                fused_name = name.replace(group.parts[0], group.stored_name)
                parts = [fused_tensors.pop(part) for part in group.names(fused_name)]
                fused_tensors[fused_name] = combined(torch.cat, parts)
    return fused_tensors


def slice_sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the rows of the fused slices of every projection's weight and bias."""
    sizes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            sizes[f"{name}.weight"] = module.slices
            sizes[f"{name}.bias"] = tuple(size for size, has_bias in zip(module.slices, module.biased) if has_bias)
    return sizes
