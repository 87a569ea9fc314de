"""What a published model says about its use, beside its weights: marks, labels, chat template, origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.config import from_dict, to_dict
from headway.errors import UserError
from headway.formats.durable import read_json, write_json

FILE = "usage.json"


@dataclass(frozen=True)
class Usage:
    """How a model that was trained elsewhere wants to be used.

    `family` and `settings` (its config.json as it was) let it be exported again, as does `generation`, its
    generation_config.json. `begin` is put before a prompt, any of `ends` ends a text. A decoder starts with
    `decoder_start`, then `forced` ids if there are; `suppressed` ids are never written. `labels` name the classes
    of a "classes" head, in order. `template` is a jinja2 chat template. `lowercase` and other changes of text are
    the tokenizer's own. `processor` is its preprocessor_config.json: how images become its inputs.
    """

    family: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    begin: int | None = None
    ends: tuple[int, ...] = ()
    pad: int | None = None
    mask: int | None = None
    decoder_start: int | None = None
    forced: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    template: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        write_json(directory / FILE, to_dict(self))


def read_usage(directory: Path) -> Usage:
    """What was saved beside a model; nothing is said where there is no such file."""
    path = directory / FILE
    return from_dict(Usage, read_json(path), str(path)) if path.is_file() else Usage()


def named(values: Sequence[float], labels: Sequence[str]) -> dict[str, float]:
    """What a head says of each class, by the classes' names, the greatest first; UserError where names are missing."""
    names = list(labels) or [f"LABEL_{number}" for number in range(len(values))]
    if len(names) != len(values):
        raise UserError(f"the model gives {len(values)} classes and {len(names)} have names; name them all")
    return dict(sorted(zip(names, values), key=lambda pair: -pair[1]))
