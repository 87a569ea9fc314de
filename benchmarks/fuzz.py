"""Damaged files into every reader of foreign files: each is read or refused, and nothing else may happen.

    python benchmarks/fuzz.py                        # 100,000 files a reader, about 10 minutes each
    python benchmarks/fuzz.py --count 2000 gguf      # fewer, of one reader
    python benchmarks/fuzz.py --count 2000 composed  # of readers whose names begin so: valid structure, hostile values

What is damaged, and how, stands in tests/fuzz. Each reader has a process of its own, and its result is written when it
is done; a run that was stopped goes on with the readers that have not had so many files. A failure is any exception but
UserError, a warning, the death of the process, 30 s on a file, or 512 MiB more memory than at the start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, child, report, write

sys.path.insert(0, str(ROOT / "tests" / "fuzz"))


def part(name: str, seed: int, count: int) -> dict[str, Any]:
    from readers import READERS
    from run import fuzz

    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(READERS[name], Path(folder), seed, 0, count)
    return {
        "files": count,
        "read": found.read,
        "refused": found.refused,
        "failures": found.failures,
        "seconds": round(found.seconds, 1),
        "grown_bytes": found.grown,
    }


def measured(name: str, seed: int, count: int) -> dict[str, Any]:
    """A reader's result; the death of its process is one."""
    try:
        return child("fuzz.py", "--part", "--seed", str(seed), "--count", str(count), name)
    except subprocess.CalledProcessError as error:
        return {"files": count, "failures": {"process": f"ended with {error.returncode}"}}


def done(seed: int) -> dict[str, Any]:
    """Results of earlier runs with this seed, by their readers."""
    path = RESULTS / "fuzz.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    return earlier["readers"] if earlier.get("seed") == seed else {}


def main() -> None:
    from readers import READERS

    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"or how their names begin: {', '.join(READERS)}")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return report(part(args.readers[0], args.seed, args.count))
    found = done(args.seed)
    wanted = [name for name in READERS if not args.readers or name.startswith(tuple(args.readers))]
    for name in [name for name in wanted if name in args.readers or found.get(name, {}).get("files", 0) < args.count]:
        found[name] = measured(name, args.seed, args.count)
        print(name, {key: value for key, value in found[name].items() if key != "failures"}, file=sys.stderr)
        for index, failure in found[name]["failures"].items():
            print(f"  {index}: {failure}", file=sys.stderr)
        total = sum(len(each["failures"]) for each in found.values())
        write("fuzz", {"seed": args.seed, "failures": total, "readers": found})
    return None


if __name__ == "__main__":
    main()
