"""`verify`: whether the files of a run or model are as they were written."""

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
    """What `verify` found: how many files with how many bytes have digests; what is damaged, a line each; and the
    folders and files that have no digests, of which nothing more is known than that they can be opened.
    """

    files: int
    bytes: int
    damaged: tuple[str, ...]
    unknown: tuple[Path, ...]


@typed
def verify(path: str | Path) -> Verified:
    """Compare a run with its checkpoints, or a model that headway wrote, with the digests that were written last.

    A run that is being trained, or was killed, has digests of its checkpoints alone. A model from elsewhere has none;
    it is opened, which finds files that are cut off. Raises UserError for what is neither a run nor a model.
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
