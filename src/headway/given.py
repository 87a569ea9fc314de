"""What callers give: one thing or many, and arguments of the types that are asked for."""

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

Failed = dict[int, UserError]  # what could not be read of many things, by its place, and why
_SHOWN = 40  # characters of a value that a message shows
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    Mapping: 'a mapping, as in {"name": value}',
    type(None): "None",
}


@dataclass(frozen=True)
class Given(Generic[T]):
    """What a verb was given, as a list; `one` where it was a single thing."""

    items: list[T]
    one: bool

    def answer(self, found: Any, failed: Failed | None = None, what: str = "item") -> Any:
        """The only one of the answers where one thing was given, or else all of them. SomeFailedError with them where
        some of the things `failed`, whose answers are not among those that were `found`.
        """
        if not failed:
            return found[0] if self.one else found
        first = next(iter(failed.values()))
        if len(self.items) == 1:
            raise first
        told = f"{len(failed)} of {len(self.items)} {what}s failed; .results has the answers to the others"
        raise SomeFailedError(f"{first} ({told})", filled(found, failed, len(self.items)), failed)


def each(items: Iterable[T], read: Callable[[int, T], R], failed: Failed | None) -> Iterator[R]:
    """What is read of each item, given with its place. Where that is a UserError, it is put into `failed`, or raised
    where there is none.
    """
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
    """The answers to `count` things in order, with None, or NaN in a tensor, for those that failed."""
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
    """A text, or any iterable of texts (a list, a generator, a column of a table). UserError for anything else."""
    one = isinstance(given, str)
    found = [given] if one else _all(_listed(given, f"a {what}"), str, what, f"a {what} must be a str")
    for number, text in enumerate(found, 1):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"{what} {number} of {len(found)} is {shown(text)}, which is no Unicode; decode it as UTF-8"
            )
    return Given(found, one)


def texts_or_pairs(given: Any) -> Given[str | tuple[str, str]]:
    """As `texts`, where two texts in a tuple are a pair, which is one thing."""
    if isinstance(given, str) or _is_pair(given):
        return Given([given], True)
    found = _listed(given, "a text, or two in a tuple")
    for number, item in enumerate(found, 1):
        if not (isinstance(item, str) or _is_pair(item)):
            raise UserError(f"text {number} is {shown(item)}; give texts, or tuples of two texts")
    return Given(found, False)


def texts_or_words(given: Any) -> Given[str | list[str]]:
    """As `texts`, each of which may be cut into a list of words already."""
    if isinstance(given, str):
        return Given([given], True)
    found: list[str | list[str]] = []
    for number, item in enumerate(_listed(given, "a text"), 1):
        words = item if isinstance(item, str) else _listed(item, "a text, or a list of its words")
        found.append(words if isinstance(words, str) else _all(words, str, f"text {number}: word", "a word is a str"))
    return Given(found, False)


def images(given: Any, among: str = "image") -> Given[Any]:
    """A file or its pixels, or any iterable of them; an array of four axes is a stack of images.

    What pixels must be like is checked by who reads them. UserError for what holds no images.
    """
    given = _array(given)
    if isinstance(given, (str, Path)) or (_is_numbers(given) and given.ndim <= 3):
        return Given([given], True)
    return Given([_array(item) for item in _listed(given, f"an {among} (a file, or its pixels)")], False)


def sounds(given: Any) -> Given[Any]:
    """A file or its samples (an array or a list of numbers), or any iterable of them. Errors as of `images`."""
    given = _array(given)
    if isinstance(given, (str, Path)) or _is_numbers(given) or _is_row(given):
        return Given([_samples(given)], True)
    return Given([_samples(_array(item)) for item in _listed(given, "a sound (a file, or its samples)")], False)


def rows_of_ids(given: Any) -> Given[list[int]]:
    """A row of whole numbers, or any iterable of such rows. UserError for anything else."""
    found = _listed(given, "a list of ids")
    one = _is_row(found)
    rows = [_listed(row, "a list of ids") for row in ([found] if one else found)]
    return Given([[int(i) for i in _all(row, Integral, "id", "an id is a whole number")] for row in rows], one)


