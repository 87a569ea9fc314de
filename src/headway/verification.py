"""`verify`: compare the files of a run or model with their digests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from headway.errors import UserError
from headway.formats.digests import damage, is_sealed, sealed
from headway.formats.hub import find_folder
from headway.formats.native import QUANTISED
from headway.formats.open import open_config
from headway.given import typed
from headway.learn.run import RunDirectory


class Verified(NamedTuple):
    """The result of `verify`: the number of files with digests and their bytes; one line per damaged file; and the
    folders and files without digests, which could only be opened.
    """

    files: int
    bytes: int
    damaged: tuple[str, ...]
    unknown: tuple[Path, ...]


@typed
def verify(path: str | Path) -> Verified:
    """Compare a run and its checkpoints, or a model that headway wrote, with the stored digests.

    A run in training, or one that was killed, has digests of its checkpoints only. A model from elsewhere has no
    digests; opening it detects truncated files. Raises UserError for a path that is neither a run nor a model.
    """
    place = find_folder(path)
    run = RunDirectory(place)
    folders = [place, *(path for part in (run.checkpoints, run.trunk) for path in sorted(part.glob("step-*")))]
    known = [folder for folder in folders if is_sealed(folder)]
    if not run.exists() and place not in known and not (place / QUANTISED).is_file():
        open_config(place)
    files, size, damaged = 0, 0, list[str]()
    for folder in known:
        try:
            entries = sealed(folder)
            damaged += damage(folder)
        except UserError as error:
            damaged.append(str(error).rpartition("; ")[0])
            continue
        files, size = files + len(entries), size + sum(each for each, _ in entries.values())
    return Verified(files, size, tuple(damaged), tuple(folder for folder in folders if folder not in known))
