"""Labelled files: one folder per class, or a table of paths and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.data.files import is_run
from headway.data.splits import named_side, side_number
from headway.data.tables import TABLE_KINDS, read_table
from headway.errors import UserError, logger
from headway.received import place_of

_LOG = logger(__name__)
_SHOWN = 3  # file kinds listed in a message


@dataclass(frozen=True)
class Labelled:
    """Files with their labels and named splits, uint8 [N] (`split_code`; 0 for none).

    `locations` names the source of each sample, for messages. Labels of a table may be missing (empty) or lists.
    `from_folders` is true if all labels are folder names.
    """

    files: list[Path]
    labels: list[str]
    named: np.ndarray
    places: list[str]
    folders: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def select(self, rows: np.ndarray) -> Labelled:
        """The files of these rows, in this order."""
        chosen = rows.tolist()
        files, labels = [self.files[row] for row in chosen], [self.labels[row] for row in chosen]
        return Labelled(files, labels, self.named[rows], [self.places[row] for row in chosen], self.folders)


def read_labelled(paths: Sequence[Path | str], kinds: Collection[str], what: str, label: str = "label") -> Labelled:
    """Read files of `kinds` (".png", ...) from folders with one folder per class, optionally inside folders named
    train, val and test; or the files in the columns `path` and `label` of .csv, .tsv and .jsonl files, relative to the
    table's folder (see `read_table` for labels that are lists, or several columns).

    `noun` names such a file in messages ("image"). Files of other kinds in a class folder are skipped and counted in
    the log. UserError for a path that is neither, a class without files, or a missing file.
    """
    found = Labelled([], [], np.zeros(0, np.uint8), [])
    named: list[int] = []
    tables = False
    if not paths:
        raise UserError(f"no {what}s; pass a folder with one folder per class, or a .csv of paths and labels")
    for path in map(Path, paths):
        place = place_of(path)
        tables = tables or not place.is_dir()
        rows = _of_folder(place, kinds, what) if place.is_dir() else _of_table(place, what, label)
        for file, label, side, where in rows:
            found.files.append(file)
            found.labels.append(label)
            found.places.append(where)
            named.append(side)
    return Labelled(found.files, found.labels, np.array(named, np.uint8), found.places, not tables)


_Row = tuple[Path, str, int, str]


def _of_table(path: Path, what: str, label: str) -> Iterator[_Row]:
    if path.suffix.lower() not in TABLE_KINDS:
        fact = "is neither a folder nor a table" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {fact}; pass a folder of {what}s with one folder per class, or a .csv of paths and labels"
        )
    columns = {"path": "path", "label": label}
    table = read_table([path], columns, remedy="name the columns path and label", answer="label")
    for row, (name, answer) in enumerate(zip(table.columns["path"], table.columns["label"])):
        file = path.parent / Path(name).expanduser()
        if not file.is_file():
            raise UserError(
                f"{table.place(row)}: there is no file {name} in {path.parent}; correct or remove the line"
            )
        yield file, answer, int(table.named[row]), table.place(row)


def _of_folder(folder: Path, kinds: Collection[str], what: str) -> Iterator[_Row]:
    inner = _folders(folder)
    sides = {each: named_side(each.name) for each in inner}
    if not inner:
        raise UserError(
            f"{folder} contains no folders; put the {what}s of each class into a folder named after the class"
        )
    if any(sides.values()) and not all(sides.values()):
        odd = next(each for each, side in sides.items() if side is None)
        even = next(each for each, side in sides.items() if side is not None)
        raise UserError(
            f"{folder} contains {even.name}, which is a split, and {odd.name}, which is not; put class folders into "
            "train, val and test, or all of them directly into one folder"
        )
    for each in inner:
        side = sides[each]
        if side is None:
            yield from _of_class(each, 0, kinds, what)
            continue
        if not _folders(each):
            raise UserError(f"{each} contains no folders; add one folder per class")
        for label in _folders(each):
            yield from _of_class(label, side_number(side), kinds, what)


def _of_class(folder: Path, side: int, kinds: Collection[str], what: str) -> Iterator[_Row]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    kept = [path for path in files if path.suffix.lower() in kinds]
    if not kept:
        raise UserError(
            f"the class folder {folder} has no {what}; add some ({', '.join(sorted(kinds))}), or remove the folder"
        )
    if len(kept) < len(files):
        others = Counter(path.suffix.lower() or path.name for path in files if path not in set(kept))
        shown = ", ".join(f"{count} {name}" for name, count in others.most_common(_SHOWN))
        _LOG.warning("%s: skipped %d files that are not %ss (%s)", folder, len(files) - len(kept), what, shown)
    for path in kept:
        yield path, folder.name, side, str(path)


def _folders(folder: Path) -> list[Path]:
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not is_run(path))
