"""Validate callers' arguments: one item or many, and argument types."""

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

from headway.errors import ConfigError, PartialFailureError, UserError

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

Failures = dict[int, UserError]  # errors of items that could not be read, by index
_MAX_LENGTH = 40  # maximum characters of a value in a message
_TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    Path: "a path",
    Mapping: 'a mapping, as in {"name": value}',
    type(None): "None",
}


@dataclass(frozen=True)
class InputItems(Generic[T]):
    """A verb's inputs as a list; `is_single` if the caller passed a single item."""

    items: list[T]
    is_single: bool

    def unwrap(self, results: Any, failed: Failures | None = None, noun: str = "item") -> Any:
        """The only result for a single item, otherwise all results. Raises PartialFailureError with the results if some
        items `failed`; `results` does not include those.
        """
        if not failed:
            return results[0] if self.is_single else results
        first_error = next(iter(failed.values()))
        if len(self.items) == 1:
            raise first_error
        summary = f"{len(failed)} of {len(self.items)} {noun}s failed; .results has the results of the others"
        raise PartialFailureError(f"{first_error} ({summary})", fill_failures(results, failed, len(self.items)), failed)


def read_each(items: Iterable[T], read: Callable[[int, T], R], failed: Failures | None) -> Iterator[R]:
    """`read(index, item)` for each item. A UserError is stored in `failed`, or raised if `failed` is None."""
    for index, item in enumerate(items):
        try:
            output = read(index, item)
        except UserError as error:
            if failed is None:
                raise
            failed[index] = error
            continue
        yield output


def fill_failures(results: Any, failed: Failures, count: int) -> Any:
    """The results for `count` items in order, with None (NaN in a tensor) for those that failed."""
    succeeded = [index for index in range(count) if index not in failed]
    if isinstance(results, Tensor):
        padded = results.new_full((count, *results.shape[1:]), float("nan"))
        padded[succeeded] = results
        return padded
    if isinstance(results, tuple):
        return type(results)(*(fill_failures(component, failed, count) for component in results))
    by_index = dict(zip(succeeded, results))
    return [by_index.get(index) for index in range(count)]


def text_inputs(inputs: Any, noun: str = "text") -> InputItems[str]:
    """A string, or any iterable of strings (a list, a generator, a column of a table). UserError for anything else."""
    is_single = isinstance(inputs, str)
    strings = (
        [inputs] if is_single else _check_items(_ordered_items(inputs, f"a {noun}"), str, noun, f"pass a {noun} as str")
    )
    for position, text in enumerate(strings, 1):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"{noun} {position} of {len(strings)} is {format_value(text)}, which is not valid Unicode; decode it "
                "as UTF-8"
            )
    return InputItems(strings, is_single)


def text_or_pair_inputs(inputs: Any) -> InputItems[str | tuple[str, str]]:
    """Like `text_inputs`, but a tuple of two strings is a pair, which counts as one item."""
    if isinstance(inputs, str) or _is_pair(inputs):
        return InputItems([inputs], True)
    items = _ordered_items(inputs, "a string, or a tuple of two strings")
    for position, item in enumerate(items, 1):
        if not (isinstance(item, str) or _is_pair(item)):
            raise UserError(f"text {position} is {format_value(item)}; pass strings, or tuples of two strings")
    return InputItems(items, False)


def text_or_word_inputs(inputs: Any) -> InputItems[str | list[str]]:
    """Like `text_inputs`, but each text may already be split into a list of words."""
    if isinstance(inputs, str):
        return InputItems([inputs], True)
    rows: list[str | list[str]] = []
    for position, item in enumerate(_ordered_items(inputs, "a string"), 1):
        words = item if isinstance(item, str) else _ordered_items(item, "a string, or a list of words")
        rows.append(
            words if isinstance(words, str) else _check_items(words, str, f"text {position}: word", "pass words as str")
        )
    return InputItems(rows, False)