def id_rows(given: Any, name: str, device: torch.device) -> Tensor:
    """Rows of ids as a tensor, Int[B, T]. UserError for what has another shape, or is no whole numbers."""
    rows = torch.as_tensor(given, device=device)
    if rows.dim() != 2 or rows.is_floating_point():
        raise UserError(f"{name} has shape {tuple(rows.shape)}; give whole numbers of shape [batch, time]")
    return rows


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given)


def _is_numbers(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.dtype.kind in "biufc"


def _is_row(given: Any) -> bool:
    """Whether these are numbers themselves, not rows of them."""
    return isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], Real)


def _array(given: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    return (given.float() if given.is_floating_point() else given).detach().cpu().numpy()


def _samples(given: Any) -> Any:
    if not _is_row(given):
        return given
    return np.array(_all(given, Real, "sample", "samples are numbers"))


def _listed(given: Any, one: str) -> list[Any]:
    """The items of anything that has them in an order. UserError for what has none, and for tables."""
    if getattr(given, "columns", None) is not None:
        raise UserError(f'a {type(given).__name__} has several columns; give one of them, as in table["text"]')
    given = _array(given)
    unordered = isinstance(given, (str, bytes, bytearray, Mapping, Set))
    if unordered or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise UserError(f"{shown(given)} was given; give {one}, or a list of these")
    return list(given)


def _all(items: Collection[Any], kind: type[T], what: str, wanted: str) -> list[T]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, kind):
            raise UserError(f"{what} {number} of {len(items)} is {shown(item)}; {wanted}")
    return list(items)


def named(item: Any, place: int, what: str) -> str:
    """A file by its path, anything else by its place among the things that were given."""
    return str(item) if isinstance(item, (str, Path)) else f"{what} {place + 1}"


def shown(value: Any) -> str:
    """A value in a message: short ones as they are written, others by their type, on one line."""
    if not isinstance(value, (str, bytes, Real, type(None))):
        name = type(value).__name__
        return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses, by a ConfigError, arguments of other types than it asks for. Numbers, truths, texts,
    paths, mappings and configs are checked; what else it takes it checks by itself.
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
    """Between callers and what serves them: UserError for paths that cannot be, and in a process that would hang."""
    if _fork.hangs:
        raise UserError(
            "this process was forked from one in which torch had run threads, and would wait for them for ever; "
            "start it by multiprocessing.get_context('spawn')"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PATHS:
            raise
        raise UserError(f"{shown(error.filename)} cannot be a path ({error.strerror}); check it") from error
    except RuntimeError as error:
        if "home directory" not in str(error):  # of `expanduser`
            raise
        raise UserError("a path begins with ~ and the name of nobody here; write it in full") from error


_NO_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)


class _Fork:
    """Whether this process was forked from one whose torch had threads of its own, which a fork does not take along."""

    def __init__(self) -> None:
        self.hangs = self._threads = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_child=self._after)

    def _before(self) -> None:
        try:
            count = len(os.listdir("/proc/self/task"))
        except OSError:  # no Linux
            return
        self._threads = count > threading.active_count() and torch.get_num_threads() > 1

    def _after(self) -> None:
        self.hangs = self.hangs or self._threads


_fork = _Fork()


def check_fields(config: Any) -> None:
    """ConfigError for a field of a dataclass that holds another type than it says; see `typed`."""
    kinds = _kinds(type(config))
    for field in dataclasses.fields(config):
        _check(field.name, getattr(config, field.name), kinds.get(field.name, ()))


@functools.cache
def _kinds(owner: Any) -> dict[str, tuple[Any, ...]]:
    """The types that each argument or field may have; none where isinstance could not tell."""
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
        raise ConfigError(f"{name} is {shown(value)}; give {either}")


def _fits(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, (bool, np.bool_))
    return isinstance(value, (bool, np.bool_) if kind is bool else kind)
