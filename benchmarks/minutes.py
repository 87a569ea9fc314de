"""How well the minutes that are asked for are kept, by `train` and by `compare`, as the clock on the wall tells.

    python benchmarks/minutes.py              # about 9 minutes of one core
    python benchmarks/minutes.py text         # the cases whose names start so

Each command is a process of its own on one thread, from its start to its end; runs go into a temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import RESULTS, data_folder, write

_DATA = data_folder()
_TEXTS = ["classification", "--data", str(_DATA / "textcls/banking77/train.csv"), "--set", "task.label=category"]
_PLAYS = ["text", "--data", str(_DATA / "lm/tinyshakespeare.txt")]
_PAIRS = [str(_DATA / f"translation/multi30k-train.{language}.gz") for language in ("en", "de")]
# Commands, minutes of each run, and runs.
CASES = {
    "classification": (["train", *_TEXTS], 1.0, 1),
    "text": (["train", *_PLAYS], 1.0, 1),
    "translation": (["train", "translation", "--data", *_PAIRS], 1.5, 1),
    "classification: attention, lstm": (["compare", *_TEXTS, "model.mixer=attention,lstm"], 1.0, 2),
    "text: attention, gru, two seeds": (
        ["compare", *_PLAYS, "--set", "model.mixer=attention,gru", "--seeds", "2"],
        0.5,
        4,
    ),
}


def measured(command: list[str], minutes: float, runs: int) -> dict[str, Any]:
    """Seconds asked for and taken, and what the scores are of."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        words = [sys.executable, "-m", "headway", *command, "--minutes", f"{minutes:g}", "--threads", "1"]
        started = time.monotonic()
        subprocess.run([*words, "--run", str(place)], check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - started
        found = [json.loads(path.read_text()) for path in sorted(place.rglob("run.json"))]
    asked = 60 * minutes * runs
    return {
        "asked_seconds": asked,
        "seconds": round(took, 2),
        "off": round(took / asked - 1, 4),
        "training_seconds": [status["seconds"] for status in found],
        "evaluated": [[s["scores"].get("judged", "all"), s["scores"].get("judged_of")] for s in found],
    }


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    file = RESULTS / "minutes.json"
    known = json.loads(file.read_text())["commands"] if file.exists() else {}
    for name, case in CASES.items():
        if name.startswith(wanted):
            load = os.getloadavg()[0]
            known[name] = {**measured(*case), "load_before": round(load, 1)}
            print(name, known[name], file=sys.stderr, flush=True)
            write("minutes", {"what": "wall seconds of whole commands, next to those asked for", "commands": known})


if __name__ == "__main__":
    main()
