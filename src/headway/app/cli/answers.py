"""Inputs from arguments and folders, and predictions for many inputs in which a bad input does not stop the others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headway.app.cli.terminal import Terminal
from headway.errors import SomeFailedError, UserError

T = TypeVar("T")
A = TypeVar("A")
Failures = list[tuple[Any, UserError]]  # inputs that failed, with their errors

_AT_ONCE = 64  # inputs per batch, between lines of output
_NUMBERED = re.compile(r"^\w+ \d+ of \d+ ")  # the start of a message about one of several texts

_FILE = re.compile(r"\S+\.(csv|tsv|jsonl|xlsx|txt)")


def images(given: Sequence[str]) -> list[str]:
    """The given image files and those below the given folders, in order. Raises UserError for a folder without any."""
    from headway.domains.vision.samples import KINDS

    return _below(given, KINDS, "images")


def sounds(given: Sequence[str]) -> list[str]:
    """The given sound files and those below the given folders, in order. Raises UserError for a folder without any."""
    from headway.domains.audio import KINDS

    return _below(given, KINDS, "sounds")


def _below(given: Sequence[str], kinds: Sequence[str], what: str) -> list[str]:
    found: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            found.append(name)
            continue
        files = [file for file in sorted(Path(name).rglob("*")) if file.suffix.lower() in kinds]
        if not files:
            raise UserError(f"folder {name} contains no {what} ({', '.join(kinds)}); pass another folder, or files")
        found += map(str, files)
    return found


def texts(given: Sequence[str], command: str) -> list[str]:
    """The given texts. Raises UserError for one that is the path of a file or folder, or looks like a missing table;
    `command` is the command that reads lines.
    """
    name = next((name for name in given if os.path.exists(name) or _FILE.fullmatch(name)), None)
    if name is None:
        return list(given)
    if not os.path.exists(name):
        raise UserError(
            f"file {name} does not exist, and this model takes texts; pass texts, or lines: {command} < FILE"
        )
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder, and this model takes texts; pass texts, or lines: {command} < FILE")
    lines = f"pass its lines: {command} < {name}"
    if name.lower().endswith((".csv", ".tsv", ".jsonl", ".xlsx")):
        lines = f"write its text column to a file, one text per line, and pass that: {command} < FILE"
    raise UserError(f"{name} is a file, and this model takes texts; {lines}")


def answers(
    items: Sequence[T],
    ask: Callable[[Sequence[T]], Any],
    failures: Failures,
    rows: Callable[[Any], Sequence[A]] = list,
    first: int | None = None,
) -> Iterator[tuple[T, A | None]]:
    """Each input with its prediction, or None for an input that fails; its error is appended to `failures`.

    Inputs are predicted in batches, and `rows` splits the output of a batch. If a batch fails without saying which
    input is at fault, its inputs are predicted one by one. With `first`, the inputs are lines of standard input from
    that line number on: errors name the line, and an empty line is a failure. Raises UserError if all inputs fail.
    """
    filled = [place for place, item in enumerate(items) if first is None or str(item).strip()]
    failed: dict[int, UserError] = {}
    if first is not None:
        empty = sorted(set(range(len(items))) - set(filled))
        failed |= {place: UserError(f"line {first + place} is empty; write a text on it") for place in empty}
    done, before = 0, len(failed)
    for start in range(0, len(filled), _AT_ONCE):
        places = filled[start : start + _AT_ONCE]
        told, wrong = _together([items[place] for place in places], ask, rows, alone=len(filled) == 1)
        found = dict(zip(places, told))
        if len(failed) + len(wrong) - before == len(filled):
            raise wrong[0] if first is None else _of_line(first + places[0], wrong[0], "")
        for n, error in wrong.items():
            failed[places[n]] = error if first is None else _of_line(first + places[n], error)
        yield from ((items[place], found.get(place)) for place in range(done, places[-1] + 1))
        done = places[-1] + 1
    yield from ((item, None) for item in items[done:])
    failures += [(items[place], failed[place]) for place in sorted(failed)]


def _together(
    some: Sequence[T], ask: Callable[[Sequence[T]], Any], rows: Callable[[Any], Sequence[A]], alone: bool
) -> tuple[Sequence[A | None], dict[int, UserError]]:
    """The predictions of a batch, and the errors of the inputs that failed, by index."""
    try:
        return rows(ask(some)), {}
    except SomeFailedError as error:
        told = rows(error.results)
        return [None if place in error.errors else row for place, row in enumerate(told)], dict(error.errors)
    except UserError as error:
        if alone:
            return [None], {0: error}
    errors: dict[int, UserError] = {}
    found: list[A | None] = []
    for place, item in enumerate(some):
        try:
            found.append(rows(ask([item]))[0])
        except UserError as error:
            found.append(None)
            errors[place] = error
    return found, errors


def _of_line(number: int, error: UserError, others: str = "line {}: ") -> UserError:
    """The error with its line number, which replaces the number of a text or goes before the message."""
    said = str(error)
    start = _NUMBERED.match(said)
    return UserError(f"line {number} {said[start.end() :]}" if start else others.format(number) + said)


def conclude(result: dict[str, Any], failures: Failures, terminal: Terminal) -> None:
    """Print the result and failures of a command; raise UserError with the first failure after printing the others."""
    errors = {} if not failures else {"errors": [{"file": item, "error": str(error)} for item, error in failures]}
    terminal.result({**result, **errors})
    for _, error in failures[1:]:
        terminal.note(f"headway: {error}")
    if failures:
        more = f" ({len(failures) - 1} more failed; see above)" if len(failures) > 1 else ""
        raise UserError(f"{failures[0][1]}{more}")
