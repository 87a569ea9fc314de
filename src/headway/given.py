"""Validation of callers' arguments: one item or many, and checks of argument types."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import os
import threading
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from headway.errors import ConfigError, SomeFailedError, UserError

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

Failed = dict[int, UserError]  # the items that could not be read, by index, and why
_SHOWN = 40  # maximum characters of a value in a message
_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    Path: "a path",
    Mapping: 'a mapping, as in {"name": value}',
    type(None): "None",
}


@dataclass(frozen=True)
class Given(Generic[T]):
    """The inputs of a verb as a list; `is_single` if the caller passed a single item."""

    items: list[T]
    one: bool

    def answer(self, found: Any, failed: Failed | None = None, what: str = "item") -> Any:
        """The only result for a single item, otherwise all results. Raises PartialFailureError with the results if some
        items `failed`; `results` does not include those.
        """
        if not failed:
            return found[0] if self.one else found
        first = next(iter(failed.values()))
        if len(self.items) == 1:
            raise first
        told = f"{len(failed)} of {len(self.items)} {what}s failed; .results has the results of the others"
        raise SomeFailedError(f"{first} ({told})", filled(found, failed, len(self.items)), failed)


def each(items: Iterable[T], read: Callable[[int, T], R], failed: Failed | None) -> Iterator[R]:
    """`read(index, item)` for each item. A UserError is stored in `failed`, or raised if `failed` is None."""
    for place, item in enumerate(items):
        try:
            found = read(place, item)
        except UserError as error:
            if failed is None:
                raise
            failed[place] = error
            continue
        yield found


def filled(found: Any, failed: Failed, count: int) -> Any:
    """The results for `count` items in order, with None (NaN in a tensor) for those that failed."""
    kept = [place for place in range(count) if place not in failed]
    if isinstance(found, Tensor):
        whole = found.new_full((count, *found.shape[1:]), float("nan"))
        whole[kept] = found
        return whole
    if isinstance(found, tuple):
        return type(found)(*(filled(part, failed, count) for part in found))
    answers = dict(zip(kept, found))
    return [answers.get(place) for place in range(count)]


def texts(given: Any, what: str = "text") -> Given[str]:
    """A string, or any iterable of strings (a list, a generator, a column of a table). UserError for anything else."""
    one = isinstance(given, str)
    found = [given] if one else _all(_listed(given, f"a {what}"), str, what, f"pass a {what} as str")
    for number, text in enumerate(found, 1):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"{what} {number} of {len(found)} is {shown(text)}, which is not valid Unicode; decode it as UTF-8"
            )
    return Given(found, one)


def texts_or_pairs(given: Any) -> Given[str | tuple[str, str]]:
    """Like `text_inputs`, but a tuple of two strings is a pair, which counts as one item."""
    if isinstance(given, str) or _is_pair(given):
        return Given([given], True)
    found = _listed(given, "a string, or a tuple of two strings")
    for number, item in enumerate(found, 1):
        if not (isinstance(item, str) or _is_pair(item)):
            raise UserError(f"text {number} is {shown(item)}; pass strings, or tuples of two strings")
    return Given(found, False)


def texts_or_words(given: Any) -> Given[str | list[str]]:
    """Like `text_inputs`, but each text may already be split into a list of words."""
    if isinstance(given, str):
        return Given([given], True)
    found: list[str | list[str]] = []
    for number, item in enumerate(_listed(given, "a string"), 1):
        words = item if isinstance(item, str) else _listed(item, "a string, or a list of words")
        found.append(words if isinstance(words, str) else _all(words, str, f"text {number}: word", "pass words as str"))
    return Given(found, False)


def images(given: Any, among: str = "image") -> Given[Any]:
    """A file or its pixels, or any iterable of them; a 4-D array is a stack of images.

    The code that reads the pixels checks them. UserError if the input contains no images.
    """
    given = _array(given)
    if isinstance(given, (str, Path)) or (_is_numbers(given) and given.ndim <= 3):
        return Given([given], True)
    return Given([_array(item) for item in _listed(given, f"an {among} (a file, or an array of pixels)")], False)


def sounds(given: Any) -> Given[Any]:
    """A file or its samples (an array or a list of numbers), or any iterable of them. Raises as `image_inputs` does."""
    given = _array(given)
    if isinstance(given, (str, Path)) or _is_numbers(given) or _is_row(given):
        return Given([_samples(given)], True)
    return Given([_samples(_array(item)) for item in _listed(given, "a sound (a file, or an array of samples)")], False)


def rows_of_ids(given: Any) -> Given[list[int]]:
    """A list of integer ids, or any iterable of such lists. UserError for anything else."""
    found = _listed(given, "a list of ids")
    one = _is_row(found)
    rows = [_listed(row, "a list of ids") for row in ([found] if one else found)]
    return Given([[int(i) for i in _all(row, Integral, "id", "pass ids as integers")] for row in rows], one)


def id_rows(given: Any, name: str, device: torch.device) -> Tensor:
    """Ids as a tensor, Int[B, T]. UserError for another shape, or for values that are not integers."""
    rows = torch.as_tensor(given, device=device)
    if rows.dim() != 2 or rows.is_floating_point():
        raise UserError(f"{name} has shape {tuple(rows.shape)}; pass integers of shape [batch, time]")
    return rows


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given)


def _is_numbers(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.dtype.kind in "biufc"


def _is_row(given: Any) -> bool:
    """Whether this is one list of numbers, not a list of lists."""
    return isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], Real)


def _array(given: Any) -> Any:
    """A tensor as an array; anything else unchanged."""
    if not isinstance(given, Tensor):
        return given
    return (given.float() if given.is_floating_point() else given).detach().cpu().numpy()


def _samples(given: Any) -> Any:
    if not _is_row(given):
        return given
    return np.array(_all(given, Real, "sample", "pass samples as numbers"))


def _listed(given: Any, one: str) -> list[Any]:
    """The items of an ordered iterable. UserError for anything else, and for tables."""
    if getattr(given, "columns", None) is not None:
        raise UserError(f'a {type(given).__name__} has several columns; pass one of them, as in table["text"]')
    given = _array(given)
    unordered = isinstance(given, (str, bytes, bytearray, Mapping, Set))
    if unordered or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise UserError(f"the input is {shown(given)}; pass {one}, or a list of these")
    return list(given)


def _all(items: Collection[Any], kind: type[T], what: str, wanted: str) -> list[T]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, kind):
            raise UserError(f"{what} {number} of {len(items)} is {shown(item)}; {wanted}")
    return list(items)


def named(item: Any, place: int, what: str) -> str:
    """The name of an item for messages: the path of a file, otherwise its position in the input."""
    return str(item) if isinstance(item, (str, Path)) else f"{what} {place + 1}"


def shown(value: Any) -> str:
    """A value for a message, on one line: scalars by their repr, anything else by its type."""
    if not isinstance(value, (str, bytes, Real, type(None))):
        name = type(value).__name__
        return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that arguments of the wrong type raise a ConfigError. It checks numbers, bools, strings,
    paths, mappings and configs; the function checks other types itself.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _kinds(function)
        for name, value in [*zip(names, args), *kwargs.items()]:
            _check(name, value, hints.get(name, ()))
        with border():
            return function(*args, **kwargs)

    return call


@contextmanager
def border() -> Iterator[None]:
    """The boundary of the public API: UserError for impossible paths, and in a forked process that would deadlock."""
    if _fork.hangs:
        raise UserError(
            "this process was forked after torch started threads and would deadlock; use the spawn start method: "
            "multiprocessing.get_context('spawn')"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PATHS:
            raise
        raise UserError(f"{shown(error.filename)} is not a valid path ({error.strerror}); correct it") from error
    except RuntimeError as error:
        if "home directory" not in str(error):  # of `expanduser`
            raise
        raise UserError("a path begins with ~ and an unknown user name; write the path in full") from error


_NO_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)


class _Fork:
    """Whether this process was forked while torch had threads, which do not survive a fork."""

    def __init__(self) -> None:
        self.hangs = self._threads = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_child=self._after)

    def _before(self) -> None:
        try:
            count = len(os.listdir("/proc/self/task"))
        except OSError:  # not Linux
            return
        self._threads = count > threading.active_count() and torch.get_num_threads() > 1

    def _after(self) -> None:
        self.hangs = self.hangs or self._threads


_fork = _Fork()


def check_fields(config: Any) -> None:
    """ConfigError for a dataclass field whose value has the wrong type; see `check_types`."""
    kinds = _kinds(type(config))
    for field in dataclasses.fields(config):
        _check(field.name, getattr(config, field.name), kinds.get(field.name, ()))


@functools.cache
def _kinds(owner: Any) -> dict[str, tuple[Any, ...]]:
    """The types that each argument or field may have; empty if isinstance cannot check them."""
    names = owner.__globals__ if hasattr(owner, "__globals__") else vars(inspect.getmodule(owner))
    said = {name: hint for name, hint in owner.__annotations__.items() if name != "return"}
    hints = typing.get_type_hints(cast(Any, types.SimpleNamespace(__annotations__=said)), names)
    return {name: _options(hint) for name, hint in hints.items()}


def _options(hint: Any) -> tuple[Any, ...]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_options(part) for part in get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    if origin is Literal:
        return tuple({type(value) for value in get_args(hint)})
    found = Mapping if origin is Mapping else hint
    return (found,) if found in _NAMES or dataclasses.is_dataclass(found) else ()


def _check(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    if kinds and not any(_fits(value, kind) for kind in kinds):
        wanted = [_NAMES.get(kind, f"a {kind.__name__}") for kind in dict.fromkeys(kinds)]
        either = " or ".join([", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted)
        raise ConfigError(f"{name} is {shown(value)}; pass {either}")


def _fits(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, (bool, np.bool_))
    return isinstance(value, (bool, np.bool_) if kind is bool else kind)
