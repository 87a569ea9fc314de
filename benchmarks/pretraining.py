"""What pre-training on unlabelled data is worth with 10 labels per class, next to the same model from scratch.

    python benchmarks/pretraining.py pretrain --case banking77 --runs runs/pretraining  # continues a stopped run
    python benchmarks/pretraining.py score --case banking77 --runs runs/pretraining --seeds 1 2 3 4 5

A case is a set with the text that the model reads first:

- banking77: the questions of the training part, without labels.
- banking77-debian: the same set after Debian's package descriptions, manual pages and documentation of this machine.
- debian: package descriptions with their section ; the unlabelled text is descriptions of other packages.
- banking77-gpt: as banking77, with a causal model that predicts next tokens and keeps that loss in fine-tuning.
- fashion-mnist, spoken-digits: images and sounds (`unlabelled_media.py` describes their arms). Their seeds start with
  0, the trial that chooses learning rates: --seeds 0 1 2 3 4 5.

The first stage runs for STEPS steps; its core minutes are counted. Fine-tuning from it and from random weights has the
same tokenizer and settings, and takes of the same learning rates the one with the best validation accuracy, for each
seed. Only that run's answers to the test part count. A seed draws the labelled texts, the random weights and the order.
The head is never fitted to validation labels.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import unlabelled_media
from headway.bench.benchmark import machine
from measure import RESULTS, child, data_folder, report, spread, timeline, write
from unlabelled_media import MEDIA, TRIAL_SEED

CASES = ("banking77", "banking77-debian", "debian", "banking77-gpt", *MEDIA)
BEGINS = ("pretrained", "scratch")
EACH, VALIDATION, TEST = 10, 1000, 2000  # labelled texts per class; texts of the other parts at most
MIN_DESCRIPTIONS = 150  # of a section of Debian
MAX_CHARACTERS = 12_000_000  # of Debian's documentation
STEPS = 1600
STAGE = {
    "task.context": 64,
    "task.size": 2000,
    "task.split": {"validation": 0.02, "test": 0.0},
    "train.batch_tokens": 4096,
    "model.width": 128,
    "model.depth": 3,
    "model.heads": 4,
    "model.dropout": 0.1,
    "model.context": None,
}
CAUSAL = {"model.dropout": 0.3, "train.steps": 600}  # with a dropout rate of 0.1 its loss rises after 200 steps
MASKED = {"task.lowercase": True, "task.masking.rate": 0.3, "task.contrast": 0.3}
TUNING = {"task.smoothing": 0.1, "train.batch_tokens": 512, "train.steps": 700, "train.evaluate_every": 140}
RATES = (3e-3,)  # of 1e-3 and 3e-3, the one with the better mean validation accuracy over the seeds, in both arms
GPT_RATES = (3e-3, 1e-2)  # 1e-3 was worse in both arms
Rows = list[tuple[str, str]]


def banking77(part: str) -> Rows:
    with open(data_folder() / "textcls" / "banking77" / f"{part}.csv", newline="", encoding="utf-8") as file:
        return [(" ".join(row["text"].split()), row["category"]) for row in csv.DictReader(file)]


def descriptions() -> Rows:
    """Debian's packages that this machine knows: their short descriptions, each once, with their section."""
    listing = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found: dict[str, tuple[str, str]] = {}
    for stanza in listing.split("\n\n"):
        fields = dict(re.findall(r"^(Description|Section): (.*)$", stanza, re.M))
        text = re.sub(r"\s*\([^)]*\)$", "", fields.get("Description", "")).strip()  # (development files)
        if len(text.split()) > 2 and "Section" in fields:
            found.setdefault(text.lower(), (text, fields["Section"].rpartition("/")[2]))
    return sorted(found.values())


