"""Answers to many files or lines: those of a folder, too; one that cannot be read does not cost the others theirs."""

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
Failures = list[tuple[Any, UserError]]  # what could not be read, and why

_AT_ONCE = 64  # items that are asked for together, between lines of output
_NUMBERED = re.compile(r"^\w+ \d+ of \d+ ")  # how a message about one of several texts begins

_FILE = re.compile(r"\S+\.(csv|tsv|jsonl|xlsx|txt)")


def images(given: Sequence[str]) -> list[str]:
    """The images that are named, and those below folders that are, in order. UserError for a folder of none."""
    from headway.domains.vision.samples import KINDS

    return _below(given, KINDS, "images")


def sounds(given: Sequence[str]) -> list[str]:
    """The sounds that are named, and those below folders that are, in order. UserError for a folder of none."""
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
            raise UserError(f"the folder {name} holds no {what} ({', '.join(kinds)}); give another, or files")
        found += map(str, files)
    return found


def texts(given: Sequence[str], command: str) -> list[str]:
    """The texts that are given. UserError for one that names a file or a folder, or a table that is not there;
    `command` reads lines.
    """
    name = next((name for name in given if os.path.exists(name) or _FILE.fullmatch(name)), None)
    if name is None:
        return list(given)
    if not os.path.exists(name):
        raise UserError(f"there is no file {name}, and this model reads texts; pass texts, or lines: {command} < FILE")
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder, and this model reads texts; pass texts, or lines: {command} < FILE")
    lines = f"pass its lines: {command} < {name}"
    if name.lower().endswith((".csv", ".tsv", ".jsonl", ".xlsx")):
        lines = f"write its column of texts into a file, one per line, and pass that: {command} < FILE"
    raise UserError(f"{name} is a file, and this model reads texts; {lines}")


def answers(
    items: Sequence[T],
    ask: Callable[[Sequence[T]], Any],
    failures: Failures,
    rows: Callable[[Any], Sequence[A]] = list,
    first: int | None = None,
) -> Iterator[tuple[T, A | None]]:
    """Each item with its answer, asked for together, of which `rows` makes one for each; None for an item that cannot
    be read, with its error among the `failures`. Where it is not said which one that is, each is asked for alone.
    Lines of standard input, of which the first has the number `first`, are named by their number, and an empty one has
    no answer. UserError where none of the others can be answered.
    """
    filled = [place for place, item in enumerate(items) if first is None or str(item).strip()]
    failed: dict[int, UserError] = {}
    if first is not None:
        empty = sorted(set(range(len(items))) - set(filled))
        failed |= {place: UserError(f"line {first + place} is empty; write a text there") for place in empty}
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
    """The answers, and the errors of items that have none, by their place."""
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
    """An error that names the line, in place of a text among those that were asked for, or before the `others`."""
    said = str(error)
    start = _NUMBERED.match(said)
    return UserError(f"line {number} {said[start.end() :]}" if start else others.format(number) + said)


def conclude(result: dict[str, Any], failures: Failures, terminal: Terminal) -> None:
    """The result of a command and, where something failed, what did: UserError with the first of it, after the others
    were noted.
    """
    errors = {} if not failures else {"errors": [{"file": item, "error": str(error)} for item, error in failures]}
    terminal.result({**result, **errors})
    for _, error in failures[1:]:
        terminal.note(f"headway: {error}")
    if failures:
        more = f" ({len(failures) - 1} more failed, see above)" if len(failures) > 1 else ""
        raise UserError(f"{failures[0][1]}{more}")
