"""Labelled files: one folder per class, or a table of paths and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.data.input_files import is_run_folder
from headway.data.splits import split_code, split_from_name
from headway.data.table_files import TABLE_KINDS, read_table
from headway.errors import UserError, logger
from headway.safe_io import user_path

_LOG = logger(__name__)
_MAX_LISTED = 3  # file kinds listed in a message


@dataclass(frozen=True)
class LabelledFiles:
    """Files with their labels and named splits, uint8 [N] (`split_code`; 0 for none).

    `locations` names the source of each sample, for messages. Labels from a table may be missing (empty) or lists.
    `from_folders` is true if all labels are folder names.
    """

    files: list[Path]
    labels: list[str]
    named_splits: np.ndarray
    locations: list[str]
    from_folders: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def select(self, rows: np.ndarray) -> LabelledFiles:
        """The files of these rows, in this order."""
        indices = rows.tolist()
        files, labels = [self.files[row] for row in indices], [self.labels[row] for row in indices]
        return LabelledFiles(
            files, labels, self.named_splits[rows], [self.locations[row] for row in indices], self.from_folders
        )


def read_labelled_files(
    paths: Sequence[Path | str], kinds: Collection[str], noun: str, label: str = "label"
) -> LabelledFiles:
    """Read files of `kinds` (".png", ...) from folders with one folder per class, optionally inside folders named
    train, val and test; or the files in the columns `path` and `label` of .csv, .tsv and .jsonl files, relative to the
    table's folder (see `read_table` for labels that are lists, or several columns).

    `noun` names such a file in messages ("image"). Files of other kinds in a class folder are skipped and counted in
    the log. UserError for a path that is neither, a class without files, or a missing file.
    """
    labelled = LabelledFiles([], [], np.zeros(0, np.uint8), [])
    named_splits: list[int] = []
    has_tables = False
    if not paths:
        raise UserError(f"no {noun}s; pass a folder with one folder per class, or a .csv of paths and labels")
    for path in map(Path, paths):
        source = user_path(path)
        has_tables = has_tables or not source.is_dir()
        rows = _rows_of_folder(source, kinds, noun) if source.is_dir() else _rows_of_table(source, noun, label)
        for file, label, code, location in rows:
            labelled.files.append(file)
            labelled.labels.append(label)
            labelled.locations.append(location)
            named_splits.append(code)
    return LabelledFiles(
        labelled.files, labelled.labels, np.array(named_splits, np.uint8), labelled.locations, not has_tables
    )


_Row = tuple[Path, str, int, str]


def _rows_of_table(path: Path, noun: str, label: str) -> Iterator[_Row]:
    if path.suffix.lower() not in TABLE_KINDS:
        fact = "is neither a folder nor a table" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {fact}; pass a folder of {noun}s with one folder per class, or a .csv of paths and labels"
        )
    columns = {"path": "path", "label": label}
    table = read_table([path], columns, remedy="name the columns path and label", target="label")
    for row, (name, target) in enumerate(zip(table.columns["path"], table.columns["label"])):
        file = path.parent / Path(name).expanduser()
        if not file.is_file():
            raise UserError(
                f"{table.location(row)}: there is no file {name} in {path.parent}; correct or remove the line"
            )
        yield file, target, int(table.named_splits[row]), table.location(row)


def _rows_of_folder(folder: Path, kinds: Collection[str], noun: str) -> Iterator[_Row]:
    subfolders = _subfolders(folder)
    splits = {subfolder: split_from_name(subfolder.name) for subfolder in subfolders}
    if not subfolders:
        raise UserError(
            f"{folder} contains no folders; put the {noun}s of each class into a folder named after the class"
        )
    if any(splits.values()) and not all(splits.values()):
        unnamed = next(subfolder for subfolder, split in splits.items() if split is None)
        named = next(subfolder for subfolder, split in splits.items() if split is not None)
        raise UserError(
            f"{folder} contains {named.name}, which is a split, and {unnamed.name}, which is not; put class folders "
            "into "
            "train, val and test, or all of them directly into one folder"
        )
    for subfolder in subfolders:
        split = splits[subfolder]
        if split is None:
            yield from _rows_of_class(subfolder, 0, kinds, noun)
            continue
        if not _subfolders(subfolder):
            raise UserError(f"{subfolder} contains no folders; add one folder per class")
        for label in _subfolders(subfolder):
            yield from _rows_of_class(label, split_code(split), kinds, noun)


def _rows_of_class(folder: Path, code: int, kinds: Collection[str], noun: str) -> Iterator[_Row]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    matching = [path for path in files if path.suffix.lower() in kinds]
    if not matching:
        raise UserError(
            f"the class folder {folder} has no {noun}; add some ({', '.join(sorted(kinds))}), or remove the folder"
        )
    if len(matching) < len(files):
        skipped = Counter(path.suffix.lower() or path.name for path in files if path not in set(matching))
        listing = ", ".join(f"{count} {name}" for name, count in skipped.most_common(_MAX_LISTED))
        _LOG.warning("%s: skipped %d files that are not %ss (%s)", folder, len(files) - len(matching), noun, listing)
    for path in matching:
        yield path, folder.name, code, str(path)


def _subfolders(folder: Path) -> list[Path]:
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not is_run_folder(path))
