"""Shapes checked at run time as jaxtyping checks them, at a fifth of the cost.

jaxtyping binds the arguments of every call and checks them twice, so that its messages may say more; in a suite of tiny
tensors that is most of the time. Here beartype checks arguments and result once, in one scope of names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

_original = jaxtyping.jaxtyped


def install() -> None:
    """Of what `--jaxtyping-packages` imports from now on."""
    jaxtyping.jaxtyped = _jaxtyped


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
        return _original(made, typechecker=beartype)  # its arguments are checked when it begins, in a scope of then
    told = made.__annotations__
    made.__annotations__ = {name: _read(hint, made) for name, hint in told.items()}
    has_shapes = any(map(_has_shapes, made.__annotations__.values()))
    checked = beartype(made)
    if checked is made:
        made.__annotations__ = told
        return made

    @functools.wraps(made)
    def within(*args: Any, **kwargs: Any) -> Any:
        with _scope:
            return checked(*args, **kwargs)

    outer = within if has_shapes else checked
    outer.__annotations__ = told
    return outer


# jaxtyping's own: names of axes mean the same within, and nothing outside.
_scope = _original("context")


def _read(hint: Any, made: Callable[..., Any]) -> Any:
    """What a hint says, or Any where its names are not there as the function is made, as jaxtyping has it."""

    def of(value: Any) -> None: ...

    of.__annotations__ = {"value": hint}
    try:
        return get_type_hints(of, made.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def _has_shapes(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_has_shapes, get_args(hint)))