def image_inputs(inputs: Any, noun: str = "image") -> InputItems[Any]:
    """A file or its pixels, or any iterable of them; a 4-D array is a stack of images.

    The code that reads the pixels checks them. UserError if the input contains no images.
    """
    inputs = _to_numpy(inputs)
    if isinstance(inputs, (str, Path)) or (_is_numeric_array(inputs) and inputs.ndim <= 3):
        return InputItems([inputs], True)
    return InputItems(
        [_to_numpy(item) for item in _ordered_items(inputs, f"an {noun} (a file, or an array of pixels)")], False
    )


def audio_inputs(inputs: Any) -> InputItems[Any]:
    """A file or its samples (an array or a list of numbers), or any iterable of them. Raises like `image_inputs`."""
    inputs = _to_numpy(inputs)
    if isinstance(inputs, (str, Path)) or _is_numeric_array(inputs) or _is_number_list(inputs):
        return InputItems([_audio_samples(inputs)], True)
    return InputItems(
        [
            _audio_samples(_to_numpy(item))
            for item in _ordered_items(inputs, "an audio clip (a file, or an array of samples)")
        ],
        False,
    )


def id_row_inputs(inputs: Any) -> InputItems[list[int]]:
    """A list of integer ids, or any iterable of such lists. UserError for anything else."""
    items = _ordered_items(inputs, "a list of ids")
    is_single = _is_number_list(items)
    rows = [_ordered_items(row, "a list of ids") for row in ([items] if is_single else items)]
    return InputItems(
        [[int(i) for i in _check_items(row, Integral, "id", "pass ids as integers")] for row in rows], is_single
    )


def id_tensor(ids: Any, name: str, device: torch.device) -> Tensor:
    """Ids as a tensor, Int[B, T]. UserError for another shape, or for values that are not integers."""
    rows = torch.as_tensor(ids, device=device)
    if rows.dim() != 2 or rows.is_floating_point():
        raise UserError(f"{name} has shape {tuple(rows.shape)}; pass integers of shape [batch, time]")
    return rows


def _is_pair(candidate: Any) -> bool:
    return isinstance(candidate, tuple) and len(candidate) == 2 and all(isinstance(part, str) for part in candidate)


def _is_numeric_array(candidate: Any) -> bool:
    return isinstance(candidate, np.ndarray) and candidate.dtype.kind in "biufc"


def _is_number_list(candidate: Any) -> bool:
    """Whether this is one list of numbers, not a list of lists."""
    return isinstance(candidate, (list, tuple)) and len(candidate) > 0 and isinstance(candidate[0], Real)


def _to_numpy(array: Any) -> Any:
    """A tensor as an array; anything else unchanged."""
    if not isinstance(array, Tensor):
        return array
    return (array.float() if array.is_floating_point() else array).detach().cpu().numpy()


def _audio_samples(samples: Any) -> Any:
    if not _is_number_list(samples):
        return samples
    return np.array(_check_items(samples, Real, "sample", "pass samples as numbers"))


def _ordered_items(inputs: Any, expected: str) -> list[Any]:
    """The items of an ordered iterable. UserError for anything else, and for tables."""
    if getattr(inputs, "columns", None) is not None:
        raise UserError(f'a {type(inputs).__name__} has several columns; pass one of them, as in table["text"]')
    inputs = _to_numpy(inputs)
    unordered = isinstance(inputs, (str, bytes, bytearray, Mapping, Set))
    if unordered or not isinstance(inputs, Iterable) or getattr(inputs, "ndim", 1) == 0:
        raise UserError(f"the input is {format_value(inputs)}; pass {expected}, or a list of these")
    return list(inputs)


def _check_items(items: Collection[Any], expected_type: type[T], noun: str, remedy: str) -> list[T]:
    for position, item in enumerate(items, 1):
        if not isinstance(item, expected_type):
            raise UserError(f"{noun} {position} of {len(items)} is {format_value(item)}; {remedy}")
    return list(items)


