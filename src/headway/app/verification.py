"""`verify`: compare the files of a run or model with their digests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from headway.errors import UserError
from headway.formats.native import QUANTISED
from headway.formats.open import open_config
from headway.io.arguments import check_types
from headway.io.durable import find_damage, is_sealed, read_digests
from headway.io.hub import find_folder
from headway.learn.run import RunDirectory


class Verification(NamedTuple):
    """The result of `verify`: the number of files with digests and their bytes; one line per damaged file; and the
    folders and files without digests, which could only be opened.
    """

    files: int
    bytes: int
    damaged: tuple[str, ...]
    unknown: tuple[Path, ...]


@check_types
def verify(path: str | Path) -> Verification:
    """Compare a run and its checkpoints, or a model that headway wrote, with the stored digests.

    A run in training, or one that was killed, has digests only of its checkpoints. A model from elsewhere has no
    digests; opening it detects truncated files. Raises UserError for a path that is neither a run nor a model.
    """
    model_folder = find_folder(path)
    run = RunDirectory(model_folder)
    folders = [
        model_folder,
        *(
            path
            for checkpoint_folder in (run.checkpoints, run.pre_decay)
            for path in sorted(checkpoint_folder.glob("step-*"))
        ),
    ]
    sealed_folders = [folder for folder in folders if is_sealed(folder)]
    if not run.exists() and model_folder not in sealed_folders and not (model_folder / QUANTISED).is_file():
        open_config(model_folder)
    files, size, damaged = 0, 0, list[str]()
    for folder in sealed_folders:
        try:
            entries = read_digests(folder)
            damaged += find_damage(folder)
        except UserError as error:
            damaged.append(str(error).rpartition("; ")[0])
            continue
        files, size = files + len(entries), size + sum(entry_size for entry_size, _ in entries.values())
    return Verification(
        files, size, tuple(damaged), tuple(folder for folder in folders if folder not in sealed_folders)
    )
