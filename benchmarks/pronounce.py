"""English words to phonemes: what the demo reaches in its five minutes, and the recipe in a longer time.

python benchmarks/pronounce.py 5 90         # minutes of each run
python benchmarks/pronounce.py 90 --steps 12000 --run DIR     # so many steps instead, resumable
python benchmarks/pronounce.py 12 --steps 500 --set '{"model.dropout": 0.1}'     # compare the curves of trials
python benchmarks/pronounce.py 360 --steps 26000 --run DIR --split CMUDICT --set '{"model.width": 256}'

A run of more than ten minutes is one of recipe pronounce-lstm. `core_seconds` are those of all threads: a run of one
thread (OMP_NUM_THREADS=1) compares with one of 2 cores by them.

CMUDICT is the folder Examples/SequenceToSequence/CMUDict/Data of github.com/microsoft/CNTK, which publishes a split of
version 0.7b without stress. 721 of its 5,447 validation words are left out, because the training part has them, too.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, report, since_start, timeline, write

PARTS = {"train": "train-dev-20-21", "validation": "train-dev-1-21", "test": "test"}


def published(source: Path, folder: Path) -> list[Path]:
    """The dictionaries train.dict, validation.dict and test.dict of the published split."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    trained: set[str] = set()
    for part, suffix in PARTS.items():
        lines = (source / f"cmudict-0.7b.{suffix}").read_text(encoding="latin-1").splitlines()
        rows = [(re.sub(r"\(\d+\)$", "", word).lower(), phonemes) for word, *phonemes in map(str.split, lines)]
        found.append(folder / f"{part}.dict")
        found[-1].write_text("".join(f"{word} {' '.join(p)}\n" for word, p in rows if word not in trained))
        trained |= {word for word, _ in rows} if part == "train" else set()
    return found


def train(
    minutes: float, seed: int, steps: int | None, keep: str | None, split: str | None, more: dict[str, Any]
) -> dict[str, object]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        data = published(Path(split), Path(f"{keep}-data" if keep else folder)) if split else None
        place = Path(keep) if keep else Path(folder) / "run"
        recipe = "pronounce-lstm" if minutes > 10 else "pronounce"
        settings = ({"train.steps": steps} if steps else {}) | more
        budget = None if steps else minutes
        options = {"minutes": budget, "seed": seed, "set": settings, "resume": True, "spent": since_start()}
        run = hw.train(recipe, data=data, run=place, **options)
        before, evaluations = timeline(run)
        return {
            "recipe": recipe,
            "split": "published with CNTK" if split else "drawn",
            "minutes_asked": minutes,
            "settings": settings,
            "threads": run.summary["threads"],
            "core_seconds": round(time.process_time(), 1),
            "seconds_in_all": round(since_start(), 1),
            "seed": seed,
            "parameters": run.summary["parameters"],
            "precision": run.summary["precision_reason"],
            "steps": run.summary["steps"],
            "curve": [
                {"seconds": round(before + e["seconds"], 1), "wer": e["wer"], "per": e["per"]} for e in evaluations
            ],
            "test": {k: v for k, v in run.summary["scores"].items() if k != "samples" or isinstance(v, int)},
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=float, nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="instead of the time")
    parser.add_argument("--run", help="directory that keeps the run and lets it go on")
    parser.add_argument("--split", help="folder with the published split")
    parser.add_argument(
        "--set", type=json.loads, default={}, help="JSON of further settings; without --split a trial, which is printed"
    )
    parser.add_argument("--part", action="store_true", help="train here and print the result")
    args = parser.parse_args()
    if args.part:
        report(train(args.minutes[0], args.seed, args.steps, args.run, args.split, args.set))
        return
    for minutes in args.minutes:
        options = [*(["--steps", str(args.steps)] if args.steps else []), *(["--run", args.run] if args.run else [])]
        options += ["--split", args.split] if args.split else []
        options += ["--set", json.dumps(args.set), "--part"]
        result = child("pronounce.py", str(minutes), "--seed", str(args.seed), *options)
        if args.split:
            write("pronounce-published", result)
        elif args.set:
            report(result)
        else:
            write(f"pronounce-{minutes:g}-minutes", result)


if __name__ == "__main__":
    main()
