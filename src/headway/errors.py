"""Errors that a user can act on (fact, value and remedy in one line), and text that is safe to print on a terminal."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any


def printable(text: str) -> str:
    """A string as one line that is safe to print: control characters, which file names may contain, become Python
    escapes, and whitespace becomes spaces.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)


def logger(name: str) -> logging.Logger:
    """The logger of a module, whose lines are `printable`."""
    named_logger = logging.getLogger(name)
    named_logger.addFilter(_filter_record)
    return named_logger


def _filter_record(record: logging.LogRecord) -> bool:
    line = record.getMessage()
    if not line.isprintable():
        record.msg, record.args = printable(line), None
    if _logged_lines is None:
        return True
    is_new = line not in _logged_lines
    _logged_lines.add(line)
    return is_new


_logged_lines: set[str] | None = None  # logged lines, while `deduplicated_logs` is active


@contextmanager
def deduplicated_logs() -> Iterator[None]:
    """Inside the context each log line appears once, although data are opened several times before training."""
    global _logged_lines
    if _logged_lines is not None:
        yield
        return
    _logged_lines = set()
    try:
        yield
    finally:
        _logged_lines = None


class UserError(Exception):
    """Bad input or a bad argument. The command line prints it as one line, which is `printable`, and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class PartialFailureError(UserError):
    """Some of many inputs failed. `results` has the results of all inputs in order, with None (NaN in tensors) for
    those that failed; `errors` maps their indices to errors.
    """

    def __init__(self, message: str, results: Any, errors: Mapping[int, UserError]) -> None:
        super().__init__(message)
        self.results = results
        self.errors = dict(errors)


class ConfigError(UserError):
    """A configuration that cannot be read or built: an unknown setting, or a value out of range."""


class InapplicableError(ConfigError):
    """A setting that this configuration does not have, such as the heads of an LSTM."""


# Maximum names to compare, as that is slow; maximum names in a message; maximum characters of a name to compare.
_MAX_COMPARED, _MAX_NAMED, _MAX_LENGTH = 1000, 100, 200


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the most similar known name, or all of them if none is similar."""
    names = sorted(islice(known, _MAX_COMPARED))
    matches = difflib.get_close_matches(name[:_MAX_LENGTH], names, n=1, cutoff=0.5)
    omitted = f", ... ({len(names) - _MAX_NAMED} more)" if len(names) > _MAX_NAMED else ""
    return f"did you mean {matches[0]!r}?" if matches else f"choose from: {', '.join(names[:_MAX_NAMED])}{omitted}"
