"""Files that are made to do harm are read or refused in one line; benchmarks/hostile.py gives all to commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_readers import files, read

from headway.errors import UserError

# Those that are made and read in a moment, of each kind.
PREFIXES = (
    *("named pipe", "device", "no such user", "long path", "cut", "HDF5: a ", "HDF5: 8 TB", "HDF5: data"),
    *("zip: a", "zip: unknown", "zip: encrypted", "zip: deflate64", "zip: of a later", "tar: sparse", "tar: chain"),
    *("tar: a map that", "tar: a member", "tar: a time", "npz: ", "LeRobot: info.json is", "LeRobot: rows"),
    *(
        "EPD: counters",
        "EPD: a mate",
        "chess CSV",
        "PGN: an evaluation",
        "JSON: a number",
        "JSON: half",
        "text: UTF-32",
    ),
    *(
        "sound: 7",
        "sound: 1 ",
        "sound: 4 GB",
        "sound: a ",
        "sound: no",
        "image: 10 billion",
        "image: 2^62",
        "LeRobot: a ",
    ),
    *("image: PPM", "image: BMP", "image: GIF", "image: EPS", "Parquet: n", "LeRobot: a ", "text: UTF-32"),
)
SLOW = ("npz: zeros", "HDF5: a chunk that expands", "HDF5: a chunk of 3 GB")
CASES = [case for case in files.CASES if case.name.startswith(PREFIXES) and case.name not in SLOW]
NEEDS = {"HDF5": "h5py", "LeRobot": "pyarrow", "Parquet": "pyarrow", "sound": "soundfile", "image": "PIL"}
NEEDS |= {"EPD": "chess", "chess CSV": "chess", "PGN": "chess"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_read_or_refused_in_one_line(case: files.Case, tmp_path: Path) -> None:
    for start, package in NEEDS.items():
        if case.name.startswith(start) or (package == "chess" and case.commands == files.CHESS):
            pytest.importorskip(package, reason=f"the package {package} is not installed")
    path = case.make(tmp_path)
    said = ""
    try:
        read(case.commands, path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
