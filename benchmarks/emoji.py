"""Names of emoji that were never trained on, in five languages: the recipe emoji-clip beside chance and neighbours.

    python benchmarks/emoji.py [--runs DIR] [--seeds 1 2 3 4 5]      # half a core-minute per seed

Settings were chosen by the validation part; the test split is read once per seed, at the end. `core_seconds` are those
of all threads and of the whole process. Seeds that the result has already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import RESULTS, child, report, spread, write

SCORES = ("recall_at_1", "recall_at_5", "image_recall_at_1", "neighbour_at_1")


def train(directory: Path, seed: int) -> None:
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
    parser.add_argument("--runs", type=Path, help="directory that keeps the runs and lets them go on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    args = parser.parse_args()
    if args.part == "train":
        train(args.runs, args.seeds[0])
        return
    path = RESULTS / "emoji-clip.json"
    rows = json.loads(path.read_text()).get("rows", []) if path.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            if seed in {row["seed"] for row in rows}:
                continue
            place = (args.runs or Path(folder)).resolve() / f"seed-{seed}"
            rows.append(child("emoji.py", "train", f"--runs={place}", f"--seeds={seed}"))
            scores = {name: spread([row["test"][name] for row in rows]) for name in SCORES}
            write("emoji-clip", {"scores": scores, "rows": rows})


if __name__ == "__main__":
    main()
