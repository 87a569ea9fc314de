"""Errors that a user can act on: each states the fact, the value and the remedy in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Bad input or a bad argument. The command line prints it as one line and exits with 2."""


class SomeFailedError(UserError):
    """Some of many could not be read. `results` is what the others got, in the order of all, with None in those places
    (NaN where it holds tensors); `errors` says of each place what was wrong.
    """

    def __init__(self, message: str, results: Any, errors: Mapping[int, UserError]) -> None:
        super().__init__(message)
        self.results = results
        self.errors = dict(errors)


class ConfigError(UserError):
    """A configuration that cannot be read or built: an unknown setting, or a value out of range."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:_LENGTH], names[:_COMPARED], n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", ... ({len(names):,} in all)" if len(names) > _LISTED else ""
    return f"choose from: {', '.join(names[:_LISTED])}{more}"


_COMPARED, _LISTED, _LENGTH = 2000, 200, 200  # names, names and characters: files may hold hundreds of thousands
