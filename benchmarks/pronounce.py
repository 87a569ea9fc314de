"""English words to phonemes: what the demo reaches in its five minutes, and the recipe in a longer time.

python benchmarks/pronounce.py 5 45         # minutes of each run
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import child, report, since_start, timeline, write


def train(minutes: float, seed: int) -> dict[str, object]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        spent = since_start()
        run = hw.train("pronounce", run=Path(folder) / "run", minutes=minutes, seed=seed, spent=spent)
        before, evaluations = timeline(run)
        return {
            "minutes_asked": minutes,
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
    parser.add_argument("--part", action="store_true", help="train here and print the result")
    args = parser.parse_args()
    if args.part:
        report(train(args.minutes[0], args.seed))
        return
    for minutes in args.minutes:
        result = child("pronounce.py", str(minutes), "--seed", str(args.seed), "--part")
        write(f"pronounce-{minutes:g}-minutes", result)


if __name__ == "__main__":
    main()
