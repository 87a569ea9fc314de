"""Where the data sets that headway knows by name lie on this machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from headway.data.catalogue import KNOWN, KnownFile, KnownSet
from headway.data.store import cache_root
from headway.errors import UserError, nearest


def known_set(name: str) -> KnownSet:
    """A known set by name; a UserError suggests the nearest."""
    if name not in KNOWN:
        raise UserError(f"there is no known data set {name!r}; {nearest(name, KNOWN)}")
    return KNOWN[name]


def known_sets() -> list[KnownSet]:
    """All known sets, by name."""
    return [KNOWN[name] for name in sorted(KNOWN)]


def data_folders() -> list[Path]:
    """Where known sets are looked for, in order: HEADWAY_DATA, then what was downloaded."""
    given = os.environ.get("HEADWAY_DATA")
    return [*([Path(given).expanduser()] if given else []), cache_root() / "data"]


def is_present(known: KnownSet) -> bool:
    """Whether all files of a set are on this machine."""
    return bool(_found(known))


def find_set(name: str) -> list[Path]:
    """The files of a known set, ready for `documents` or `pairs`. A UserError says how to get what is missing."""
    known = known_set(name)
    if found := _found(known):
        return found
    if known.package is not None:
        raise UserError(
            f"data set {name!r} comes with a package that is not installed; pip install {known.pip or known.package}"
        )
    if any(not file.url for file in known.files):
        raise made_by_hand(known)
    folders = " or ".join(map(str, data_folders()))
    raise UserError(f"data set {name!r} is not in {folders}; headway data get {name}")


def made_by_hand(known: KnownSet) -> UserError:
    """What to say of a set that is not here and that no server has as it is."""
    files = ", ".join(file.path for file in known.files)
    return UserError(
        f"data set {known.name!r} is not here, and it is made of other files, from {known.url}; put {files} into a "
        "folder and set HEADWAY_DATA to it"
    )


def _found(known: KnownSet) -> list[Path]:
    """All files of a set from one place, or nothing."""
    if known.package is not None and known.package_file is not None:
        # The package is found but not imported: only its data is wanted.
        spec = importlib.util.find_spec(known.package)
        return [] if spec is None or spec.origin is None else [Path(spec.origin).parent / known.package_file]
    for folder in data_folders():
        paths = [_present(folder, file) for file in known.files]
        if all(paths):
            return [path for path in paths if path is not None]
    for folder in map(Path, known.folders):
        paths = [folder / Path(file.path).name for file in known.files]
        if all(path.is_file() for path in paths):
            return paths
    return []


def _present(folder: Path, file: KnownFile) -> Path | None:
    paths = [folder / path for path in (file.path, file.instead) if path is not None]
    return next((path for path in paths if path.is_file()), None)
