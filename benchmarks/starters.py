"""The models to start with: how long making each takes, its size on disk, and its score.

python benchmarks/starters.py digits reach                # these, one after the other
python benchmarks/starters.py --minutes 3 translation     # in other minutes than those of the list

A model that was made already is only measured. The figures of other models stay in results/starters.json; those in
app/starters.py are equal to them, which a test checks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from headway.app.starters import score_text, starter
from headway.bench.benchmark import machine
from headway.learn.run import RunDirectory
from measure import RESULTS, data_folder, write


def make(name: str, minutes: float | None) -> dict[str, Any]:
    options = [] if minutes is None else ["--minutes", str(minutes)]
    command = [sys.executable, "-m", "headway", "models", "make", name, *options]
    load, started = os.getloadavg()[0], time.perf_counter()
    subprocess.run(command, env={**os.environ, "HEADWAY_DATA": str(data_folder())}, check=True)
    seconds, directory = time.perf_counter() - started, starter(name).directory
    summary = RunDirectory(directory).read_status()
    scores = summary["scores"]
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return {
        "minutes": starter(name).minutes if minutes is None else minutes,
        "megabytes": float(f"{size / 1e6:.2g}"),
        "score": score_text(scores),
        "wall_seconds": round(seconds, 1),
        "bytes": size,
        "load_average": round(load, 1),
        "threads": summary["threads"],
        "processor": machine()["processor"],
        "parameters": summary["parameters"],
        "steps": summary["step"],
        "scores": scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="+")
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    for name in args.name:
        path = RESULTS / "starters.json"
        models = json.loads(path.read_text())["models"] if path.is_file() else {}
        models[name] = make(name, args.minutes)
        write("starters", {"models": models})


if __name__ == "__main__":
    main()
