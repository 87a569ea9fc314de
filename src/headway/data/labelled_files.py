"""Labelled files: one folder per class, a table of paths and labels, or IDX files, the format of MNIST and similar
sets (a header of sizes, then bytes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headway.data.input_files import COMPRESSIONS, File, is_run_folder, read_blocks, warn_of_skipped
from headway.data.splits import split_code, split_from_name
from headway.data.table_files import TABLE_KINDS, read_table
from headway.errors import ConfigError, UserError
from headway.io.files import check_in_memory, file_of_row, user_path

_UNSIGNED_BYTE = 0x08  # the header's code for unsigned bytes
_NAME = re.compile(r"(?P<stem>.*?)[-_.]?(?P<what>images|labels)[-_.]idx\d-ubyte$")


@dataclass(frozen=True)
class IdxPart:
    """Greyscale images and their class indices, from two files; `named_split` is the split in their name."""

    images: UInt8[np.ndarray, "N H W"]
    labels: UInt8[np.ndarray, "N"]
    named_split: str | None
    path: str


def is_idx(path: Path) -> bool:
    return _NAME.fullmatch(_without_compression(path.name)) is not None


def idx_files(folder: Path) -> list[Path]:
    """The IDX files directly in a folder."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_idx(path))


def read_idx_pairs(paths: Sequence[Path]) -> list[IdxPart]:
    """Read pairs of files NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, compressed or not. NAME is train, t10k
    (MNIST's test split) or any other. UserError if half of a pair is missing, counts differ or a file is damaged.
    """
    pairs: dict[str, dict[str, Path]] = {}
    for path in paths:
        match = _NAME.fullmatch(_without_compression(path.name))
        if match is None:
            raise UserError(f"{path} is not named like an IDX file; use a name such as train-images-idx3-ubyte.gz")
        pairs.setdefault(match["stem"], {})[match["what"]] = path
    return [_read_pair(stem, pair) for stem, pair in pairs.items()]


def _read_pair(stem: str, pair: dict[str, Path]) -> IdxPart:
    for name, other_name in (("images", "labels"), ("labels", "images")):
        if name not in pair:
            raise UserError(f"{pair[other_name]} has no file of {name} next to it; add that file")
    images, labels = read_idx(pair["images"], 3), read_idx(pair["labels"], 1)
    if len(images) != len(labels):
        raise UserError(
            f"{pair['images']} contains {len(images):,} images but {pair['labels'].name} {len(labels):,} labels; "
            "download both again"
        )
    if 0 in images.shape:
        raise UserError(f"{pair['images']} is empty ({' x '.join(map(str, images.shape))} pixels); download it again")
    split = "test" if stem == "t10k" else split_from_name(stem)
    return IdxPart(images, labels, split, str(pair["images"]))


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The bytes of one file. UserError for another type or number of dimensions, a wrong length or damage."""
    start = 4 + 4 * dimensions
    buffer, expected = bytearray(), None
    for block in read_blocks(File(path)):
        buffer += block
        if expected is None and len(buffer) >= start:
            expected = start + math.prod(_header_sizes(path, buffer, dimensions))
            check_in_memory(str(path), path.stat().st_size, expected)
        if expected is not None and len(buffer) > expected:
            raise UserError(f"{path} is longer than the {expected:,} bytes in its header; download it again")
    if expected is None or len(buffer) < expected:
        comparison = f"of the {expected:,} in its header" if expected is not None else "and an incomplete header"
        raise UserError(f"{path} is truncated: it has {len(buffer):,} bytes {comparison}; download it again")
    return np.frombuffer(buffer, np.uint8, offset=start).reshape(_header_sizes(path, buffer, dimensions))


def _header_sizes(path: Path, buffer: bytearray, dimensions: int) -> tuple[int, ...]:
    if buffer[:2] != b"\0\0" or buffer[2] != _UNSIGNED_BYTE or buffer[3] != dimensions:
        raise UserError(
            f"{path} starts with the bytes {bytes(buffer[:4]).hex(' ')}, not with 00 00 08 0{dimensions} as IDX files "
            f"with {dimensions} dimensions do; use files in MNIST's format"
        )
    return tuple(int.from_bytes(buffer[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))


def _without_compression(name: str) -> str:
    """A file's name without a compression extension."""
    path = Path(name)
    return path.stem if path.suffix.lower() in COMPRESSIONS else name


