"""Instruction tuning and DPO by the command line: a real model of 260,000 parameters learns to answer in Shakespeare.

    python benchmarks/chat.py                  # about 8 core-minutes; runs/plays and runs/preferred can be talked to

Speeches of the plays that follow each other are question and answer; stories260K, which was trained on children's
stories, starts the run. Then it learns to prefer the answer that stands in the play to the same words in another order.
A seventh of the scenes is held out by the hash of what comes before the answer.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import data_folder, write

LONGEST = 300  # characters of a speech
SPLIT = 'task.split={"validation": 0.07, "test": 0.07}'
STEPS = {"instruct": 1200, "preference": 200}


def exchanges() -> Iterator[tuple[str, str]]:
    """A speech and the one that answers it."""
    text = (data_folder() / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    speeches = [part.split(":\n", 1)[1].replace("\n", " ") for part in text.split("\n\n") if ":\n" in part]
    for said, answer in zip(speeches[::2], speeches[1::2]):
        if max(len(said), len(answer)) <= LONGEST:
            yield said.strip(), answer.strip()


def conversations(path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for said, answer in exchanges():
            messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def choices(path: Path) -> Path:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for said, answer in exchanges():
            words = answer.split()
            draw.shuffle(words)
            if words != answer.split():
                file.write(json.dumps({"prompt": said, "chosen": answer, "rejected": " ".join(words)}) + "\n")
    return path


def headway(*arguments: str, text: str | None = None) -> Any:
    """What a command prints, read as JSON."""
    command = [sys.executable, "-m", "headway", *arguments, "--json"]
    print("headway", *arguments, file=sys.stderr)
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def tune(recipe: str, data: Path, start: str, run: str) -> dict[str, Any]:
    began = time.time()
    steps = STEPS[recipe]
    headway(
        *("train", recipe, "--data", str(data), "--from", start, "--run", run, "--resume", "--seed", "1"),
        *("--set", f"train.steps={steps}", f"train.evaluate_every={steps // 4}", "task.drop_long=true", SPLIT),
    )
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if line.get("split") == "validation"]
    scores = headway("evaluate", run)
    return {"steps": steps, "seconds": round(time.time() - began, 1), "first": judged[0], "last": judged[-1], **scores}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", default="runs")
    runs = parser.parse_args().runs
    start = str(data_folder() / "weights" / "stories260K.bin")
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "from": "stories260K",
            "instruct": tune("instruct", conversations(Path(folder) / "plays.jsonl"), start, f"{runs}/plays"),
            "preference": tune(
                "preference", choices(Path(folder) / "choices.jsonl"), f"{runs}/plays", f"{runs}/preferred"
            ),
        }
    write("chat", result)


if __name__ == "__main__":
    main()
