"""Commands where the clock jumps, memory or descriptors are few, folders are huge, paths long and names written twice.

    python benchmarks/surroundings.py                  # all: about half an hour
    python benchmarks/surroundings.py clock memory     # these groups

Each command runs in a process of its own. It ends well or is refused in one line: a traceback, a second line of error,
another exit code, or a time over the limit is a fault. What was tried and what came of it is in
results/surroundings.json, and is printed as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from measure import RESULTS, ROOT, write

_SECONDS, _WAITED = 600, 3600  # of a core and of the clock, after which a command counts as hanging
_FILES = 1_000_000
_LINKS = 20_000  # names of one file
_DEEP = 4000  # characters of a path
_SMALL = ("model.width=32", "model.depth=1", "train.batch_tokens=256", "task.context=32", "task.size=280")
_FEW = (*_SMALL, "train.steps=2", "train.evaluate_limit=4")
# A clock that leaps hours and years forwards and back, each time that it is read.
_JUMPING = """
import itertools, runpy, sys, time
leaps, now, now_ns = itertools.cycle((0, 7200, -86400, 3e8, -3e8, 1.5, -4e9)), time.time, time.time_ns
time.time = lambda: now() + next(leaps)
time.time_ns = lambda: now_ns() + int(next(leaps) * 10**9)
sys.argv[0] = "headway"
runpy.run_module("headway", run_name="__main__")
"""
_TEXT = "the cat sat on the mat and the dog saw it\n\n"


class Trial(NamedTuple):
    """A command, the soft limits of its process, more of its environment, and the exit codes that are right."""

    name: str
    command: tuple[str, ...]
    limits: Mapping[int, int] = {}
    environment: Mapping[str, str] = {}
    codes: tuple[int, ...] = (0, 2)
    program: tuple[str, ...] = ("-m", "headway")


def ran(trial: Trial, folder: Path) -> dict[str, Any]:
    """What a trial took and wrote."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS + 10))
        for kind, most in trial.limits.items():
            resource.setrlimit(kind, (most, most))

    environment = {**os.environ, "HEADWAY_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **trial.environment}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *trial.program, *trial.command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
        start_new_session=True,
    )
    late = False
    try:
        out, err = process.communicate(timeout=_WAITED)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    lines = err.decode("utf-8", "replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("headway: ")] or lines[-1:]
    wrong = {
        f"no end in {_SECONDS} s": late or process.returncode == -signal.SIGXCPU,
        f"exit {process.returncode}": not late and process.returncode not in trial.codes,
        "a traceback": any(line.startswith("Traceback") for line in lines),
        "several lines of error": process.returncode == 2 and sum(line.startswith("headway: ") for line in lines) > 1,
    }
    return {
        "trial": trial.name,
        "command": _short(" ".join(trial.command).replace(str(folder), "")),
        "exit": process.returncode,
        "seconds": round(time.perf_counter() - started, 1),
        "error": _short(errors[0].replace(str(folder), "")) if errors and process.returncode else "",
        "output": _short(out.decode("utf-8", "replace").strip().rpartition("\n")[2].replace(str(folder), "")),
        "faults": [name for name, is_so in wrong.items() if is_so],
    }


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-80:]}"


def training(data: Path | str, run: Path | str, *more: str, recipe: str = "text", few: tuple[str, ...] = _FEW) -> Any:
    return ("train", recipe, "--data", str(data), "--run", str(run), *more, "--set", *few)


def generating(run: Path | str) -> tuple[str, ...]:
    return ("generate", str(run), "--prompt", "the cat", "--max-new-tokens", "8", "--temperature", "0", "--json")


def clock(folder: Path) -> Iterator[Trial]:
    data, run = folder / "text.txt", folder / "jumping"
    jumping = ("-c", _JUMPING)
    for name, command in (
        ("train", training(data, run)),
        (
            "train for minutes",
            ("train", "text", "--data", str(data), "--run", str(folder / "timed"), "--minutes", "0.3"),
        ),
        ("generate", generating(run)),
        ("evaluate", ("evaluate", str(run), "--limit", "2")),
        ("verify", ("verify", str(run))),
        ("export", ("quantize", str(run), str(folder / "rounded"), "--weights", "int8")),
    ):
        yield Trial(f"the clock jumps by hours and years: {name}", command, codes=(0,), program=jumping)
    for name, when in (("1970", 0), ("1901", -(2**31)), ("2106", 2**32), ("2400", 13_569_465_600)):
        dated = folder / f"of-{name}.txt"
        dated.write_text(_TEXT * 200)
        os.utime(dated, (when, when))
        yield Trial(f"a file dated {name}", training(dated, folder / f"of-{name}"), codes=(0,))


