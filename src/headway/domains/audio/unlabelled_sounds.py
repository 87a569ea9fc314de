"""Unlabelled sounds: from folders and tables, and those for pre-training next to the recordings of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from headway.data.table_files import TABLE_KINDS, read_table
from headway.domains.audio.classification import SoundDataset, crop_to_window, sound_statistics
from headway.domains.audio.sound_files import AUDIO_EXTENSIONS, content_key, read_sound
from headway.errors import UserError
from headway.io.files import file_of_row, user_path
from headway.learn import Recipe, Task
from headway.learn.objectives.masked_patches import distinct
from headway.learn.pretraining import UnlabelledData, similar_share

_MAX_COMPARED = 500  # recordings of each kind that are compared


def read_files(paths: Sequence[Path]) -> list[Path]:
    """The recordings below folders, in tables with the column `path`, and at the paths. UserError for other files and
    for folders without recordings.
    """
    found: list[Path] = []
    for path in map(user_path, paths):
        kinds = ", ".join(sorted(AUDIO_EXTENSIONS))
        if not path.exists():
            raise UserError(f"{path} does not exist; pass a folder with recordings ({kinds})")
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if not file.name.startswith("."))
            files = [file for file in inside if file.suffix.lower() in AUDIO_EXTENSIONS and file.is_file()]
            if not files:
                raise UserError(f"{path} contains no recordings; pass a folder with some ({kinds})")
            found += files
        elif path.suffix.lower() in TABLE_KINDS:
            table = read_table([path], {"path": "path"}, remedy="name the column path")
            for row, name in enumerate(table.columns["path"]):
                file = file_of_row(path, name, table.location(row))
                if not file.is_file():
                    raise UserError(f"{table.location(row)}: there is no file {name}; correct or remove the line")
                found.append(file)
        elif path.suffix.lower() in AUDIO_EXTENSIONS:
            found.append(path)
        else:
            raise UserError(
                f"{path} is not a recording; pass recordings ({kinds}), a folder of them, or a .csv with path"
            )
    return found


def read_unlabelled(recipe: Recipe, task: Task, paths: Sequence[Path]) -> UnlabelledData:
    """The recordings at the paths without duplicates and held-out ones, followed by the training recordings of the
    task. Raises UserError if none remains.
    """
    dataset = cast(SoundDataset, task.examples)
    if dataset.prepared is not None:
        raise UserError(f"{dataset.prepared.data.name} has no sound files to pre-train on; pass the folder of sounds")
    labelled_keys = [dataset.sounds.keys[int(row)] for row in dataset.rows]
    train = [int(row) for row in dataset.splits.rows("train")]
    files = read_files(paths)
    unlabelled = [files[row] for row in distinct([content_key(file) for file in files], frozenset(labelled_keys))]
    if not unlabelled:
        names = ", ".join(map(str, paths[:3]))
        raise UserError(f"{names}: all {len(files):,} recordings are also in the labelled data; pass other recordings")
    labelled = [dataset.files[train[row]] for row in distinct([labelled_keys[row] for row in train])]
    measure = lambda file: sound_statistics(crop_to_window(read_sound(file), dataset.frames))  # noqa: E731
    return UnlabelledData(
        [{"path": str(file)} for file in (*unlabelled, *labelled)],
        len(unlabelled),
        len(labelled),
        "recordings",
        similar_share(unlabelled, labelled, measure, _MAX_COMPARED),
        "of the labelled recordings are within the range of the unlabelled ones in their bands and changes over time",
        "which may have other content, length or noise",
        "with 10 recordings per class of spoken digits, training on the labels for all minutes was better",
    )
