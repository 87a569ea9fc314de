"""Folders of runs for tests: files as a training writes them, and a process that holds a run as a training does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECIPE = {
    "name": "tiny",
    "domain": "text",
    "model": {"width": 8, "stack": {"blocks": [{"mixer": {"kind": "lstm"}}] * 2}},
}


def make_run(runs: Path, name: str, steps: int = 20, done: int | None = None, **summary: Any) -> Path:
    """A run with `done` of its steps (default: all), an evaluation each ten steps, and a sample."""
    path, done = runs / name, steps if done is None else done
    path.mkdir(parents=True)
    recipe = {**RECIPE, "train": {"steps": steps, "seed": len(name)}, "reasons": ["a reason"]}
    (path / "recipe.json").write_text(json.dumps(recipe))
    best = {"step": done, "loss": 3.0 - done / 100, "bleu": 10.0 + done}
    scores = {"split": "test", "loss": 2.5, "loss_interval": [2.4, 2.6], "bleu": 12.0}
    status = {
        "format": 1, "status": "finished" if done == steps else "interrupted", "recipe": "tiny", "parameters": 1234,
        "steps": steps, "step": done, "tokens": 100 * done, "seconds": float(done), "elapsed": 2.0 * done,
        "goal": "bleu", "unit": "token", "device": "cpu", "threads": 1, "best": best, "python": "3.11",
        "samples": [{"prompt": "a <b>bold</b> start", "output": f"of {name}"}], "scores": scores,
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps({**status, **summary}))
    (path / "metrics.jsonl").write_text("".join(lines(1, done + 1)))
    return path


def lines(start: int, end: int) -> Iterator[str]:
    """Lines of metrics.jsonl of steps."""
    for step in range(start, end):
        common = {"step": step, "seconds": float(step)}
        yield (
            json.dumps({**common, "loss": 4 - step / 10, "lr": 0.01, "tokens": 100 * step, "tokens_per_second": 99.5})
            + "\n"
        )
        if step % 10 == 0:
            yield json.dumps({**common, "split": "validation", "loss": 4 - step / 20, "bleu": 1.5 * step}) + "\n"


@contextmanager
def trained(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a run, as if it trained it."""
    code = "import sys, time; from pathlib import Path; from headway.io.lease import Lease\n"
    code += "assert Lease(Path(sys.argv[1]) / '.lease').take(lambda: True) is None; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        while not (path / ".lease").exists() or not (path / ".lease").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()
