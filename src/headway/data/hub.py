"""Datasets of the Hugging Face hub, streamed through the optional package `datasets`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from headway.data.splits import SIDES, named_side
from headway.errors import UserError, nearest

_COLUMN = "text"
_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class HubSplit(NamedTuple):
    """One split of a dataset; `content` changes with its data."""

    name: str
    config: str | None
    split: str
    side: str | None
    content: str

    def __str__(self) -> str:
        return f"{self.name}{f':{self.config}' if self.config else ''} ({self.split})"


def find_hub(name: str) -> list[HubSplit]:
    """The splits of `owner/name` or `owner/name:config` that are named train, validation or test."""
    if not _NAME.fullmatch(name):
        raise UserError(f"there is no file or folder {name}; check the name")
    dataset, _, config = name.partition(":")
    builder = _call(name, "load_dataset_builder", dataset, config or None)
    splits = list(_call(name, "get_dataset_split_names", dataset, config or None))
    named = [split for split in splits if named_side(split) in SIDES]
    if not named:
        raise UserError(f"dataset {name} has the splits {', '.join(splits)}; give one with a split named train")
    # As with files, names of sides count only where something is left to train on.
    sides = {split: named_side(split) for split in named}
    honoured = sides if "train" in sides.values() else dict.fromkeys(named)
    return [HubSplit(dataset, config or None, split, honoured[split], str(builder.hash)) for split in named]


def hub_texts(source: HubSplit) -> Iterator[str]:
    """The column "text" of a split, streamed."""
    rows = _call(str(source), "load_dataset", source.name, source.config, split=source.split, streaming=True)
    for number, row in enumerate(rows):
        text = row.get(_COLUMN)
        if not isinstance(text, str):
            raise UserError(f"{source}, row {number} has no text in {_COLUMN!r}; {nearest(_COLUMN, row)}")
        yield text


def _call(name: str, function: str, *arguments: Any, **options: Any) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"there is no file or folder {name}; a Hugging Face dataset needs: pip install 'headway[data]'"
        ) from error
    try:
        return getattr(datasets, function)(*arguments, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} is neither a file here nor a dataset that can be read ({first}); check it") from error
