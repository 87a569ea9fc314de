"""Results that were measured on a kind of processor are of that kind, and no two files are copies."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
FOLDERS = {  # words of the processor's name, its widest units, and those that it lacks
    "epyc-avx2": ("EPYC", "avx2", "avx512f"),
    "epyc-vnni": ("EPYC", "avx512_vnni", "amx_int8"),
    "xeon-vnni": ("Xeon", "avx512_vnni", "amx_int8"),
    "xeon-amx": ("Xeon", "amx_int8", ""),
}


def test_folders_of_machines_name_their_processor() -> None:
    for folder in (path for path in (RESULTS / "machines").iterdir() if path.is_dir()):
        name, has, lacks = FOLDERS[folder.name]
        for path in folder.glob("*.json"):
            machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
            assert name in machine["processor"], path
            assert has in machine["units"], path
            assert lacks not in machine["units"], path


def test_results_are_not_copies() -> None:
    same: dict[bytes, list[str]] = defaultdict(list)
    for path in RESULTS.rglob("*.json"):
        same[path.read_bytes()].append(str(path.relative_to(RESULTS)))
    assert [paths for paths in same.values() if len(paths) > 1] == []


def test_rows_have_their_files() -> None:
    for path in RESULTS.rglob("*.json"):
        assert "was overwritten" not in path.read_text(encoding="utf-8"), path
