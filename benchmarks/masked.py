"""What pre-training is worth: a BERT of 4 layers and width 256, pre-trained on a CPU, fine-tuned on banking77.

    python benchmarks/masked.py pretrain --run runs/masked   # 20 minutes on 2 cores; goes on where it was stopped
    python benchmarks/masked.py score --run runs/masked      # 36 fine-tunings of a minute or some

It is pre-trained on WikiText-2's validation part and the plays of Shakespeare, 2.3 MB together, then fine-tuned with 10
questions for each of the 77 intents ("few"), and with all of the training part ("all") but the tenth that picks the
best checkpoint. Beside it stands the same model with weights drawn afresh, with the same tokenizer and settings. Each
start and seed takes, of the same learning rates, the one with which the validation part is answered best; only that
run's answers to the test part of banking77 count. WikiText-2's test part is never read.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, data_folder, report, since_start, spread, timeline, write

ARCHIVE, WIKITEXT = "lm/wikitext-2-raw-valid-test.tar.xz", "wiki.valid.raw"
PRETRAINING = {
    "task.size": 4096,
    "task.lowercase": True,
    "task.split": {"validation": 0.05, "test": 0.0},
    "task.masking.rate": 0.3,
    "train.batch_tokens": 2048,
}
FEW = 10  # questions for each intent
STEPS = {"few": 600, "all": 1500}
SETTINGS = {
    "task.label": "category",
    "task.pool": "mean",
    "train.batch_tokens": 512,
    "model.dropout": 0.1,
}
RATES = (2e-4, 5e-4, 1.2e-3)
SEEDS = (1, 2, 3)
NOTES = "pretraining.json"  # beside the run: what each part of a training that was stopped took


def texts(run: Path) -> list[Path]:
    """The two texts; that of the archive is unpacked beside the run, whose recipe names it."""
    place = run.with_name(f"{run.name}-texts")
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(data_folder() / ARCHIVE) as archive:
        archive.extract(WIKITEXT, place, filter="data")
    (place / WIKITEXT).replace(place / "wikitext.txt")  # its own name would make it the validation split
    return [place / "wikitext.txt", data_folder() / "lm" / "tinyshakespeare.txt"]


def pretrain(run: Path, steps: int) -> dict[str, Any]:
    import headway as hw

    settings = {**PRETRAINING, "train.steps": steps, "train.evaluate_every": max(1, steps // 12)}
    found = hw.train("masked", data=texts(run), set=settings, run=run, seed=1, resume=True)
    before, evaluations = timeline(found)
    return {
        "parameters": found.summary["parameters"],
        "steps": steps,
        "tokens": steps * found.recipe.train.batch_tokens,
        "precision": found.summary["precision_reason"],
        "threads": found.summary["threads"],
        "core_seconds_of_the_last_part": round(time.process_time(), 1),
        "curve": [
            {
                "step": e["step"],
                "seconds": round(before + e["seconds"], 1),
                "loss": e["loss"],
                "accuracy": e["accuracy"],
            }
            for e in evaluations
        ],
    }


def questions(place: Path, part: str, seed: int) -> list[Path]:
    """train.csv, validation.csv and test.csv of banking77. The validation part is the same for all runs."""
    folder = data_folder() / "textcls" / "banking77"
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    held, rest = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    if part == "few":
        random.Random(seed).shuffle(rest)
        kept: dict[str, list[tuple[str, str]]] = {}
        for row in rest:
            kept.setdefault(row[1], []).append(row)
        rest = [row for some in kept.values() for row in some[:FEW]]
    for name, chosen in (("train", rest), ("validation", held)):
        with open(place / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "category"), *chosen])
    (place / "test.csv").write_bytes((folder / "test.csv").read_bytes())
    return [place / f"{name}.csv" for name in ("train", "validation", "test")]


def untrained(run: Path, place: Path, seed: int) -> Path:
    """The model of a run with weights drawn from a seed, and its tokenizer."""
    import headway as hw
    from headway.formats.native import save_model
    from headway.nn.models import build

    model = hw.load(run)
    save_model(build(model.module.config, seed), model.module.config, place)
    model.codec.save(place)
    return place


def finetune(run: Path, part: str, begin: str, seed: int, steps: int, rate: float) -> dict[str, Any]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = questions(place, part, seed)
        start = run if begin == "pretrained" else untrained(run, place / "untrained", seed)
        settings = {**SETTINGS, "optim.lr": rate, "train.steps": steps, "train.evaluate_every": steps // 10}
        if part == "few":
            settings["train.linear_probe"] = 77 * FEW  # so many that the validation texts are not added at the end
        spent = since_start()
        found = hw.train(
            "classification", data=files, set=settings, run=place / "run", start=start, seed=seed, spent=spent
        )
    return {
        "part": part,
        "begin": begin,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "validation_accuracy": found.summary["best"]["accuracy"],
        "test_accuracy": found.summary["scores"]["accuracy"],
        "test_accuracy_interval": found.summary["scores"].get("accuracy_interval"),
        "core_seconds": round(time.process_time(), 1),
    }


def score(run: Path, parts: list[str], seeds: list[int]) -> None:
    result: dict[str, Any] = {
        "what": "accuracy on banking77's test part after fine-tuning, pre-trained and from scratch, by seed",
        "pretraining": json.loads((run.with_name(f"{run.name}-texts") / NOTES).read_text()),
        "settings": {**SETTINGS, "few": FEW, "steps": STEPS, "rates": RATES},
    }
    for part in parts:
        both = {}
        for begin in ("pretrained", "scratch"):
            runs, chosen = [], []
            for seed in seeds:
                tried = [
                    child("masked.py", "finetune", "--run", str(run), "--part", part, "--begin", begin,
                          "--seed", str(seed), "--rate", str(rate))
                    for rate in RATES
                ]  # fmt: skip
                runs += tried
                chosen.append(max(tried, key=lambda found: found["validation_accuracy"]))
            accuracies = [found["test_accuracy"] for found in chosen]
            both[begin] = {"test_accuracy": spread(accuracies), "chosen": chosen, "runs": runs}
        result[part] = both
        write("masked", result)  # after each part, as they take long


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["pretrain", "score", "finetune"])
    parser.add_argument("--run", type=Path, default=Path("runs/masked"), help="directory of the pre-training")
    parser.add_argument("--steps", type=int, help="of the pre-training or a fine-tuning")
    parser.add_argument("--parts", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--part", choices=list(STEPS), default="few")
    parser.add_argument("--begin", choices=["pretrained", "scratch"], default="pretrained")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATES[1])
    args = parser.parse_args()
    run = args.run.resolve()
    if args.action == "pretrain":
        notes = pretrain(run, args.steps or 3000)
        (run.with_name(f"{run.name}-texts") / NOTES).write_text(json.dumps(notes))
        report(notes)
    elif args.action == "finetune":
        report(finetune(run, args.part, args.begin, args.seed, args.steps or STEPS[args.part], args.rate))
    else:
        score(run, args.parts, args.seeds)


if __name__ == "__main__":
    main()
