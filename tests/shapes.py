"""Shapes checked at run time as jaxtyping checks them, at a fifth of the cost.

jaxtyping binds the arguments of every call and checks them twice, so that its messages may say more; in a suite of tiny
tensors that is most of the time. Here beartype checks arguments and result once, in one scope of names, and axes that
are a name or a number, as nearly all are, are compared in a few steps.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple, get_args, get_type_hints

import jaxtyping
import torch
from beartype import beartype
from jaxtyping import AbstractArray
from jaxtyping._storage import _shape_storage, get_shape_memo
from torch import Tensor

jaxtyped = jaxtyping.jaxtyped
# A name that is no `_`, which is any size, or a number.
_PLAIN = re.compile(r"[A-Za-z]\w*|\d+").fullmatch
_BEARTYPED = "__beartype_func"  # the argument by which beartype's code knows the function that it checks
is_by_jaxtyping = type(AbstractArray).__instancecheck__


def install() -> None:
    """Of what `--jaxtyping-packages` imports from now on."""
    jaxtyping.jaxtyped = _jaxtyped
    type(AbstractArray).__instancecheck__ = is_by_axes


def _jaxtyped(*, typechecker: object) -> Callable[[Any], Any]:
    return lambda made: _of_class(made) if inspect.isclass(made) else _of_function(made)


def _of_class(made: type) -> type:
    """A dataclass is checked where it is made; other classes by their methods."""
    own = vars(made).get("__init__")
    if hasattr(made, "__dataclass_fields__") and own is not None and not hasattr(own, "is_checked"):
        made.__init__ = _of_function(own)  # type: ignore[misc]
        made.__init__.is_checked = True  # type: ignore[attr-defined]
    return made


def _of_function(made: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(made) or inspect.iscoroutinefunction(made):
        return jaxtyped(made, typechecker=beartype)  # its arguments are checked when it begins, in a scope of then
    told = made.__annotations__
    checked, has_shapes = _inner(made) if "<locals>" in made.__qualname__ else _checked(made)
    if checked is made:
        return made

    @functools.wraps(made)
    def within(*args: Any, **kwargs: Any) -> Any:
        try:
            scopes = _shape_storage.memo_stack
        except AttributeError:  # the first call of a thread
            scopes = _shape_storage.memo_stack = []
        scopes.append(({}, {}, {}, {}))  # names of axes mean the same within, and nothing outside
        try:
            return checked(*args, **kwargs)
        finally:
            scopes.pop()

    outer = within if has_shapes else checked
    outer.__annotations__ = told
    return outer


def _checked(made: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """The function that checks its arguments and result, and whether they have shapes; `made` if they have no types."""
    told = made.__annotations__
    made.__annotations__ = {name: _read(hint, made) for name, hint in told.items()}
    has_shapes = any(map(_has_shapes, made.__annotations__.values()))
    checked = beartype(made)
    if checked is made:
        made.__annotations__ = told
    return checked, has_shapes


_INNER: dict[CodeType, tuple[FunctionType | None, bool]] = {}


def _inner(made: Any) -> tuple[Callable[..., Any], bool]:
    """What `_checked` gives for a function within another, whose checks are made at the first call of the outer one."""
    if made.__code__ not in _INNER:
        checked, has_shapes = _checked(made)
        _INNER[made.__code__] = None if checked is made else checked, has_shapes  # type: ignore[assignment]
        return checked, has_shapes
    first, has_shapes = _INNER[made.__code__]
    if first is None:
        return made, has_shapes
    again = FunctionType(first.__code__, first.__globals__, first.__name__, first.__defaults__, first.__closure__)
    again.__kwdefaults__ = {**(first.__kwdefaults__ or {}), _BEARTYPED: made}
    return functools.update_wrapper(again, made), has_shapes


def _read(hint: Any, made: Callable[..., Any]) -> Any:
    """What a hint says, or Any where its names are not there as the function is made, as jaxtyping has it."""

    def of(value: Any) -> None: ...

    of.__annotations__ = {"value": hint}
    try:
        return get_type_hints(of, made.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def is_by_axes(kind: type[AbstractArray], value: Any) -> bool:
    """What jaxtyping finds, which is asked itself where an axis is computed or has no name."""
    check = _check(kind)
    return is_by_jaxtyping(kind, value) if check is None or not isinstance(value, Tensor) else check(value)


@functools.cache
def _check(kind: type[AbstractArray]) -> Callable[[Tensor], bool] | None:
    """None if an axis is computed, optional, or of any size. Types of names alone, as most are, or of names that follow
    any number of axes, take few steps.
    """
    axes = _axes(kind)
    if axes is None:
        return None
    names = axes.single
    if (axes.many is None or axes[1:] == (0, "")) and {str} >= set(map(type, names)) and len(set(names)) == len(names):
        return _check_of_names(kind, names, axes.many is None)
    return functools.partial(_fits, kind, axes)


def _check_of_names(kind: type[AbstractArray], names: Sequence[str], is_all: bool) -> Callable[[Tensor], bool]:
    count, dtypes, is_tensor = len(names), dict[torch.dtype, bool](), kind.array_type is Tensor

    def check(value: Tensor) -> bool:
        shape = value.shape
        if len(shape) != count:
            if is_all or len(shape) < count:
                return False
            shape = shape[-count:] if count else ()
        fits = dtypes.get(value.dtype)
        if fits is None:
            fits = dtypes[value.dtype] = _is_dtype(kind, value.dtype)
        if not fits or not (is_tensor or isinstance(value, kind.array_type)):
            return False
        try:
            known = _shape_storage.memo_stack[-1][0]
        except (AttributeError, IndexError):  # outside of all scopes
            return True
        before = len(known)
        for name, size in zip(names, shape):
            if known.setdefault(name, size) != size:
                while len(known) > before:  # what does not fit binds no name
                    known.popitem()
                return False
        return True

    return check


def _fits(kind: type[AbstractArray], axes: _Axes, value: Tensor) -> bool:
    shape, many = value.shape, axes.many
    rest = len(shape) - len(axes.single)
    if (rest < 0 or (rest and many is None)) or not _is_dtype(kind, value.dtype):
        return False
    if not isinstance(value, kind.array_type):
        return False
    known, variadic, *_ = get_shape_memo()
    sizes = shape if many is None else shape[: axes.before] + shape[axes.before + rest :]
    found: dict[str, int] = {}
    for axis, size in zip(axes.single, sizes):
        if axis.__class__ is tuple:  # broadcast
            if size == 1:
                continue
            (axis,) = axis
        if size != (axis if axis.__class__ is int else known[axis] if axis in known else found.setdefault(axis, size)):
            return False
    if many:
        is_broadcast, seen = variadic.setdefault(many, (False, shape[axes.before : axes.before + rest]))
        if is_broadcast:
            return is_by_jaxtyping(kind, value)
        if seen != shape[axes.before : axes.before + rest]:
            return False
    known.update(found)
    return True


class _Axes(NamedTuple):
    """Of a type. `single` has sizes, names, and names in a tuple, which a size of 1 fits, too; `many` follows `before`
    of them: None, or any number of axes, with a name or "".
    """

    single: tuple[Any, ...]
    before: int
    many: str | None


def _axes(kind: type[AbstractArray]) -> _Axes | None:
    """None where an axis is computed, optional, or of any size."""
    single, before, many = list[Any](), 0, None
    for word in kind.dim_str.split():
        name = word.lstrip("#*")
        if word == "..." or (word == f"*{name}" and _PLAIN(name)):
            before, many = len(single), name.strip(".")
        elif not _PLAIN(name) or word not in (name, f"#{name}"):
            return None
        else:
            axis = int(name) if name.isdigit() else name
            single.append(axis if word == name else (axis,))
    return _Axes(tuple(single), before, many)


@functools.cache
def _is_dtype(kind: type[AbstractArray], dtype: torch.dtype) -> bool:
    """Whether the type takes tensors of that dtype, whatever their shape."""
    return is_by_jaxtyping(kind.dtype[Any, "..."], SimpleNamespace(shape=(), dtype=dtype))


def _has_shapes(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_has_shapes, get_args(hint)))
