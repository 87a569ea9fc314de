"""Images and sounds with 10 labels per class, for `pretraining.py`: the parts of two sets, and the settings of each.

- fashion-mnist: 1,000 of the training images are for validation, all others are the unlabelled ones.
- spoken-digits: the official test takes; 300 of the other recordings are for validation, the rest is unlabelled.

The labelled samples of a seed are among the unlabelled ones, from which the first stage learns without their labels.
The first stage runs once. From scratch, the same model takes as many more steps as fit into the core seconds of the
first stage. Each arm takes, for all seeds, the learning rate with the best validation accuracy in a trial with the
labels of seed 0. The head is never fitted to validation labels.
"""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EACH, TRIAL_SEED = 10, 0  # labels per class; the seed whose validation accuracy chooses learning rates
BATCH, EVALUATIONS = 50, 8  # samples per batch of fine-tuning, and evaluations in each run
PARTS = ("train", "validation", "test")


class Medium(NamedTuple):
    """A set, read as the files of its parts and of unlabelled samples; its recipe and that of the first stage, with the
    settings of both, and those of the `model`, which are the same in both arms; the settings of fine-tuning after the
    first stage; the learning rates that are tried; the steps of both stages; the number of validation samples.
    """

    read: Callable[[int, Path, int], tuple[list[Path], Path]]
    recipe: str
    stage: str
    model: dict[str, Any]
    stage_settings: dict[str, Any]
    settings: dict[str, Any]
    tuning: dict[str, Any]
    rates: dict[str, tuple[float, ...]]
    steps: int
    tuning_steps: int
    validation: int


def fashion(seed: int, folder: Path, number: int) -> tuple[list[Path], Path]:
    from headway.data import find_set
    from headway.data.labelled_files import read_idx_pairs

    pairs = {part.named_split: part for part in read_idx_pairs(find_set("fashion-mnist"))}
    images, labels = pairs["train"].images, pairs["train"].labels
    order = np.random.default_rng(0).permutation(len(labels))
    few, rest = chosen(labels, order[number:], seed)
    parts = {"train": (images[few], labels[few])}
    parts["validation"] = images[order[:number]], labels[order[:number]]
    parts["test"] = pairs["test"].images, pairs["test"].labels
    files = []
    for name, (pixels, classes) in {**parts, "rest": (images[rest], None)}.items():
        for kind, values in (("images-idx3", pixels), ("labels-idx1", classes)):
            if values is not None:
                header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
                files.append(folder / f"{name}-{kind}-ubyte")
                files[-1].write_bytes(header + np.ascontiguousarray(values).tobytes())
    return files[:-1], files[-1]


def spoken(seed: int, folder: Path, number: int) -> tuple[list[Path], Path]:
    from headway.data import find_set
    from headway.domains.audio.sequences import read_takes

    takes = read_takes(find_set("spoken-digits"))
    is_test = takes.named_splits(None) > 0
    order = np.random.default_rng(0).permutation(np.flatnonzero(~is_test))
    few, rest = chosen(takes.digits, order[number:], seed)
    for name, rows in zip((*PARTS, "rest"), (few, order[:number], np.flatnonzero(is_test), rest)):
        for row in rows.tolist():
            place = folder / name / str(takes.digits[row])
            place.mkdir(parents=True, exist_ok=True)
            (place / takes.files[row].name).symlink_to(takes.files[row])
    unlabelled = (folder / "rest").rename(folder.parent / f"{folder.name}-rest")
    return [folder], unlabelled


