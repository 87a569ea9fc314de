"""Inputs from arguments and folders, and predictions for many inputs in which a bad input does not stop the others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headway.app.cli.terminal import Terminal
from headway.errors import PartialFailureError, UserError
from headway.io.remote import UnavailableError

T = TypeVar("T")
A = TypeVar("A")
Failures = list[tuple[Any, UserError]]  # inputs that failed, with their errors

BATCH_SIZE = 64  # inputs per batch, between lines of output
_INPUT_NUMBER = re.compile(r"^\w+ \d+ of \d+ ")  # the start of a message about one of several inputs

_TABLE_NAME = re.compile(r"\S+\.(csv|tsv|jsonl|xlsx|txt)")


def image_paths(names: Sequence[str]) -> list[str]:
    """The given image files and those below the given folders, in order. Raises UserError for a folder without any."""
    from headway.domains.vision.labelled_images import IMAGE_EXTENSIONS

    return _expand_folders(names, IMAGE_EXTENSIONS, "images")


def sound_paths(names: Sequence[str]) -> list[str]:
    """The given audio files and those below the given folders, in order. Raises UserError for a folder without any."""
    from headway.domains.audio import AUDIO_EXTENSIONS

    return _expand_folders(names, AUDIO_EXTENSIONS, "audio files")


def _expand_folders(names: Sequence[str], suffixes: Sequence[str], noun: str) -> list[str]:
    paths: list[str] = []
    for name in names:
        if not Path(name).is_dir():
            paths.append(name)
            continue
        files = [file for file in sorted(Path(name).rglob("*")) if file.suffix.lower() in suffixes]
        if not files:
            raise UserError(f"folder {name} contains no {noun} ({', '.join(suffixes)}); pass another folder, or files")
        paths += map(str, files)
    return paths


def text_inputs(items: Sequence[str], command: str) -> list[str]:
    """The given texts. Raises UserError for one that is a file or folder path, or looks like a missing table;
    `command` is the command that reads lines.
    """
    name = next((name for name in items if os.path.exists(name) or _TABLE_NAME.fullmatch(name)), None)
    if name is None:
        return list(items)
    if not os.path.exists(name):
        raise UserError(f"file {name} does not exist, and this model takes text; pass text, or lines: {command} < FILE")
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder, but this model takes text; pass text, or lines: {command} < FILE")
    lines = f"pass its lines: {command} < {name}"
    if name.lower().endswith((".csv", ".tsv", ".jsonl", ".xlsx")):
        lines = f"write its text column to a file, one text per line, and pass that: {command} < FILE"
    raise UserError(f"{name} is a file, but this model takes text; {lines}")


def predict_each(
    items: Sequence[T],
    predict: Callable[[Sequence[T]], Any],
    failures: Failures,
    rows: Callable[[Any], Sequence[A]] = list,
    first: int | None = None,
    total: int | None = None,
) -> Iterator[tuple[T, A | None]]:
    """Each input with its prediction, or None for an input that fails; its error is appended to `failures`.

    Inputs are predicted in batches, and `rows` splits the output of a batch. If a batch fails without identifying which
    input is at fault, its inputs are predicted one by one. With `first`, the inputs are lines of standard input from
    that line number on: errors name the line, and an empty line is a failure. Raises UserError if all inputs fail,
    except if they are only a block of `total` inputs, whose part could never be complete.
    """
    nonempty = [index for index, item in enumerate(items) if first is None or str(item).strip()]
    errors: dict[int, UserError] = {}
    if first is not None:
        empty = sorted(set(range(len(items))) - set(nonempty))
        errors |= {index: UserError(f"line {first + index} is empty; write some text on it") for index in empty}
    done, num_empty = 0, len(errors)
    for start in range(0, len(nonempty), BATCH_SIZE):
        indices = nonempty[start : start + BATCH_SIZE]
        batch = [items[index] for index in indices]
        outputs: list[A | None] = [None] * len(batch)
        batch_errors: dict[int, UserError] = {}
        try:
            outputs = list(rows(predict(batch)))
        except PartialFailureError as error:
            outputs = [None if offset in error.errors else row for offset, row in enumerate(rows(error.results))]
            batch_errors = dict(error.errors)
        except UserError as error:
            if len(nonempty) == 1:
                batch_errors[0] = error
            for offset, item in enumerate(batch if len(nonempty) > 1 else ()):
                try:
                    outputs[offset] = rows(predict([item]))[0]
                except UserError as item_error:
                    batch_errors[offset] = item_error
        predictions = dict(zip(indices, outputs))
        if len(errors) + len(batch_errors) - num_empty == len(nonempty) and total in (None, len(items)):
            raise batch_errors[0] if first is None else _with_line_number(first + indices[0], batch_errors[0], "")
        for offset, error in batch_errors.items():
            errors[indices[offset]] = error if first is None else _with_line_number(first + indices[offset], error)
        yield from ((items[index], predictions.get(index)) for index in range(done, indices[-1] + 1))
        done = indices[-1] + 1
    yield from ((item, None) for item in items[done:])
    failures += [(items[index], errors[index]) for index in sorted(errors)]


def _with_line_number(line_number: int, error: UserError, prefix: str = "line {}: ") -> UserError:
    """The error with its line number, which replaces the number of a text or goes before the message."""
    message = str(error)
    match = _INPUT_NUMBER.match(message)
    message = f"line {line_number} {message[match.end() :]}" if match else prefix.format(line_number) + message
    return UnavailableError(message) if isinstance(error, UnavailableError) else UserError(message)


def report_outcome(result: dict[str, Any], failures: Failures, terminal: Terminal) -> None:
    """Print the result and failures of a command; raise UserError with the first failure after printing the others."""
    errors = {} if not failures else {"errors": [{"file": item, "error": str(error)} for item, error in failures]}
    terminal.print_result({**result, **errors})
    for _, error in failures[1:]:
        terminal.note(f"headway: {error}")
    if failures:
        more = f" ({len(failures) - 1} more failed; see above)" if len(failures) > 1 else ""
        raise UserError(f"{failures[0][1]}{more}")