def memory(folder: Path) -> Iterator[Trial]:
    data, run = folder / "text.txt", folder / "run"
    for name, kind in (("RLIMIT_AS", resource.RLIMIT_AS), ("RLIMIT_DATA", resource.RLIMIT_DATA)):
        for megabytes in (200, 400, 800, 1600, 3200):
            for use, command in (
                ("train", training(data, folder / f"{name}-{megabytes}")),
                ("generate", generating(run)),
                ("show", ("show", "gpt3-175b")),
            ):
                # Where memory runs out within the work, the exit code is 1.
                codes = (0, 1, 2) if kind == resource.RLIMIT_DATA and megabytes < 800 else (0, 2)
                yield Trial(f"{name} of {megabytes} MB: {use}", command, {kind: megabytes << 20}, codes=codes)


def many_files(folder: Path) -> Iterator[Trial]:
    place = folder / "million"
    for name, suffix in (("texts", ".txt"), ("unknown files", ".xyz")):
        fill(place / suffix[1:], suffix)
        yield Trial(f"a million {name}: train", training(place / suffix[1:], folder / f"of-{suffix[1:]}"))
    yield Trial(
        "a million texts: evaluate", ("evaluate", str(folder / "run"), "--data", str(place / "txt"), "--limit", "9")
    )
    yield Trial("a million unknown files: images", training(place, folder / "no-images", recipe="vision", few=()))
    yield Trial(
        "a million files: export next to them",
        ("quantize", str(folder / "run"), str(place / "xyz" / "out"), "--weights", "int8"),
    )
    yield Trial(
        "a million files: a folder of models", ("serve", "--models", str(place / "xyz"), "--port", "0"), codes=(2,)
    )
    yield Trial("a million files: as a run", ("show", str(place / "xyz")), codes=(2,))


def fill(place: Path, suffix: str) -> None:
    """A million names of a few files."""
    place.mkdir(parents=True)
    for first in range(0, _FILES, _LINKS):
        source = place / f"{first:07}{suffix}"
        source.write_text(_TEXT)
        for number in range(first + 1, first + _LINKS):
            os.link(source, place / f"{number:07}{suffix}")


def long_paths(folder: Path) -> Iterator[Trial]:
    short = len(str(folder)) + 1
    part = "x" * 199
    for name, length in (("4,000", _DEEP), ("4,090", 4090), ("5,000", 5000)):
        parts, rest = divmod(length - short, 200)
        deep = Path(*[part] * parts, "y" * (rest or 1))
        made = length < 4096 - 60 and _made(folder, deep)
        if made:
            (folder / deep / "a.txt").write_text(_TEXT * 200)
        yield Trial(f"a path of {name} characters: data", training(folder / deep / "a.txt", folder / f"deep-{length}"))
        yield Trial(f"a path of {name} characters: run", training(folder / "text.txt", folder / deep / "run"))
        yield Trial(f"a path of {name} characters: generate", generating(folder / deep / "run"))
        yield Trial(
            f"a path of {name} characters: out",
            ("quantize", str(folder / "run"), str(folder / deep / "out"), "--weights", "int8"),
        )
    long = "z" * 250
    yield Trial("a name of 250 characters: run", training(folder / "text.txt", folder / long))
    yield Trial(
        "a name of 250 characters: out",
        ("quantize", str(folder / "run"), str(folder / f"{long}q"), "--weights", "int8"),
    )
    yield Trial("a name of 300 characters: run", training(folder / "text.txt", folder / ("z" * 300)), codes=(2,))


def _made(folder: Path, deep: Path) -> bool:
    before = os.getcwd()
    os.chdir(folder)
    try:
        for part in deep.parts:
            os.makedirs(part, exist_ok=True)
            os.chdir(part)
    finally:
        os.chdir(before)
    return True