def format_value(value: Any) -> str:
    """A value for a message, on one line: scalars by their repr, anything else by its type."""
    if not isinstance(value, (str, bytes, Real, type(None))):
        name = type(value).__name__
        return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."


def check_types(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that arguments of the wrong type raise a ConfigError. It checks numbers, bools, strings,
    paths, mappings and configs; the function checks other types itself.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _accepted_types(function)
        for name, value in [*zip(names, args), *kwargs.items()]:
            _check_type(name, value, hints.get(name, ()))
        with api_boundary():
            return function(*args, **kwargs)

    return call


@contextmanager
def api_boundary() -> Iterator[None]:
    """Guard a call of the public API: UserError for impossible paths, and in a forked process that would deadlock."""
    if _fork_guard.would_deadlock:
        raise UserError(
            "this process was forked after torch started threads and would deadlock; use the spawn start method: "
            "multiprocessing.get_context('spawn')"
        )
    try:
        yield
    except OSError as error:
        if error.errno not in _INVALID_PATH_ERRORS:
            raise
        raise UserError(f"{format_value(error.filename)} is not a valid path ({error.strerror}); correct it") from error
    except RuntimeError as error:
        if "home directory" not in str(error):  # of `expanduser`
            raise
        raise UserError("a path begins with ~ and an unknown user name; write the path in full") from error


_INVALID_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP)


class _ForkGuard:
    """Whether this process was forked while torch had threads, which do not survive a fork."""

    def __init__(self) -> None:
        self.would_deadlock = self._had_torch_threads = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_child=self._after)

    def _before(self) -> None:
        try:
            count = len(os.listdir("/proc/self/task"))
        except OSError:  # not Linux
            return
        self._had_torch_threads = count > threading.active_count() and torch.get_num_threads() > 1

    def _after(self) -> None:
        self.would_deadlock = self.would_deadlock or self._had_torch_threads


_fork_guard = _ForkGuard()


def check_fields(config: Any) -> None:
    """ConfigError for a dataclass field whose value has the wrong type; see `check_types`."""
    accepted = _accepted_types(type(config))
    for field in dataclasses.fields(config):
        _check_type(field.name, getattr(config, field.name), accepted.get(field.name, ()))


@functools.cache
def _accepted_types(owner: Any) -> dict[str, tuple[Any, ...]]:
    """The types that each argument or field may have; empty if isinstance cannot check them."""
    namespace = owner.__globals__ if hasattr(owner, "__globals__") else vars(inspect.getmodule(owner))
    annotations = {name: hint for name, hint in owner.__annotations__.items() if name != "return"}
    hints = typing.get_type_hints(cast(Any, types.SimpleNamespace(__annotations__=annotations)), namespace)
    return {name: _isinstance_types(hint) for name, hint in hints.items()}


def _isinstance_types(hint: Any) -> tuple[Any, ...]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        alternatives = [_isinstance_types(alternative) for alternative in get_args(hint)]
        return tuple(kind for alternative in alternatives for kind in alternative) if all(alternatives) else ()
    if origin is Literal:
        return tuple({type(value) for value in get_args(hint)})
    accepted = Mapping if origin is Mapping else hint
    return (accepted,) if accepted in _TYPE_NAMES or dataclasses.is_dataclass(accepted) else ()


def _check_type(name: str, value: Any, accepted: tuple[Any, ...]) -> None:
    if accepted and not any(_matches_type(value, kind) for kind in accepted):
        type_names = [_TYPE_NAMES.get(kind, f"a {kind.__name__}") for kind in dict.fromkeys(accepted)]
        expected = " or ".join([", ".join(type_names[:-1]), type_names[-1]] if len(type_names) > 1 else type_names)
        raise ConfigError(f"{name} is {format_value(value)}; pass {expected}")


def _matches_type(value: Any, accepted: Any) -> bool:
    if accepted in (int, float):
        return isinstance(value, Integral if accepted is int else Real) and not isinstance(value, (bool, np.bool_))
    return isinstance(value, (bool, np.bool_) if accepted is bool else accepted)