@dataclass(frozen=True)
class LabelledFiles:
    """Files with their labels and named splits, uint8 [N] (`split_code`; 0 for none).

    `locations` names the source of each sample, for messages. Labels from a table may be missing (empty) or lists.
    `from_folders` is true if all labels are folder names. Samples of one of the `groups`, if set, stay in one split.
    `indices`, if set, are those of samples in files of several, or None.
    """

    files: list[Path]
    labels: list[str]
    named_splits: np.ndarray
    locations: list[str]
    from_folders: bool = True
    groups: list[str] | None = None
    indices: Sequence[int | None] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def index(self, row: int) -> int | None:
        """The index of a sample in its file; None for a file of one."""
        return None if self.indices is None else self.indices[row]

    def select(self, rows: np.ndarray) -> LabelledFiles:
        """The files of these rows, in this order."""
        indices = rows.tolist()
        files, labels = [self.files[row] for row in indices], [self.labels[row] for row in indices]
        locations = [self.locations[row] for row in indices]
        groups = None if self.groups is None else [self.groups[row] for row in indices]
        return LabelledFiles(files, labels, self.named_splits[rows], locations, self.from_folders, groups)


def file_groups(files: Sequence[Path], setting: str, locations: Sequence[str]) -> list[str]:
    """The groups in file names: the part that matches the one group in parentheses of a regular expression. With a
    slash in the expression, it is searched in the complete path.

    ConfigError for an invalid expression, UserError for a file that does not match.
    """
    try:
        pattern = re.compile(setting)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"task.group={setting!r} is not a regular expression ({error}); correct it") from None
    if pattern.groups != 1:
        raise ConfigError(
            f"task.group={setting!r} has {pattern.groups} groups in parentheses; use one, such as '_(.*)_'"
        )
    groups = []
    for file, location in zip(files, locations):
        text = file.as_posix() if "/" in setting else file.name
        match = pattern.search(text)
        if match is None or not match[1]:
            raise UserError(
                f"{location}: task.group={setting!r} does not match {text!r}; correct the expression, or rename the "
                "file"
            )
        groups.append(match[1])
    return groups


def read_labelled_files(
    paths: Sequence[Path | str], kinds: Collection[str], noun: str, label: str = "label", group: str | None = None
) -> LabelledFiles:
    """Read files of `kinds` (".png", ...) from folders with one folder per class, optionally inside folders named
    train, val and test; or the files in the columns `path` and `label` of .csv, .tsv and .jsonl files, relative to the
    table's folder (see `read_table` for labels that are lists, or several columns). `group` is a column of the tables
    or, with parentheses, a regular expression (`file_groups`).

    `noun` names such a file in messages ("image"). Files of other kinds in a class folder are skipped and counted in
    the log. UserError for a path that is neither, a class without files, or a missing file.
    """
    labelled = LabelledFiles([], [], np.zeros(0, np.uint8), [])
    named_splits: list[int] = []
    has_tables = False
    column = None if group is None or "(" in group else group
    groups: list[str] = []
    if not paths:
        raise UserError(f"no {noun}s; pass a folder with one folder per class, or a .csv of paths and labels")
    for path in map(Path, paths):
        source = user_path(path)
        has_tables = has_tables or not source.is_dir()
        if column is not None and source.is_dir():
            raise UserError(
                f"{source} is a folder, without a column {column!r}; set task.group to a regular expression for file "
                "names with one group in parentheses, such as '_(.*)_'"
            )
        rows = _rows_of_folder(source, kinds, noun) if source.is_dir() else _rows_of_table(source, noun, label, column)
        for file, target, code, location, group_name in rows:
            labelled.files.append(file)
            labelled.labels.append(target)
            labelled.locations.append(location)
            named_splits.append(code)
            groups.append(group_name)
    if group is not None and column is None:
        groups = file_groups(labelled.files, group, labelled.locations)
    return LabelledFiles(
        labelled.files,
        labelled.labels,
        np.array(named_splits, np.uint8),
        labelled.locations,
        not has_tables,
        None if group is None else groups,
    )


_Row = tuple[Path, str, int, str, str]


def _rows_of_table(path: Path, noun: str, label: str, group: str | None) -> Iterator[_Row]:
    if path.suffix.lower() not in TABLE_KINDS:
        fact = "is neither a folder nor a table" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {fact}; pass a folder of {noun}s with one folder per class, or a .csv of paths and labels"
        )
    columns = {"path": "path", "label": label, **({} if group is None else {"group": group})}
    remedy = "name the columns path and label" if group is None else f"name the columns path, label and {group}"
    table = read_table([path], columns, remedy=remedy, target="label")
    groups = table.columns.get("group", [""] * len(table))
    for row, (name, target) in enumerate(zip(table.columns["path"], table.columns["label"])):
        file = file_of_row(path, name, table.location(row))
        if not file.is_file():
            raise UserError(
                f"{table.location(row)}: there is no file {name} in {path.parent}; correct or remove the line"
            )
        yield file, target, int(table.named_splits[row]), table.location(row), groups[row]


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
    warn_of_skipped(folder, [path.name for path in files if path.suffix.lower() not in kinds], f"{noun}s")
    for path in matching:
        yield path, folder.name, code, str(path), ""


def _subfolders(folder: Path) -> list[Path]:
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not is_run_folder(path))
