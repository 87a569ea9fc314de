"""Every reader of foreign files takes a damaged one or says what is wrong: no other exception, no crash, no hang.

benchmarks/fuzz.py runs the same with 100,000 files a reader.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from readers import READERS
from run import fuzz

COUNT = 300
WHOLE = 100  # of folders that are written anew for each
COMPOSED = 60
NEEDS = {"gguf": ("gguf", "gguf"), "hdf5": ("h5py", "rl")}
NEEDS |= {f"composed-gguf{part}": NEEDS["gguf"] for part in ("", "-architecture", "-blocks")}
NEEDS |= {"composed-parquet": ("pyarrow", "data")}
NEEDS |= {
    "composed-epd": ("chess", "chess"),
    "composed-pgn": ("chess", "chess"),
    "composed-template": ("jinja2", "chat"),
}
NEEDS |= {f"lerobot_{part}": ("av", "robotics") for part in ("info", "episodes", "tasks", "rows", "video")}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        package, extra = NEEDS[name]
        pytest.importorskip(package, reason=f"the package {package} is not installed: pip install headway[{extra}]")
    count = WHOLE if name.startswith("lerobot") else COMPOSED if name.startswith("composed") else COUNT
    outcome = fuzz(READERS[name], tmp_path, seed=1, first=0, count=count)
    assert not outcome.failures
    assert outcome.refused > count // 10  # the damage reaches the reader
    assert outcome.read + outcome.refused == count
