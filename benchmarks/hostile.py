"""Files that are made to do harm, each given to the commands that read it: refused in one line, or read within bounds.

    python benchmarks/hostile.py                 # all: hours of silence, bombs, pipes, tokenizers, templates, models
    python benchmarks/hostile.py zip HDF5        # those whose names hold one of these

Each command runs in a process of its own, and as many at a time as there are cores. It fails where it takes over 10 s
of a core, over 1 GB more than a command that reads a good file, prints a traceback or more than one line of error, or
ends other than with 0 or 2. What is in results/hostile.json is not run again (remove it for that), and cases come in an
order that mixes their kinds, so that a run that is stopped says something of all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hostile_contents
import hostile_files
import hostile_models
import hostile_texts
from hostile_case import Case
from measure import RESULTS, write

SOURCES = (hostile_files, hostile_contents, hostile_texts, hostile_models)
_SECONDS, _MEMORY = 10, 1 << 30  # that a command may take: of a core, and bytes beyond a good file
_STOPPED, _WAITED = 60, 600  # seconds of a core, and of the clock, after which it is stopped
_TOLD = 300  # characters of an error that are kept


def cases(names: list[str]) -> list[Case]:
    """Those of all sources that are there, or whose names hold one of `names`."""
    found = [case for source in SOURCES for case in source.CASES]
    return [case for case in found if not names or any(name in case.name for name in names)]


def made(case: Case, folder: Path) -> Path:
    """The case's file, made in a process of its own, whose memory does not count."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, str(case.make(folder)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        path = said.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"{case.name} could not be made")
    return Path(path)


def ran(command: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What a command took and said."""
    limits = {resource.RLIMIT_CPU: (_STOPPED, _STOPPED), resource.RLIMIT_CORE: (0, 0)}
    environment = {**os.environ, "HEADWAY_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with (folder / "error").open("wb") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "headway", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=error,
            env=environment,
            preexec_fn=lambda: [resource.setrlimit(kind, most) for kind, most in limits.items()],
        )
        watch = subprocess.Popen([sys.executable, "-c", _WATCH, str(process.pid), str(_WAITED)])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.kill()
        watch.wait()
    lines = (folder / "error").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("headway: ")] or lines[-1:]
    return {
        "exit": process.returncode,
        "seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": used.ru_maxrss * 1024,
        "said": errors[0].replace(str(folder), "")[:_TOLD] if errors else "",
        "errors": len(errors) if process.returncode else 0,
        "traceback": any(line.startswith("Traceback") for line in lines),
    }


_WATCH = "import os, signal, sys, time; time.sleep(float(sys.argv[2])); os.kill(int(sys.argv[1]), signal.SIGKILL)"


def faults(result: dict[str, Any], base: int) -> list[str]:
    """What a command did that it may not."""
    found = {
        f"exit {result['exit']}": result["exit"] not in (0, 2),
        f"{result['seconds']} s": result["seconds"] > _SECONDS,
        f"{(result['peak_bytes'] - base) / 1e9:.1f} GB": result["peak_bytes"] - base > _MEMORY,
        f"{result['errors']} lines": result["errors"] > 1,
        "a traceback": result["traceback"],
    }
    return [name for name, wrong in found.items() if wrong]


def base_of(folder: Path) -> int:
    """Bytes that training one step on a good file takes."""
    (folder / "good.csv").write_text("text,label\n" + "".join(f"good {n},a\nbad {n},b\n" for n in range(500)))
    good = ("train", "classification", "--data", str(folder / "good.csv"), "--run", str(folder / "run"))
    result = ran((*good, "--set", "train.steps=1"), folder)
    if result["exit"]:
        raise RuntimeError(f"a good file is not read: {result['said']}")
    return result["peak_bytes"]


def judged(names: list[str], number: int, base: int) -> list[dict[str, Any]]:
    """What all commands of a case did; the case by its number, as processes can be told no functions."""
    case, results = cases(names)[number], []
    for command in case.commands:
        with tempfile.TemporaryDirectory() as folder:
            path = made(case, Path(folder))
            result = ran(tuple(word.replace("{file}", str(path)) for word in command), Path(folder))
        wrong = faults(result, base)
        results.append({"name": case.name, "command": " ".join(command), **result, "faults": wrong})
        print(f"{', '.join(wrong) or 'held':<12} {case.name}: {result['said'][:100]}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of the names of cases")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = base_of(Path(folder))
    path = RESULTS / "hostile.json"
    results: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    known = {each["name"] for each in results}
    numbers = [number for number, case in enumerate(cases(args.names)) if case.name not in known]
    random.Random(1).shuffle(numbers)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for each in as_completed([pool.submit(judged, args.names, number, base) for number in numbers]):
            results += each.result()
            failed = sum(bool(result["faults"]) for result in results)
            write("hostile", {"base_bytes": base, "commands": len(results), "failures": failed, "results": results})
    failed = [each for each in results if each["faults"]]
    print(f"{len(results) - len(failed)} of {len(results)} held", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
