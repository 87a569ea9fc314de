"""Names of emoji that were never trained on, in five languages: the recipe emoji-clip beside chance and neighbours.

    python benchmarks/emoji.py [--run DIR] [--seed 1234]      # ten core-minutes

Settings were chosen by the validation part; the test split is read once, at the end. `core_seconds` are those of all
threads and of the whole process.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, report, write


def train(directory: Path, seed: int | None) -> None:
    """One run in this process, kept in a folder where it can go on after a stop."""
    import headway as hw

    started = time.time()
    run = hw.train("emoji-clip", run=directory, seed=seed, resume=True, threads=1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(result(run, time.process_time(), time.time() - started, memory))


def result(run: Any, core_seconds: float, wall_seconds: float, megabytes: float) -> dict[str, Any]:
    """What is kept of a run: how it was made, what it took, and its scores."""
    best = run.summary["best"]
    return {
        "recipe": run.recipe.name,
        "seed": run.recipe.train.seed,
        "parameters": run.summary["parameters"],
        "steps": run.summary["steps"],
        "batch": {"images": run.recipe.train.batch_size, "captions": run.recipe.task.captions},
        "precision": run.summary["precision"],
        "threads": run.summary["threads"],
        "core_seconds": round(core_seconds, 1),
        "wall_seconds": round(wall_seconds, 1),
        "peak_memory_mb": round(megabytes),
        "load_average": os.getloadavg()[1],
        "best_validation": {name: value for name, value in best.items() if not name.endswith("_interval")},
        "test": run.summary["scores"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", default="measure", choices=["measure", "train"])
    parser.add_argument("--run", help="directory that keeps the run and lets it go on")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(args.run or f"{folder}/run")
        if args.part == "train":
            train(place, args.seed)
            return
        given = [] if args.seed is None else [f"--seed={args.seed}"]
        write("emoji-clip", child("emoji.py", "train", f"--run={place}", *given))


if __name__ == "__main__":
    main()