def unicode_forms(folder: Path) -> Iterator[Trial]:
    composed, parted = (unicodedata.normalize(form, "caf\u00e9-\u1e69") for form in ("NFC", "NFD"))
    for form, name in (("NFC", composed), ("NFD", parted)):
        data = folder / f"{name}.txt"
        data.write_text(_TEXT * 200)
        yield Trial(f"data and run with a name in {form}", training(data, folder / f"run-{name}"), codes=(0,))
        yield Trial(f"a run with a name in {form}: generate", generating(folder / f"run-{name}"), codes=(0,))
    only = folder / "only"
    only.mkdir()
    (only / f"{parted}.txt").write_text(_TEXT * 200)
    yield Trial("a file in NFD asked for in NFC", training(only / f"{composed}.txt", folder / "asked"))
    rows = [{"text": f"{_TEXT.strip()} {n}", "label": (composed, parted, "dog")[n % 3]} for n in range(120)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    few = ("model.width=16", "model.depth=1", "train.steps=2", "task.size=280", "train.batch_tokens=256")
    labels = training(folder / "labels.jsonl", folder / "labels", recipe="classification", few=few)
    yield Trial("labels in NFC and NFD", labels)
    yield Trial("labels in NFC and NFD: classes", ("classify", str(folder / "labels"), "the cat", "--json"))
    yield Trial(
        "a prompt in NFC", (*generating(folder / "run")[:2], "--prompt", composed, "--max-new-tokens", "2", "--json")
    )
    yield Trial(
        "a prompt in NFD", (*generating(folder / "run")[:2], "--prompt", parted, "--max-new-tokens", "2", "--json")
    )


def descriptors(folder: Path) -> Iterator[Trial]:
    for most in (8, 12, 16, 32, 64):
        for use, command in (
            ("recipes", ("recipes",)),
            ("train", training(folder / "text.txt", folder / f"few-{most}")),
            ("generate", generating(folder / "run")),
            ("evaluate", ("evaluate", str(folder / "run"), "--limit", "2")),
            ("verify", ("verify", str(folder / "run"))),
        ):
            yield Trial(f"{most} descriptors: {use}", command, {resource.RLIMIT_NOFILE: most})


def forms(folder: Path) -> Iterator[Trial]:
    for form in ("", "AVX2", "avx2 ", "sse9", "amx", "vnni", "avx2", "portable"):
        codes = (2,) if form not in ("portable", "avx2", "vnni", "amx") else (0, 2)
        yield Trial(
            f"HEADWAY_FORM={form!r}: generate",
            generating(folder / "run"),
            environment={"HEADWAY_FORM": form},
            codes=codes,
        )
    yield Trial(
        "HEADWAY_FORM='sse9': show, which needs no engine", ("show", "gpt2"), environment={"HEADWAY_FORM": "sse9"}
    )


GROUPS: dict[str, Callable[[Path], Iterator[Trial]]] = {
    "clock": clock,
    "memory": memory,
    "files": many_files,
    "paths": long_paths,
    "unicode": unicode_forms,
    "descriptors": descriptors,
    "forms": forms,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    args = parser.parse_args()
    wanted = args.groups or list(GROUPS)
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    for group in wanted:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "text.txt").write_text(_TEXT * 200)
            first = ran(
                Trial("a run for the others", training(folder / "text.txt", folder / "run"), codes=(0,)), folder
            )
            if first["faults"]:
                raise RuntimeError(f"nothing can be tried: {first}")
            results = []
            for trial in GROUPS[group](folder):
                found = ran(trial, folder)
                results.append(found)
                outcome = ", ".join(found["faults"]) or f"exit {found['exit']}"
                print(
                    f"{outcome:<24} {found['seconds']:>6} s  {trial.name}: {found['error'] or found['output']}",
                    flush=True,
                )
                _note(group, results)


def _note(group: str, results: list[dict[str, Any]]) -> None:
    """Write the results of a group next to those of the others."""
    path = RESULTS / "surroundings.json"
    groups = {**(json.loads(path.read_text())["groups"] if path.exists() else {}), group: results}
    tried = [each for some in groups.values() for each in some]
    faults = sum(bool(each["faults"]) for each in tried)
    write("surroundings", {"tried": len(tried), "faults": faults, "groups": groups})


if __name__ == "__main__":
    main()
