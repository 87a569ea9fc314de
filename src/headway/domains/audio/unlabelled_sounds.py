"""Unlabelled sounds: from folders and tables, and those for pre-training next to the recordings of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_index import INDEX_FILE
from headway.data.prepared.shard_reader import is_index, is_prepared
from headway.data.table_files import TABLE_KINDS, read_table
from headway.data.unlabelled_files import UnlabelledFiles
from headway.domains.audio.classification import SoundDataset, crop_to_window, sound_statistics
from headway.domains.audio.mel import RATE
from headway.domains.audio.sound_files import (
    AUDIO_EXTENSIONS,
    FileSound,
    Sounds,
    content_key,
    open_sounds,
    read_sound,
)
from headway.domains.audio.sound_shards import JoinedSounds, PreparedSounds
from headway.errors import UserError
from headway.io.files import user_path
from headway.io.remote import remote_url
from headway.learn import Recipe, Task
from headway.learn.objectives.masked_patches import distinct
from headway.learn.pretraining import UnlabelledData, similar_share

_MAX_COMPARED = 500  # recordings of each kind that are compared


class UnlabelledSounds(UnlabelledFiles):
    """Recordings in files of their own, or prepared."""

    kind = "sounds"

    def open_prepared(self, folder: Path) -> PreparedSamples:
        return PreparedSamples.open([folder], "sounds")

    def keys(self) -> list[str]:
        """Keys that are equal for files with equal contents."""
        keys = [""] * len(self)
        for rows, samples in self.parts():
            inner = (content_key(self.files[row]) for row in rows.tolist()) if samples is None else samples.hex_keys()
            for row, key in zip(rows.tolist(), inner):
                keys[row] = key
        return keys

    def open(self, skip: bool) -> Sounds:
        """The recordings at the model's rate. UserErrors as in `open_sounds`."""
        sources = []
        for rows, samples in self.parts():
            if samples is None:
                sources.append(open_sounds([self.files[row] for row in rows.tolist()], skip))
            else:
                sources.append(PreparedSounds([Path(name) for name in samples.names], samples))
        return sources[0] if len(sources) == 1 else JoinedSounds(sources, [part.rows for part in self.parts()])

    def sound(self, row: int) -> Float[Tensor, "N"]:
        """A recording at the model's rate. UserError for a file that cannot be read."""
        file, index = self.files[row], self.indices[row]
        if index is None:
            return read_sound(file)
        return PreparedSounds([], self.prepared[file].select(np.array([index])))[0]

    def seconds(self, row: int) -> float:
        """The length of a recording. UserError for a file that cannot be read."""
        file, index = self.files[row], self.indices[row]
        return FileSound(file).seconds if index is None else float(self.prepared[file].lengths[index]) / RATE


def read_files(paths: Sequence[Path]) -> UnlabelledSounds:
    """The recordings below folders, prepared ones, those in tables with the column `path`, and those at the paths. A
    table may name an index.json of prepared recordings and, in the column `sound`, an index from 0 on. UserError for
    other files and for folders without recordings.
    """
    found, kinds = UnlabelledSounds(), ", ".join(sorted(AUDIO_EXTENSIONS))
    for path in paths:
        if is_prepared(path):
            index_file = path / INDEX_FILE
            found.add_numbered(index_file, len(found.samples_of(index_file)), None, "")
            continue
        path = user_path(path)
        if not path.exists():
            raise UserError(f"{path} does not exist; pass a folder with recordings ({kinds})")
        if path.is_dir():
            inside = (file for file in sorted(path.rglob("*")) if not file.name.startswith("."))
            files = [file for file in inside if file.suffix.lower() in AUDIO_EXTENSIONS and file.is_file()]
            if not files:
                raise UserError(f"{path} contains no recordings; pass a folder with some ({kinds})")
            for file in files:
                found.add(file)
        elif path.suffix.lower() in TABLE_KINDS:
            table = read_table([path], {"path": "path", "sound": "sound"}, ("sound",), "name the column path")
            indices = table.columns.get("sound", [None] * len(table))
            for row, (name, index) in enumerate(zip(table.columns["path"], indices)):
                file = found.file_of_row(path, name, table.location(row))
                if is_index(file):
                    found.add_numbered(file, len(found.samples_of(file)), index, table.location(row))
                else:
                    found.add(file)
        elif path.suffix.lower() in AUDIO_EXTENSIONS:
            found.add(path)
        else:
            raise UserError(
                f"{path} is not a recording; pass recordings ({kinds}), a folder of them, or a .csv with path"
            )
    return found


def read_unlabelled(recipe: Recipe, task: Task, paths: Sequence[Path]) -> UnlabelledData:
    """The recordings at the paths without duplicates and held-out ones, followed by the training recordings of the
    task. Raises UserError if none remains.
    """
    dataset, found = cast(SoundDataset, task.examples), read_files(paths)
    labelled_keys = [dataset.sounds.keys[int(row)] for row in dataset.rows]
    train = [int(row) for row in dataset.splits.rows("train")]
    unlabelled = found.select(distinct(found.keys(), frozenset(labelled_keys)))
    if not len(unlabelled):
        names = ", ".join(str(remote_url(path) or path) for path in paths[:3])
        raise UserError(f"{names}: all {len(found):,} recordings are also in the labelled data; pass other recordings")
    labelled = UnlabelledSounds()
    rows = [train[row] for row in distinct([labelled_keys[row] for row in train])]
    if dataset.prepared is not None:
        labelled.add_prepared(dataset.prepared, dataset.rows[rows])
    else:
        for row in rows:
            labelled.add(dataset.files[row])
    first, second = ([(sounds, row) for row in range(len(sounds))] for sounds in (unlabelled, labelled))
    measure = lambda sound: sound_statistics(crop_to_window(sound[0].sound(sound[1]), dataset.frames))  # noqa: E731
    return UnlabelledData(
        [*unlabelled.rows("sound"), *labelled.rows("sound")],
        len(unlabelled),
        len(labelled),
        "recordings",
        similar_share(first, second, measure, _MAX_COMPARED),
        "of the labelled recordings are within the range of the unlabelled ones in their bands and changes over time",
        "which may have other content, length or noise",
        "with 10 recordings per class of spoken digits, training on the labels for all minutes was better",
    )