def documentation() -> Iterator[str]:
    """Paragraphs of manual pages and of documents in /usr/share/doc, without markup of the pages."""
    for file in sorted([*Path("/usr/share/doc").rglob("*"), *Path("/usr/share/man").glob("man*/*")]):
        plain = file.name.removesuffix(".gz")
        is_page = re.search(r"\.[1-8]$", plain) is not None
        if not file.is_file() or not (is_page or re.match(r"(README|NEWS|FAQ|.*\.txt$|.*\.md$)", plain)):
            continue
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8", "replace")
        if is_page:
            text = re.sub(r"\\f.|\\&|\\-|^\.[A-Za-z]+ ?|^'.*$", " ", text, flags=re.M)
        for paragraph in re.split(r"\n\s*\n", text):
            words = paragraph.split()
            if len(words) > 4 and sum(word.isalpha() for word in words) > len(words) / 2:
                yield " ".join(words)


def parts(case: str, seed: int) -> dict[str, Rows]:
    """The labelled training texts of a seed, and validation and test texts, which are the same for all seeds."""
    rows = descriptions() if case == "debian" else banking77("train")
    random.Random(0).shuffle(rows)
    if case == "debian":
        counts: defaultdict[str, int] = defaultdict(int)
        for _, label in rows:
            counts[label] += 1
        rows = [row for row in rows if counts[row[1]] >= MIN_DESCRIPTIONS]
        test, rows = rows[:TEST], rows[TEST:]
    else:
        test = banking77("test")
    validation, rest = rows[:VALIDATION], rows[VALIDATION:]
    held_out = {text.lower() for text, _ in (*test, *validation)}
    rest = [row for row in rest if row[0].lower() not in held_out]
    shuffled = random.Random(seed).sample(rest, len(rest))
    by_label: defaultdict[str, Rows] = defaultdict(list)
    for row in shuffled:
        by_label[row[1]].append(row)
    few = [row for label in sorted(by_label) for row in by_label[label][:EACH]]
    return {"train": few, "validation": validation, "test": test, "unlabelled": rest}


def unlabelled(case: str) -> list[str]:
    if case != "banking77-debian":
        return list(dict.fromkeys(text for text, _ in parts(case, 0)["unlabelled"]))
    texts, size = [text for text, _ in descriptions()], 0
    for paragraph in documentation():
        texts.append(paragraph)
        size += len(paragraph)
        if size > MAX_CHARACTERS:
            break
    return list(dict.fromkeys(texts))


