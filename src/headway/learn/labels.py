"""The names of classes: what the data have, in an order that a run and those that start from it keep."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from headway.errors import UserError, nearest
from headway.formats.usage import read_usage

_RECIPE = "recipe.json"  # in a workspace it says that the run has begun, so that what lies there is its own


def labels_of(found: Collection[str], workspace: Path) -> tuple[str, ...]:
    """The names of classes in order: those of the run that is here; else those of the model it starts from, if they
    are the same, so that its head fits; else what the data have.
    """
    saved = read_usage(workspace).labels
    if saved and ((workspace / _RECIPE).exists() or set(saved) == set(found)):
        return saved
    if not found:
        raise UserError("the data hold no samples, so there is nothing to learn; give some")
    if len(found) < 2:
        raise UserError(
            f"the data have one label only, {next(iter(found))!r}, so there is nothing to tell apart; give more"
        )
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=int) if numbers else sorted(found))


def unknown_label(label: str, where: str, known: Collection[str]) -> UserError:
    near = nearest(label, known) if len(known) <= 200 else f"there are {len(known)}"
    return UserError(f"{where}: the label {label!r} is never seen in training ({near}); correct it, or train with it")


def save_labels(directory: Path, labels: tuple[str, ...]) -> None:
    """Write the labels into the usage.json beside a model, whatever else it says."""
    replace(read_usage(directory), labels=labels).save(directory)
