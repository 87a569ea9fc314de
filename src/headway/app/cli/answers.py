"""Answers to many files: those of a folder too, and one that is damaged does not cost the others theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headway.app.cli.terminal import Terminal
from headway.errors import SomeFailedError, UserError

T = TypeVar("T")
A = TypeVar("A")
Failures = list[tuple[Any, UserError]]  # what could not be read, and why

_AT_ONCE = 64  # items that are asked for together, between lines of output


def images(given: Sequence[str]) -> list[str]:
    """The images that are named, and those below folders that are, in order. UserError for a folder of none."""
    from headway.domains.vision.samples import KINDS

    found: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            found.append(name)
            continue
        files = [file for file in sorted(Path(name).rglob("*")) if file.suffix.lower() in KINDS]
        if not files:
            raise UserError(f"the folder {name} holds no images ({', '.join(KINDS)}); give another, or files")
        found += map(str, files)
    return found


def answers(
    items: Sequence[T],
    ask: Callable[[Sequence[T]], Any],
    failures: Failures,
    rows: Callable[[Any], Sequence[A]] = list,
) -> Iterator[tuple[T, A | None]]:
    """Each item with its answer, asked for together, of which `rows` makes one for each; None for an item that cannot
    be read, with its error among the `failures`. Where it is not said which one that is, each is asked for alone.
    UserError where none of all can be answered.
    """
    before = len(failures)
    for start in range(0, len(items), _AT_ONCE):
        some = items[start : start + _AT_ONCE]
        try:
            yield from zip(some, rows(ask(some)))
            continue
        except SomeFailedError as error:
            failures += [(some[place], wrong) for place, wrong in error.errors.items()]
            together: UserError = next(iter(error.errors.values()))
            told = [None if place in error.errors else row for place, row in enumerate(rows(error.results))]
        except UserError as error:
            if len(items) == 1:
                raise
            together = error
            told = [_alone(item, lambda one: rows(ask(one)), failures) for item in some]
        if len(failures) - before == len(items):
            raise together
        yield from zip(some, told)


def _alone(item: T, ask: Callable[[Sequence[T]], Sequence[A]], failures: Failures) -> A | None:
    try:
        return ask([item])[0]
    except UserError as error:
        failures.append((item, error))
        return None


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
