"""Captioners trained by their recipes and evaluated on data that they never saw: drawn scenes, and emoji.

    OMP_NUM_THREADS=1 python benchmarks/captions.py scenes --seeds 1 2 3
    OMP_NUM_THREADS=1 python benchmarks/captions.py emoji-caption
    OMP_NUM_THREADS=1 python benchmarks/captions.py scenes --runs DIR      # resumable

Settings of scenes were chosen on other pairs of colour and shape (task.tuning) than those of the test, which is
evaluated once per seed. `core_seconds` are those of all threads of the process that trained to the end; for a `resumed`
run, those of its last process. Seeds that the result has already are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from measure import RESULTS, child, report, since_start, spread, timeline, write

METRICS = ("loss", "exact_match", "chrf", "bleu")
SEED = 1234  # of a run without --seed


def train(name: str, directory: Path, seed: int) -> dict[str, object]:
    import headway as hw

    resumed = directory.exists()
    run = hw.train(name, run=directory, seed=seed, resume=True, spent=since_start())
    before, evaluations = timeline(run)
    return {
        "threads": run.summary["threads"],
        "core_seconds": round(time.process_time(), 1),
        "resumed": resumed,
        "seconds_in_all": round(since_start(), 1),
        "seconds_training": round(run.summary["seconds"], 1),
        "seed": run.recipe.train.seed,
        "parameters": run.summary["parameters"],
        "precision": run.summary["precision_reason"],
        "steps": run.summary["steps"],
        "curve": [
            {"step": e["step"], "seconds": round(before + e["seconds"], 1), **{m: e[m] for m in METRICS}}
            for e in evaluations
        ],
        "test": run.summary["scores"],
        "samples": run.summary["samples"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=("scenes", "emoji-caption"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[SEED])
    parser.add_argument("--runs", type=Path, help="directory that keeps the runs, so that they can be resumed")
    parser.add_argument("--part", action="store_true", help="train one seed here and print the result")
    args = parser.parse_args()
    if args.part:
        report(train(args.name, args.runs, args.seeds[0]))
        return
    path = RESULTS / f"{args.name}.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            if seed in {row["seed"] for row in rows}:
                continue
            place = (args.runs or Path(folder)).resolve() / f"seed-{seed}"
            rows.append(child("captions.py", args.name, f"--runs={place}", f"--seeds={seed}", "--part"))
            matches = [name for name in rows[0]["test"] if name in ("exact_match", "exact_match_novel")]
            write(args.name, {**{name: spread([row["test"][name] for row in rows]) for name in matches}, "rows": rows})


if __name__ == "__main__":
    main()
