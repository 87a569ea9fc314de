"""scikit-learn's handwritten digits by five folds that a seed fixes: each is the test part once.

    python benchmarks/digits.py                 # five processes, at most 2 minutes each on 2 cores

A tenth of the other four folds picks the best weights; the fold itself is read once, at the end. `core_seconds` are
those of all threads of a process, its start included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from measure import child, report, since_start, spread, write

FOLDS, SEED = 5, 0


def folds(count: int) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(SEED).permutation(count), FOLDS)


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def lay_out(fold: int, folder: Path) -> None:
    """The digits as IDX files, in which the fold is the test part."""
    from headway.data import find_set
    from headway.domains.vision.labelled_images import read_samples

    samples = read_samples(find_set("digits"))
    images, classes = np.asarray(samples.grey), np.array([int(label) for label in samples.labels])
    held_out = folds(len(classes))[fold]
    trained = np.setdiff1d(np.arange(len(classes)), held_out)
    for name, rows in (("train", trained), ("t10k", held_out)):
        write_idx(folder / f"{name}-images-idx3-ubyte", images[rows])
        write_idx(folder / f"{name}-labels-idx1-ubyte", classes[rows])


def train(fold: int, threads: int | None, settings: dict[str, Any]) -> dict[str, Any]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        lay_out(fold, Path(folder))
        own = {"task.split.validation": 0.1, "task.split.test": 0.0, **settings}
        run = hw.train("digits", data=folder, set=own, run=f"{folder}/run", threads=threads, samples=0, seed=1)
        scores = run.summary["scores"]
        return {
            "fold": fold,
            "samples": scores["samples"],
            "right": round(scores["accuracy"] * scores["samples"]),
            "accuracy": scores["accuracy"],
            "parameters": run.summary["parameters"],
            "steps": run.summary["steps"],
            "threads": run.summary["threads"],
            "precision": run.summary["precision_reason"],
            "seconds_in_all": round(since_start(), 1),
            "core_seconds": round(time.process_time(), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fold", type=int, help="train one here and print the result")
    args = parser.parse_args()
    if args.fold is not None:
        report(train(args.fold, args.threads, {}))
        return
    options = [] if args.threads is None else ["--threads", str(args.threads)]
    found = [child("digits.py", "--fold", str(fold), *options) for fold in range(FOLDS)]
    total = sum(each["samples"] for each in found)
    write(
        "digits",
        {
            "accuracy": sum(each["right"] for each in found) / total,
            "samples": total,
            "seconds_a_fold": spread([each["seconds_in_all"] for each in found]),
            "core_seconds_a_fold": spread([each["core_seconds"] for each in found]),
            "folds": found,
        },
    )


if __name__ == "__main__":
    main()
