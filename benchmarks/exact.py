"""Runs with other numbers of processes, compared byte for byte, and what `parallel.exact` costs.

    python benchmarks/exact.py                     # bytes and times
    python benchmarks/exact.py bytes [CASE ...]    # the runs with 1, 2, 3, 4 and 8 processes, and 2, then 3, then 8
    python benchmarks/exact.py times               # steps of gpt-10m: on a machine with nothing else to do

Every run is one of the command line, with one thread per process. The last one in each case starts with 2 processes;
they are killed after a checkpoint, 3 continue and are killed, too, and 8 finish. The files of all runs in a case must
be equal: model.safetensors, the last checkpoint, and metrics.jsonl except for times. Processes that share a model write
checkpoints of their own, which are not compared. A case is a row of CASES.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import spread, write
from samples import drawn

_FORKING = get_context("forkserver")
_FORKING.set_forkserver_preload(["torch", "tokenizers", "headway.app.cli.main", "headway.app.cli.train"])

WORLDS = (1, 2, 3, 4, 8)
CHANGED = (2, 3, 8)  # processes before the first kill, before the second, and to the end
SHARDED = (1, "1 x 2", "1 x 4", "2 x 2")  # replicas and shards
RESHARDED = ("1 x 2", 3, "2 x 2")
STEPS, CHECKPOINT = 24, 4
BASE = {
    "train.steps": STEPS,
    "train.accumulate": 8,
    "train.precision": "fp32",
    "train.checkpoint_every": CHECKPOINT,
    "train.evaluate_every": 12,
    "train.evaluate_limit": 8,
    "parallel.exact": True,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.dropout": 0.1,
}
TEXT = {"task.size": 300, "task.context": 32, "train.batch_tokens": 128}
ADAMW = {"optim.kind": "adamw"}
TIMES = ("seconds", "tokens_per_second", "evaluation_seconds")


@dataclass(frozen=True)
class Case:
    """A recipe with settings on samples of a kind that `samples.py` draws; `start` is the case that it fine-tunes.
    `worlds` are numbers of processes, or of replicas and shards: "2 x 4" are two replicas of four shards each.
    """

    recipe: str
    settings: Mapping[str, Any]
    data: str = "text"
    start: str | None = None
    lora: int | None = None
    worlds: Sequence[int | str] = WORLDS
    changed: Sequence[int | str] = CHANGED

    @property
    def is_sharded(self) -> bool:
        """Whether processes write their own rows of a checkpoint, whose files depend on their number."""
        return any(isinstance(world, str) for world in self.worlds)


CASES = {
    "text adamw": Case("text", {**TEXT, **ADAMW}),
    "text muon": Case("text", {**TEXT, "optim.kind": "muon"}),
    "text average": Case("text", {**TEXT, **ADAMW, "train.ema": 0.9, "train.average": 2}),
    "text lora": Case("text", {"adapter.dropout": 0.1}, start="text adamw", lora=4),
    "text carried lstm": Case(
        "text", {**TEXT, "model.mixer": "lstm", "task.carry_state": True, "model.context": None, "task.context": 16}
    ),
    "translation": Case("translation", {"task.size": 300, "train.batch_tokens": 256}, "translation"),
    "vision adamw": Case("vision", {**ADAMW, "train.batch_size": 8}, "vision"),
    "vision muon": Case("vision", {"optim.kind": "muon", "train.batch_size": 8}, "vision"),
    "text shards": Case("text", {**TEXT, **ADAMW, "train.ema": 0.9}, worlds=SHARDED, changed=RESHARDED),
    "text shards muon": Case("text", {**TEXT, "optim.kind": "muon"}, worlds=SHARDED, changed=RESHARDED),
    "vision shards": Case("vision", {**ADAMW, "train.batch_size": 8}, "vision", worlds=SHARDED, changed=RESHARDED),
}


def _headway(words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """A process of the command line."""
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environment)
    from headway.app.cli.main import main

    sys.exit(main(words))


class Group:
    """Processes that train a run together, as torchrun starts them."""

    def __init__(self, world: int, words: Sequence[object], log: Path, threads: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments = ["train", *map(str, words), "--threads", str(threads), "--device", "cpu"]
        self.log = log
        self.processes = [
            _FORKING.Process(
                target=_headway, args=(arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log)
            )
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def finish(self) -> None:
        for process in self.processes:
            process.join()
        if any(process.exitcode for process in self.processes):
            raise RuntimeError(self.log.read_text())

    def kill_after(self, checkpoint: Path) -> None:
        """SIGKILL to all once a checkpoint is there."""
        while not checkpoint.exists():
            if all(process.exitcode is not None for process in self.processes):
                raise RuntimeError(self.log.read_text())
            time.sleep(0.005)
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()


def settings_words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


def plan(world: int | str) -> tuple[int, dict[str, Any]]:
    """The number of processes, and the settings that divide them."""
    if isinstance(world, int):
        return world, {"parallel.replicas": -1, "parallel.shard": 1}
    replicas, shards = map(int, world.split(" x "))
    return replicas * shards, {"parallel.replicas": replicas, "parallel.shard": shards}


def digests(run: Path, is_sharded: bool) -> dict[str, str]:
    """The digests of a run's files, by name; without those of its checkpoints if they depend on the processes."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bare = json.dumps([{name: value for name, value in line.items() if name not in TIMES} for line in lines])
    found = {"metrics.jsonl": hashlib.sha256(bare.encode()).hexdigest()}
    for path in sorted(run.glob("*.safetensors" if is_sharded else "**/*.safetensors")):
        found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def compare(name: str, folder: Path) -> dict[str, Any]:
    """The digest of the weights of each run in a case, and whether all files are equal."""
    case = CASES[name]
    base = {key: value for key, value in BASE.items() if case.start is None or not key.startswith("model.")}
    words: list[object] = [case.recipe, "--data", *drawn(case.data, 240, folder / "data" / case.data)]
    if case.start is not None:
        words += ["--from", folder / case.start / "1"]
    if case.lora is not None:
        words += ["--lora", case.lora]
    base |= case.settings
    found: dict[str, dict[str, str]] = {}
    for world in case.worlds:
        run = folder / name / str(world).replace(" ", "-")
        count, settings = plan(world)
        Group(count, [*words, "--set", *settings_words(base | settings), "--run", run], folder / "log").finish()
        found[str(world)] = digests(run, case.is_sharded)
    key = " then ".join(map(str, case.changed))
    run, stopped = folder / name / key.replace(" ", "-"), []
    for number, world in enumerate(case.changed):
        count, settings = plan(world)
        arguments = [*words, "--set", *settings_words(base | settings), "--run", run]
        group = Group(count, [*arguments, *(["--resume"] if number else [])], folder / "log")
        if number == len(case.changed) - 1:
            group.finish()
        else:
            group.kill_after(run / "checkpoints" / f"step-{(number + 1) * 2 * CHECKPOINT:08}")
            stopped.append(max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")))
    if stopped[-1] >= STEPS:
        raise RuntimeError(f"{name}: the run had finished before it was killed; raise STEPS")
    found[key] = digests(run, case.is_sharded)
    first = next(iter(found.values()))
    different = {
        run: [file for file in first.keys() | files.keys() if first.get(file) != files.get(file)]
        for run, files in found.items()
        if files != first
    }
    result = {"equal": not different, "files": len(first), "resumed_after_steps": stopped, "different": different}
    result["model.safetensors"] = {run: files["model.safetensors"][:16] for run, files in found.items()}
    print(f"{name}: {'equal' if not different else f'different: {different}'}", file=sys.stderr, flush=True)
    return result


TOKENS, TIMED, WARM_UP, ROUNDS = 24_576, 4, 1, 2
GPT_10M = {
    "task.codec": "char", "task.context": 256, "model.width": 384, "model.depth": 6, "model.heads": 6,
    "train.batch_tokens": TOKENS // 2, "train.accumulate": 2, "train.steps": WARM_UP + TIMED,
    "train.evaluate_limit": 1, "train.checkpoint_every": 1000,
}  # fmt: skip
ARRANGEMENTS = {  # processes, threads of each, and whether sums are exact
    "2 processes of 1 thread": (2, 1, False),
    "2 processes of 1 thread, exact": (2, 1, True),
    "1 process of 2 threads": (1, 2, False),
}


def step_seconds(world: int, threads: int, exact: bool, folder: Path) -> list[float]:
    """Seconds of each step after the first ones."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    data = drawn("text", 20_000, folder / "data")
    settings = settings_words({**GPT_10M, "parallel.exact": exact})
    words = ["text", "--data", *data, "--run", folder / "run", "--set", *settings]
    Group(world, words, folder / "log", threads).finish()
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "split" not in line]
    ends = [line["seconds"] for line in steps]
    return [end - start for start, end in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]


def times(folder: Path) -> dict[str, Any]:
    """Seconds per step in each arrangement, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ARRANGEMENTS}
    for _ in range(ROUNDS):
        for name, arrangement in ARRANGEMENTS.items():
            seconds[name] += step_seconds(*arrangement, folder)
            print(f"{name}: {statistics.median(seconds[name]):.3f} s", file=sys.stderr, flush=True)
    plain, exact, alone = (statistics.median(values) for values in seconds.values())
    return {
        "tokens_per_step": TOKENS,
        "seconds_per_step": {name: spread([round(value, 3) for value in values]) for name, values in seconds.items()},
        "cost_of_exact": round(exact / plain - 1, 4),
        "speed_of_2_processes": round(alone / plain, 3),
        "speed_of_2_processes_exact": round(alone / exact, 3),
    }


def main(part: str | None, names: Sequence[str]) -> None:
    path = Path(__file__).parent / "results" / "exact.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result = {name: value for name, value in result.items() if name in ("bytes", "times")}
    with TemporaryDirectory() as name:
        if part in (None, "bytes"):
            chosen = {needed for case in names or CASES for needed in (case, CASES[case].start)}
            for case in (case for case in CASES if case in chosen):
                result.setdefault("bytes", {})[case] = compare(case, Path(name))
                write("exact", result)
        if part in (None, "times"):
            result["times"] = times(Path(name))
            write("exact", result)
    if not all(case["equal"] for case in result.get("bytes", {}).values()):
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("bytes", "times"))
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"from {', '.join(CASES)} (default: all)")
    args = parser.parse_args()
    main(args.part, args.cases)