def pretrain(case: str, runs: Path, steps: int, finish: bool) -> dict[str, Any]:
    import headway as hw

    texts, is_gpt = unlabelled(case), case.endswith("-gpt")
    settings: dict[str, Any] = {**STAGE, "train.steps": steps, **(CAUSAL if is_gpt else MASKED)}
    settings["train.evaluate_every"] = max(1, settings["train.steps"] // 8)
    seconds = runs / f"{case}.seconds"  # of each part of a stage that was stopped
    try:
        run = hw.train(
            "text" if is_gpt else "masked",
            data=[{"text": text} for text in texts],
            set=settings,
            run=runs / case,
            seed=1,
            resume=True,
            finish=finish,
            threads=1,
            samples=0,
        )
    finally:
        with open(seconds, "a", encoding="utf-8") as file:
            file.write(f"{time.process_time():.1f}\n")
    return {
        "settings": settings,
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "parameters": run.summary["parameters"],
        "steps": run.summary["step"],
        "training_seconds": run.summary["seconds"],
        "core_seconds": sum(map(float, seconds.read_text().split())),
        "curve": [{"step": line["step"], "loss": line["loss"]} for line in timeline(run)[1]],
    }


def untrained(run: Path, place: Path, seed: int) -> Path:
    """The model of a run with random weights, and its tokenizer."""
    import headway as hw
    from headway.formats.native import save_model
    from headway.nn.models import build

    model = hw.load(run)
    save_model(build(model.module.config, seed), model.module.config, place)
    model.codec.save(place)
    return place


def finetune(case: str, run: Path, begin: str, seed: int) -> dict[str, Any]:
    """All learning rates of one beginning and seed."""
    import headway as hw

    tried = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files, texts = [], parts(case, seed)
        for name, rows in texts.items():
            if name != "unlabelled":
                files.append(place / f"{name}.csv")
                with open(files[-1], "w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([("text", "label"), *rows])
        start = run if begin == "pretrained" else untrained(run, place / "untrained", seed)
        is_gpt = case.endswith("-gpt")
        own = {"task.language_weight": 0.5, "model.dropout": 0.1} if is_gpt else {"task.pool": "mean"}
        own["train.linear_probe"] = len(texts["train"])  # so many that the validation texts are not added at the end
        for rate in GPT_RATES if is_gpt else RATES:
            settings = {**TUNING, **own, "optim.lr": rate}
            found = hw.train(
                "classification",
                data=files,
                set=settings,
                run=place / f"run-{rate}",
                start=start,
                seed=seed,
                threads=1,
                samples=0,
                progress=False,
            )
            best, scores = found.summary["best"], found.summary["scores"]
            tried.append(
                {
                    "rate": rate,
                    "validation_accuracy": best["accuracy"],
                    "best_step": best["step"],
                    "test_accuracy": scores["accuracy"],
                    "test_accuracy_interval": scores["accuracy_interval"],
                }
            )
    chosen = max(tried, key=lambda row: row["validation_accuracy"])
    return {
        "begin": begin,
        "seed": seed,
        "chosen": chosen,
        "tried": tried,
        "core_seconds": round(time.process_time(), 1),
    }


def score(case: str, runs: Path, begins: list[str], seeds: list[int]) -> None:
    """The rows that are missing. Another process may add rows of its own."""
    path = RESULTS / "pretraining.json"
    for seed in seeds:
        for begin in begins:
            cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
            if (begin, seed) in {(row["begin"], row["seed"]) for row in cases.get(case, {}).get("rows", ())}:
                continue
            options = ("--case", case, "--runs", str(runs), "--begins", begin, "--seeds", str(seed))
            row = {**child("pretraining.py", "finetune", *options), "machine": machine()["processor"]}
            cases = json.loads(path.read_text())["cases"] if path.is_file() else {}
            result = cases.setdefault(case, {"rows": []})
            result["rows"].append(row)
            if (runs / f"{case}.json").is_file():
                result["pretraining"] = json.loads((runs / f"{case}.json").read_text())
            for start in BEGINS:
                rows = [row for row in result["rows"] if row["begin"] == start and row["seed"] != TRIAL_SEED]
                values = [row["chosen"]["test_accuracy"] for row in rows]
                result[start] = spread(values) if values else None
            write("pretraining", {"tuning": {**TUNING, "rates": RATES, "each": EACH}, "cases": cases})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("pretrain", "score", "finetune"))
    parser.add_argument("--case", choices=CASES, default=CASES[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of the first stage")
    parser.add_argument("--finish", action="store_true", help="end a stopped first stage within a tenth of its steps")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--begins", nargs="+", choices=BEGINS, default=list(BEGINS))
    args = parser.parse_args()
    runs = args.runs.resolve()
    if args.action == "pretrain" and args.case in MEDIA:
        notes = unlabelled_media.pretrain(args.case, runs)
        (runs / f"{args.case}.json").write_text(json.dumps(notes))
        report(notes)
    elif args.action == "finetune" and args.case in MEDIA:
        results = RESULTS / "pretraining.json"
        cases = json.loads(results.read_text())["cases"] if results.is_file() else {}
        rows = cases.get(args.case, {}).get("rows", [])
        report(unlabelled_media.finetune(args.case, runs, args.begins[0], args.seeds[0], rows))
    elif args.action == "pretrain":
        notes = pretrain(args.case, runs, args.steps, args.finish)
        (runs / f"{args.case}.json").write_text(json.dumps(notes))
        report(notes)
    elif args.action == "finetune":
        report(finetune(args.case, runs / args.case, args.begins[0], args.seeds[0]))
    else:
        score(args.case, runs, args.begins, args.seeds)


if __name__ == "__main__":
    main()
