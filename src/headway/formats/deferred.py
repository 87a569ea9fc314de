"""Weights that are read for each use and then released, so that a model larger than the memory can be converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_DEFERRING: ContextVar[bool] = ContextVar("deferring", default=False)


@contextmanager
def deferred_weights() -> Iterator[None]:
    """In this context, models are opened without reading their weights: each weight is a `DeferredTensor`."""
    token = _DEFERRING.set(True)
    try:
        yield
    finally:
        _DEFERRING.reset(token)


def is_deferring() -> bool:
    """Whether the caller is within `deferred_weights`."""
    return _DEFERRING.get()


class DeferredTensor(torch.Tensor):
    """A tensor of known shape and dtype. Each operation on its values calls `compute`, which returns them; they are not
    stored.
    """

    compute: Callable[[], Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, compute: Callable[[], Tensor]) -> DeferredTensor:
        tensor = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        tensor.compute = compute
        return tensor

    def __init__(self, *_: Any) -> None:
        return None

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        return nn.Parameter(self.compute().clone(), requires_grad=False)

    def alias(self) -> DeferredTensor:
        """The same values as another tensor object."""
        return DeferredTensor(self.shape, self.dtype, self.compute)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0].alias()
        return func(*tree_map(computed, args), **tree_map(computed, kwargs or {}))


def computed(item: Any) -> Any:
    """The values of a `DeferredTensor`; any other object as it is."""
    return item.compute() if isinstance(item, DeferredTensor) else item


def combined(function: Callable[[list[Tensor]], Tensor], parts: list[Tensor]) -> Tensor:
    """`function` of tensors, deferred if one of them is."""
    if not any(isinstance(part, DeferredTensor) for part in parts):
        return function(parts)
    like = function([torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts])
    return DeferredTensor(like.shape, like.dtype, lambda: function([computed(part) for part in parts]))


def deferred_parts(like: Iterable[Tensor], compute: Callable[[], Sequence[Tensor]]) -> list[DeferredTensor]:
    """Deferred tensors of the shapes and dtypes of `like` that one computation makes together. It runs once if they are
    used in turn.
    """
    unused: dict[int, Tensor] = {}

    def take(index: int) -> Tensor:
        if index not in unused:
            unused.clear()
            unused.update(enumerate(compute()))
        return unused.pop(index)

    return [DeferredTensor(part.shape, part.dtype, partial(take, index)) for index, part in enumerate(like)]


class SequentialReader:
    """Reads tensors of files in turn. Reading one releases the pages of the previous one, which may be views of a map;
    `release` takes the name of a tensor.
    """

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._names: Sequence[str] = ()

    def read(self, names: Sequence[str], make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` makes of the tensors `names`."""
        for name in self._names:
            self._release(name)
        self._names = names
        return make()
