"""What `headway train classification --pretrain` gives, next to the same minutes without it.

    python benchmarks/pretraining_command.py --case banking77 --minutes 20 --seeds 1 2 3 4 5
    python benchmarks/pretraining_command.py --case debian --minutes 20

The cases, and the labelled texts of each seed, are those of pretraining.py: ten texts per class and all others without
labels. A user has no more, so the command holds out its own validation texts from the labelled ones. The test part is
read once, at the end. Each run has one thread, and everything else is left to the command. Rows that exist are not
measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import RESULTS, machine, spread, write
from pretraining import parts

NAME = "pretraining-command"
CASES = ("banking77", "debian")
ARMS = ("pretrained", "scratch")


def trained(case: str, seed: int, minutes: float, arm: str, core: int) -> dict[str, Any]:
    """The command on one core: what it states beforehand, and its test accuracy."""
    texts = parts(case, seed)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("train", "test"):
            with (place / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *texts[name]])
        unlabelled = dict.fromkeys(text for text, _ in texts["unlabelled"])
        (place / "unlabelled.txt").write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
        command = ["taskset", "-c", str(core), sys.executable, "-m", "headway", "train", "classification"]
        command += ["--data", f"{place}/train.csv", f"{place}/test.csv", "--minutes", str(minutes)]
        command += ["--threads", "1", "--seed", str(seed), "--run", f"{place}/run", "--json"]
        if arm == "pretrained":
            command += ["--pretrain", f"{place}/unlabelled.txt"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        reasons = json.loads((place / "run" / "recipe.json").read_text())["reasons"]
    summary = json.loads(done.stdout.splitlines()[-1])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "arm": arm,
        "seed": seed,
        "minutes": minutes,
        "test_accuracy": summary["scores"]["accuracy"],
        "test_accuracy_interval": summary["scores"]["accuracy_interval"],
        "parameters": summary["parameters"],
        "core_seconds": round(seconds, 1),
        "reasons": reasons,
        "machine": machine()["processor"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default=CASES[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of one core, for both stages")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--core", type=int, default=0)
    args = parser.parse_args()
    path, key = RESULTS / f"{NAME}.json", f"{args.case}-{args.minutes:g}"
    for seed in args.seeds:
        for arm in ARMS:
            cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
            rows = cases.get(key, {}).get("rows", [])
            if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                continue
            one = trained(args.case, seed, args.minutes, arm, args.core)
            cases = json.loads(path.read_text())["cases"] if path.is_file() else {}  # others may have added to it
            result = cases.setdefault(key, {"case": args.case, "minutes": args.minutes, "rows": []})
            result["rows"].append(one)
            for each in ARMS:
                values = [row["test_accuracy"] for row in result["rows"] if row["arm"] == each]
                result[each] = spread(values) if values else None
            write(NAME, {"cases": cases})


if __name__ == "__main__":
    main()
