"""Captioners trained by their recipes and judged on what they never saw: drawn scenes, and emoji.

OMP_NUM_THREADS=1 python benchmarks/captions.py scenes emoji-caption
OMP_NUM_THREADS=1 python benchmarks/captions.py scenes --run DIR      # resumable

`core_seconds` are those of all threads of the process that trained to the end; a run that was resumed has counted
those of its last process only, and says so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from measure import child, report, since_start, timeline, write

METRICS = ("loss", "exact_match", "chrf", "bleu")


def train(name: str, keep: str | None) -> dict[str, object]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        place = Path(keep) if keep else Path(folder) / "run"
        resumed = place.exists()
        run = hw.train(name, run=place, resume=True, spent=since_start())
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
    parser.add_argument("names", nargs="+", choices=("scenes", "emoji-caption"))
    parser.add_argument("--run", help="directory that keeps the run and lets it go on")
    parser.add_argument("--part", action="store_true", help="train here and print the result")
    args = parser.parse_args()
    if args.part:
        report(train(args.names[0], args.run))
        return
    for name in args.names:
        write(name, child("captions.py", name, *(["--run", args.run] if args.run else []), "--part"))


if __name__ == "__main__":
    main()
