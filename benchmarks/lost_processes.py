"""Two processes that train together: killed, stopped, missing and ended by signals at random moments.

After each loss, the other process has to end by itself with one line, and the run is resumed; at its end, the model and
the last checkpoint have to be, byte for byte, those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import ROOT, write

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

SETTINGS = {"steps": 300, "accumulate": 2, "checkpoint_every": 2, "evaluate_every": 100, "ema": 0.9}
TIMEOUT = 3.0  # seconds, the setting parallel.timeout
TASK = ROOT / "tests" / "unit" / "tiny_task.py"
SHORT_START = "from headway.learn.parallel import group\ngroup._MIN_START_SECONDS = 3\n"
RUN = "import runpy, sys\nsys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def words(run: Path, delay: float) -> list[str]:
    pairs = {**SETTINGS, "parallel.timeout": TIMEOUT, "delay": delay}
    return [str(run), "resume", *(f"{name}={json.dumps(value)}" for name, value in pairs.items())]


def start(run: Path, ranks: Sequence[int] = (0, 1), delay: float = 0.004, source: str = RUN) -> list[Any]:
    import processes  # pyright: ignore[reportMissingImports]

    processes._FORKING.set_forkserver_preload(["headway.learn.trainer", "headway.app.cli.main"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    given = (str(TASK), *words(run, delay))
    return [processes.Program(run.parent, source, *given, **shared, RANK=str(r), LOCAL_RANK=str(r)) for r in ranks]


def lines(programs: Sequence[Any]) -> list[str]:
    """What the programs report, when all have ended."""
    return [line for program in programs for line in program.wait(200)[1].splitlines() if line.startswith("headway: ")]


def newest(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name[-8:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def wait_for_step(run: Path, step: int, programs: Sequence[Any]) -> bool:
    """Whether the run reaches the step before its end."""
    while newest(run) < step and all(program.returncode is None for program in programs):
        time.sleep(0.002)
    return all(program.returncode is None for program in programs)


def equal(run: Path, undisturbed: Path) -> bool:
    names = ["model.safetensors", *(str(p.relative_to(run)) for p in run.glob("checkpoints/*/*.safetensors"))]
    return len(names) > 2 and all((run / name).read_bytes() == (undisturbed / name).read_bytes() for name in names)


def kills(folder: Path, undisturbed: Path, count: int, per_run: int, seed: int, minutes: float) -> dict[str, Any]:
    """SIGKILL of one process or of all at random moments, then `--resume`."""
    chance, seconds, told, saving, ones, done = random.Random(seed), [], [], 0, 0, 0
    runs: list[bool] = []
    others: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60 * minutes
    while done < count and time.monotonic() < deadline:
        run = folder / f"run-{len(runs)}"
        moments = sorted(chance.randrange(int(SETTINGS["steps"])) for _ in range(min(per_run, count - done)))
        for moment in moments:
            programs = start(run)
            wait_for_step(run, max(moment, newest(run) + 1), programs)
            time.sleep(chance.uniform(0, 0.03))
            lost = chance.choice([[0], [1], [0, 1]])
            if all(program.returncode is None for program in programs):
                for rank in lost:
                    programs[rank].signal(signal.SIGKILL)
                began = time.monotonic()
                left = [program for rank, program in enumerate(programs) if rank not in lost]
                found = lines(left)
                done += 1
                saving += bool(list((run / "checkpoints").glob(".step-*")))
                if left:
                    ones += 1
                    seconds.append(time.monotonic() - began)
                    told.append(
                        len(found) == 1 and f"training process {lost[0]}" in found[0] and left[0].returncode == 1
                    )
                    if not told[-1]:
                        others.append({"killed": lost[0], "exit code": left[0].returncode, "lines": found})
            lines(programs)
        finished = start(run)
        lines(finished)
        runs.append([program.returncode for program in finished] == [0, 0] and equal(run, undisturbed))
        print(
            f"{done} kills, runs equal: {runs}, one line: {sum(told)} of {ones} {others}", file=sys.stderr, flush=True
        )
    return {
        "kills": done,
        "of one process": ones,
        "while a checkpoint was written": saving,
        "runs": len(runs),
        "runs with the bytes of an undisturbed run": sum(runs),
        "one line that names the process": sum(told),
        "other endings": others,
        "seconds until the other process ended, median": round(sorted(seconds)[len(seconds) // 2], 2),
        "seconds until the other process ended, most": round(max(seconds), 2),
    }


def stopped(folder: Path, rank: int) -> dict[str, Any]:
    """SIGSTOP of one process."""
    run = folder / "run"
    programs = start(run)
    wait_for_step(run, 20, programs)
    programs[rank].signal(signal.SIGSTOP)
    began = time.monotonic()
    found = lines([programs[1 - rank]])
    programs[rank].signal(signal.SIGKILL)
    return {"rank": rank, "seconds": round(time.monotonic() - began, 2), "lines": found}


def missing(folder: Path, rank: int) -> dict[str, Any]:
    """One process never starts."""
    began = time.monotonic()
    found = lines(start(folder / "run", ranks=[1 - rank], source=SHORT_START + RUN))
    return {"rank": rank, "seconds with the start": round(time.monotonic() - began, 2), "lines": found}


def terminated(folder: Path, undisturbed: Path, command: Callable[[Path], list[str]], who: str) -> dict[str, Any]:
    """SIGTERM to the program that has started the processes, or to one of them; then `--resume`."""
    run = folder / "run"
    program = subprocess.Popen(command(run), stderr=subprocess.PIPE, text=True)
    while newest(run) < 10 and program.poll() is None:
        time.sleep(0.05)
    if program.poll() is not None:
        raise SystemExit(program.communicate()[1])
    children = subprocess.run(["pgrep", "-P", str(program.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(program.pid if who == "torchrun" else int(children.split()[-1]), signal.SIGTERM)
    began = time.monotonic()
    _, errors = program.communicate()
    seconds = time.monotonic() - began
    report = errors.replace(f"{run.parent}/", "")
    found = [line for line in report.splitlines() if line.startswith("headway: ")]
    codes = [(run.parent / f"exit-{rank}").read_text() for rank in range(2)]
    status = json.loads((run / "run.json").read_text())
    resumed = start(run)
    lines(resumed)
    return {
        "SIGTERM to": who,
        "seconds": round(seconds, 2),
        "exit codes": codes,
        "checkpoint at the last step": newest(run) >= status["step"] > 0,
        "lines": found,
        "bytes of an undisturbed run": equal(run, undisturbed),
    }


CHILD = """
import os, pathlib, runpy, sys
script, run = sys.argv[1:3]
sys.argv.pop(0)
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    pathlib.Path(run).with_name("exit-" + os.environ["RANK"]).write_text(str(end.code))
    raise
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no other run with kills after so many")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)

        def place(label: str) -> Path:
            (folder / label).mkdir()
            return folder / label

        undisturbed = place("undisturbed") / "run"
        first = start(undisturbed)
        found = lines(first)
        assert [program.returncode for program in first] == [0, 0], found
        child = folder / "child.py"
        child.write_text(CHILD)

        def torchrun(run: Path) -> list[str]:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            return [*launcher, str(child), str(TASK), *words(run, 0.02)]

        # Signals first: they take the fewest minutes.
        result = {
            "processes": 2,
            "settings": {**SETTINGS, "parallel.timeout": TIMEOUT},
            "load": os.getloadavg(),
            "SIGTERM": [
                terminated(place(f"sigterm-{i}"), undisturbed, torchrun, who)
                for i, who in enumerate(["torchrun", "torchrun", "one process", "one process"])
            ],
            "SIGSTOP": [stopped(place(f"stopped-{rank}"), rank) for rank in range(2)],
            "one that never starts": [missing(place(f"missing-{rank}"), rank) for rank in range(2)],
            "SIGKILL": kills(place("kills"), undisturbed, args.kills, args.per_run, args.seed, args.minutes),
        }
    write("lost_processes", result)


if __name__ == "__main__":
    main()
