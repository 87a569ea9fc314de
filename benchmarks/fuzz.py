"""Damaged files into every reader of foreign files: each is read or refused, and nothing else may happen.

    python benchmarks/fuzz.py                        # 100,000 files a reader, about 10 minutes each
    python benchmarks/fuzz.py --count 2000 gguf      # fewer, of one reader
    python benchmarks/fuzz.py --count 2000 composed  # of readers whose names begin so: valid structure, hostile values
    python benchmarks/fuzz.py --count 70000 composed-gguf  # architectures, blocks and K-quants of GGUF: about an hour
    python benchmarks/fuzz.py --count 50000 composed-quantized  # tensors of quantised folders, of every method
    python benchmarks/fuzz.py --minutes 120 runs     # JSON files of runs, then the commands that read them

`runs` trains a run of a few steps in each domain, composes one of its JSON files (or the JSON header of a file of
tensors) anew, and gives the run to one of the commands that read it: it ends well or is refused in one line. It goes on
with all domains in turn until the minutes of a core are spent, those of earlier runs included.

What is damaged, and how, stands in tests/fuzz. Each minute of a reader has a process of its own, after which the result
is written; a run that was stopped, or that is given a larger count, goes on from there. A failure is any exception but
UserError, a warning, the death of the process, 30 s on a file, or 512 MiB more memory than at the start.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, child, report, write

sys.path[:0] = [str(ROOT / "tests" / "fuzz"), str(ROOT / "tests")]
_CASES = 50  # of a process that fuzzes runs
_CORE_SECONDS = 60  # of a process that fuzzes a reader


def part(name: str, seed: int, first: int, count: int) -> dict[str, Any]:
    from readers import READERS
    from run import fuzz

    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(READERS[name], Path(folder), seed, first, count, _CORE_SECONDS)
    return {
        "files": found.files,
        "read": found.read,
        "refused": found.refused,
        "failures": found.failures,
        "seconds": round(found.seconds, 1),
        "grown_bytes": found.grown,
    }


def part_of_runs(name: str, seed: int, first: int, count: int) -> dict[str, Any]:
    """Some cases of a domain. Nothing is written so that it would outlast a power cut, which takes most of the time."""
    import torch
    from run_files import Trial, fuzz_runs

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.fsync = os.fstat
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEADWAY_CACHE"] = str(Path(folder) / "cache")
        trial = Trial(name, Path(folder) / name)
        found = fuzz_runs(trial, seed, first, count)
    return {"seconds": round(time.process_time(), 1), **dataclasses.asdict(found)}


def fuzz_all_runs(seed: int, minutes: float, wanted: list[str]) -> None:
    """All domains in turn; results are written after each."""
    from run_makers import KINDS

    path = RESULTS / "fuzz_runs.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = earlier["runs"] if earlier.get("seed") == seed else {}
    spent = sum(each["seconds"] for each in found.values())
    for name in itertools.cycle(wanted or KINDS):
        if spent >= 60 * minutes:
            break
        known = found.setdefault(name, dict.fromkeys(("cases", "done", "refused", "stopped", "seconds"), 0))
        failures = known.setdefault("failures", {})
        first = known["cases"]
        try:
            share = ("--seed", str(seed), "--first", str(first), "--count", str(_CASES))
            result = child("fuzz.py", "--part", *share, f"run:{name}")
        except subprocess.CalledProcessError as error:
            result = {"failures": {f"{name} from {first}": f"the process ended with {error.returncode}"}}
        known["cases"] += _CASES
        for key in ("done", "refused", "stopped", "seconds"):
            known[key] = round(known[key] + result.get(key, 0), 1)
        failures |= result["failures"]
        spent += result.get("seconds", 0)
        print(name, {key: value for key, value in known.items() if key != "failures"}, file=sys.stderr)
        for index, failure in result["failures"].items():
            print(f"  {index}: {failure}", file=sys.stderr)
        total = sum(len(each["failures"]) for each in found.values())
        summary = {"seed": seed, "failures": total, "core_minutes": round(spent / 60, 1)}
        write("fuzz_runs", {**summary, "cases": sum(each["cases"] for each in found.values()), "runs": found})


def fuzz_reader(name: str, seed: int, count: int, found: dict[str, Any]) -> Iterator[None]:
    """Give a reader files up to `count`, and count them in its row of `found` process by process. The death of a
    process is a failure and the last one.
    """
    row: dict[str, Any] = dict.fromkeys(("files", "read", "refused", "seconds", "grown_bytes"), 0)
    row |= {"seed": seed, "failures": {}}
    found[name] = row = found[name] if found.get(name, {}).get("seed") == seed else row
    alive = True
    while alive and row["files"] < count:
        share = ("--seed", str(seed), "--first", str(row["files"]), "--count", str(count - row["files"]))
        try:
            result = child("fuzz.py", "--part", *share, name)
        except subprocess.CalledProcessError as error:
            alive = False
            result = {"failures": {f"from {row['files']}": f"the process ended with {error.returncode}"}}
        for key in ("files", "read", "refused", "seconds"):
            row[key] = round(row[key] + result.get(key, 0), 1)
        row["grown_bytes"] = max(row["grown_bytes"], result.get("grown_bytes", 0))
        row["failures"] |= result["failures"]
        row["date"] = time.strftime("%Y-%m-%d")
        print(name, {key: value for key, value in row.items() if key != "failures"}, file=sys.stderr)
        for index, failure in result["failures"].items():
            print(f"  {index}: {failure}", file=sys.stderr)
        yield


def main() -> None:
    from readers import READERS

    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"or how their names begin: {', '.join(READERS)}")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=120, help="of a core, for `runs`")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part and args.readers[0].startswith("run:"):
        return report(part_of_runs(args.readers[0].removeprefix("run:"), args.seed, args.first, args.count))
    if args.readers[:1] == ["runs"]:
        return fuzz_all_runs(args.seed, args.minutes, args.readers[1:])
    if args.part:
        return report(part(args.readers[0], args.seed, args.first, args.count))
    path = RESULTS / "fuzz.json"
    found = json.loads(path.read_text())["readers"] if path.exists() else {}
    for name in [name for name in READERS if not args.readers or name.startswith(tuple(args.readers))]:
        for _ in fuzz_reader(name, args.seed, args.count, found):
            total = sum(len(each["failures"]) for each in found.values())
            write("fuzz", {"failures": total, "readers": found})
    return None


if __name__ == "__main__":
    main()
