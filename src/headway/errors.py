"""Errors that a user can act on: each states the fact, the value and the remedy in one line; and lines that a terminal
only shows, whoever wrote what stands in them.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any


def printable(text: str) -> str:
    """A text as one line that a terminal shows and does not obey: a control character, as names in files may have, is
    written as the escape that Python has for it, and a break between lines as a space.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else " " if each.isspace() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def logger(name: str) -> logging.Logger:
    """The logger of a module, whose lines are `printable`."""
    found = logging.getLogger(name)
    found.addFilter(_one_line)
    return found


def _one_line(record: logging.LogRecord) -> bool:
    line = record.getMessage()
    if not line.isprintable():
        record.msg, record.args = printable(line), None
    if _noticed is None:
        return True
    new = line not in _noticed
    _noticed.add(line)
    return new


_noticed: set[str] | None = None  # lines that were logged, where each comes once


@contextmanager
def notices_once() -> Iterator[None]:
    """Inside, a line that is logged again is left out: data are opened several times before they are trained on."""
    global _noticed
    if _noticed is not None:
        yield
        return
    _noticed = set()
    try:
        yield
    finally:
        _noticed = None


class UserError(Exception):
    """Bad input or a bad argument. The command line prints it as one line, which is `printable`, and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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


class InapplicableError(ConfigError):
    """A setting that this configuration does not have, such as the heads of an LSTM."""


# Names that are looked at, as comparing takes long, and that are said; characters of a name.
_COMPARED, _NAMED, _LENGTH = 1000, 100, 200


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them where none is near."""
    names = sorted(islice(known, _COMPARED))
    close = difflib.get_close_matches(name[:_LENGTH], names, n=1, cutoff=0.5)
    more = f", ... ({len(names) - _NAMED} more)" if len(names) > _NAMED else ""
    return f"did you mean {close[0]!r}?" if close else f"choose from: {', '.join(names[:_NAMED])}{more}"