def chosen(labels: np.ndarray, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labelled rows of a seed, and all rows in an order that the seed does not change."""
    shuffled = np.random.default_rng(100 + seed).permutation(rows)
    few = [shuffled[labels[shuffled] == label][:EACH] for label in np.unique(labels)]
    return np.concatenate(few), rows


MEDIA = {
    "fashion-mnist": Medium(
        fashion,
        "vision",
        "masked-images",
        {
            "model.width": 64,
            "model.depth": 3,
            "model.heads": 4,
            "model.embed.size": [28, 28],
            "model.embed.patch": [7, 7],
            "model.embed.channels": 1,
            "model.embed.stem": "linear",
        },
        {"train.batch_size": 128, "task.augment.flip": 0.5, "task.augment.crop": 0.4, "task.augment.light": 0.2},
        {"task.augment": {"flip": 0.5, "shift": 2, "erase": 0.25}},
        {},
        {"pretrained": (3e-4, 2e-3), "scratch": (8e-3, 2e-2)},
        3600,
        400,
        1000,
    ),
    "spoken-digits": Medium(
        spoken,
        "audio",
        "masked-sounds",
        {"model.width": 64, "model.depth": 3, "model.heads": 4, "model.context": 50},
        {
            "train.batch_size": 64,
            "task.seconds": 1.0,
            "task.contrast": 1.0,
            "task.hiding.rate": 0.4,
            "optim.weight_decay": 0.3,
            "optim.adam_weight_decay": 0.1,
        },
        {"task.seconds": 1.0, "task.crop": True, "task.augment.speeds": [0.9, 1.0, 1.1]},
        {"optim": "muon", "optim.adam_lr": 3e-3},
        {"pretrained": (1e-2,), "scratch": (1e-2, 2e-2)},
        400,
        600,
        300,
    ),
}


def pretrain(case: str, runs: Path) -> dict[str, Any]:
    """The first stage. A stopped one continues."""
    import headway as hw

    medium, seconds = MEDIA[case], runs / f"{case}.seconds"
    runs.mkdir(parents=True, exist_ok=True)
    settings = {**medium.model, **medium.stage_settings, "train.steps": medium.steps}
    settings["train.evaluate_every"] = medium.steps // EVALUATIONS
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        (Path(folder) / "parts").mkdir()
        unlabelled = medium.read(TRIAL_SEED, Path(folder) / "parts", medium.validation)[1]
        start = time.process_time()
        try:
            run = hw.train(
                medium.stage,
                data=unlabelled,
                set=settings,
                run=runs / case,
                seed=1,
                resume=True,
                threads=1,
                samples=0,
                progress=False,
            )
        finally:
            with open(seconds, "a", encoding="utf-8") as file:
                file.write(f"{time.process_time() - start:.1f}\n")
    return {
        "settings": settings,
        "samples": run.summary["data"]["samples"],
        "parameters": run.summary["parameters"],
        "steps": run.summary["step"],
        "core_seconds": round(sum(map(float, seconds.read_text().split())), 1),
        "scores": run.summary["scores"],
    }


def finetune(case: str, runs: Path, begin: str, seed: int, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """One arm with the labels of a seed. `earlier` are the rows so far: that of the trial seed has the learning rate,
    and that of the pre-trained arm the time of a step.
    """
    import headway as hw

    medium = MEDIA[case]
    trials = {row["begin"]: row for row in earlier if row["seed"] == TRIAL_SEED}
    rates = medium.rates[begin]
    if seed != TRIAL_SEED and len(rates) > 1:
        rates = (trials[begin]["chosen"]["rate"],)
    steps, tried = medium.tuning_steps, []
    if begin == "scratch":
        stage = json.loads((runs / f"{case}.json").read_text())["core_seconds"]
        steps += round(stage / trials["pretrained"]["seconds_per_step"])
    settings = {**medium.settings, "train.batch_size": BATCH, "train.steps": steps}
    settings |= {"train.evaluate_every": steps // EVALUATIONS, "train.linear_probe": 10 * EACH}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "parts").mkdir()
        files, _ = medium.read(seed, place / "parts", medium.validation)
        for rate in rates:
            start, wall_start = time.process_time(), time.perf_counter()
            run = hw.train(
                medium.recipe,
                data=files,
                set={**settings, **(medium.model if begin == "scratch" else medium.tuning), "optim.lr": rate},
                run=place / f"run-{rate}",
                start=runs / case if begin == "pretrained" else None,
                seed=seed,
                threads=1,
                samples=0,
                progress=False,
            )
            best, scores = run.summary["best"], run.summary["scores"]
            core, wall = time.process_time() - start, time.perf_counter() - wall_start
            tried.append(
                {
                    "rate": rate,
                    "validation_accuracy": best["accuracy"],
                    "best_step": best["step"],
                    "test_accuracy": scores["accuracy"],
                    "test_accuracy_interval": scores["accuracy_interval"],
                    "core_seconds": round(core, 1),
                    "training_core_seconds": round(run.summary["seconds"] * min(1.0, core / wall), 1),
                }
            )
    best_try = max(tried, key=lambda row: row["validation_accuracy"])
    return {
        "begin": begin,
        "seed": seed,
        "steps": steps,
        "seconds_per_step": best_try["training_core_seconds"] / steps,
        "parameters": run.summary["parameters"],
        "chosen": best_try,
        "tried": tried,
        "core_seconds": round(time.process_time(), 1),
    }
