"""The Free Spoken Digit Dataset: 3,000 recordings named {digit}_{speaker}_{take}.wav."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from headway.config import register
from headway.data.files import ARCHIVES, File, kind_of
from headway.data.fingerprint import fingerprint
from headway.data.labelled import Labelled
from headway.data.splits import side_number
from headway.data.store import cache_key, cache_root, open_or_build
from headway.domains.audio.classification import SoundsConfig
from headway.errors import UserError, nearest
from headway.train import Recipe, Task

_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav", re.IGNORECASE)
_TEST_TAKES = 5  # of each digit and speaker, from 0 on: the set's own split
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError)


@dataclass(frozen=True)
class Takes:
    """Recordings in the order of their names: files, what is said (0 to 9), who says it, and which time, int [N]."""

    files: list[Path]
    digits: np.ndarray
    speakers: list[str]
    takes: np.ndarray

    def named(self, hold_out: str | None) -> np.ndarray:
        """uint8 [N], the test split: takes 0 to 4, or all of one speaker's. UserError for one who is not there."""
        test = side_number("test")
        if hold_out is None:
            return np.where(self.takes < _TEST_TAKES, test, 0).astype(np.uint8)
        if hold_out not in self.speakers:
            raise UserError(f"there is no speaker {hold_out!r}; {nearest(hold_out, set(self.speakers))}")
        return np.array([test if speaker == hold_out else 0 for speaker in self.speakers], np.uint8)


def read_takes(paths: Sequence[Path]) -> Takes:
    """The recordings of an archive (.zip, .tar.gz, .tar.xz, ...), or below a folder. UserError where there are none."""
    files = [file for path in paths for file in _files(path)]
    found = sorted((path.name, path, match) for path in files if (match := _NAME.fullmatch(path.name)))
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))} holds no recordings named like 7_jackson_3.wav; give the set's own"
        )
    matches = [match for _, _, match in found]
    numbers = np.array([[int(match[1]), int(match[3])] for match in matches])
    return Takes([path for _, path, _ in found], numbers[:, 0], [match[2].lower() for match in matches], numbers[:, 1])


def _files(path: Path) -> list[Path]:
    place = path.expanduser()
    if not place.is_dir():
        if kind_of(place.name) not in ARCHIVES or not place.is_file():
            raise UserError(
                f"{place} is neither a folder nor an archive ({', '.join(ARCHIVES)}, .tar.xz) that is there; give one"
            )
        key = cache_key("takes", fingerprint([File(place)]))
        place = open_or_build(cache_root() / key, lambda part: _unpack(path.expanduser(), part))
    return [file for file in place.rglob("*.wav") if file.is_file()]


def _unpack(archive: Path, folder: Path) -> None:
    """In one pass, as what is compressed as a whole cannot be read from the middle."""
    try:
        for name, data in _members(archive):
            if _NAME.fullmatch(name):
                (folder / name).write_bytes(data)
    except _DAMAGE as error:
        raise UserError(f"{archive} is damaged ({error or type(error).__name__}); fetch it again") from error


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if kind_of(archive.name) == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                yield PurePath(name).name, packed.read(name) if _NAME.fullmatch(PurePath(name).name) else b""
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            inside = packed.extractfile(member) if member.isfile() else None
            if inside is not None:
                yield PurePath(member.name).name, inside.read()


@register("spoken_digits")
@dataclass(frozen=True)
class SpokenDigitsConfig(SoundsConfig):
    """Which digit is said. The test split is the set's own, takes 0 to 4 of each digit and speaker; or, with
    `hold_out`, all that one speaker says. The validation split is drawn from the rest.
    """

    hold_out: str | None = None  # a speaker, all of whose recordings are the test split

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Raises UserError for data that are not this set."""
        takes = read_takes(recipe.files(data))
        labels = [str(digit) for digit in takes.digits]
        found = Labelled(takes.files, labels, takes.named(self.hold_out), [str(file) for file in takes.files])
        return self.over(recipe, found, workspace)
