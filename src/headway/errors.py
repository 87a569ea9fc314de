"""Errors that a user can act on: each states the fact, the value and the remedy in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import islice
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


# Names that are looked at, as comparing takes long, and that are said; characters of a name.
_COMPARED, _NAMED, _LENGTH = 1000, 100, 200


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them where none is near."""
    names = sorted(islice(known, _COMPARED))
    close = difflib.get_close_matches(name[:_LENGTH], names, n=1, cutoff=0.5)
    more = f", ... ({len(names) - _NAMED} more)" if len(names) > _NAMED else ""
    return f"did you mean {close[0]!r}?" if close else f"choose from: {', '.join(names[:_NAMED])}{more}"
