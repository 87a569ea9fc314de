"""What all benchmarks share: where they ran, repeats in processes of their own, and results as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from headway.bench.benchmark import machine, summarize
from headway.engine.processor import INSTRUCTION_SET

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
spread = summarize  # for all benchmarks


def data_folder() -> Path:
    """HEADWAY_DATA, or shared/data beside the project."""
    return Path(os.environ.get("HEADWAY_DATA", ROOT.parent / "shared" / "data"))


def child(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark's part in a process of its own; it prints one JSON object as its last line.

    The process learns when it was started, so that it can count its own start.
    """
    environment = {**os.environ, "BENCHMARK_STARTED": repr(time.time()), "HEADWAY_DATA": str(data_folder())}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed packages have their byte code, so has headway
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def since_start() -> float:
    """Seconds since the process that runs this part was started."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def timeline(run: Any) -> tuple[float, list[dict[str, Any]]]:
    """Seconds that a run took beside training and evaluation (start, data, checkpoints), and its evaluations, whose
    `seconds` count training alone."""
    evaluations = [line for line in run.metrics if line.get("split") == "validation"]
    judging = sum(line["evaluation_seconds"] for line in evaluations)
    return run.summary["elapsed"] - run.summary["seconds"] - judging, evaluations


def report(result: dict[str, Any]) -> None:
    """Hand a part's result to whoever started it."""
    print(json.dumps(result), flush=True)


FAMILIES = ("xeon", "epyc", "ryzen", "core", "neoverse", "graviton")  # of processors, by which machines are called


def kind_of_machine() -> str:
    """As xeon-amx: the family of the processor, where it is known, and the best instructions that the engine has."""
    processor = machine()["processor"].lower()
    return "-".join([*[family for family in FAMILIES if family in processor][:1], INSTRUCTION_SET])


def write_of_machine(name: str, result: dict[str, Any]) -> None:
    """`write` what is kept of each kind of machine."""
    write(f"machines/{kind_of_machine()}/{name}", result)


def write(name: str, result: dict[str, Any]) -> None:
    """Write results as they came, with machine and time."""
    whole = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": machine(), **result}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
