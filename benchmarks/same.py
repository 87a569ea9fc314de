"""Compare the bits of this revision with those of another: every recipe, verb and program in small.

    python benchmarks/same.py REVISION [CASE ...]       # a branch, tag or commit
    python benchmarks/same_cases.py --help              # lists the cases

Three processes run the cases, on one thread in fp32:

- the other revision creates runs, answers of servers, data sets and comparisons,
- this revision creates the same,
- this revision reopens what the other one left: it uses and evaluates its runs, resumes copies of them as a kill leaves
  them, and continues its comparison and its labels. It finds its caches, and adds nothing to them.

Every fact is compared: weights by name, losses, scores, answers, files. Both revisions share a folder of compiled code.
The exit code is 0 if all facts are equal, otherwise 1 with a line per difference. Without CASE, the result is written
to results/same.json. All cases take about six minutes on one core, and a minute more if the engine must be compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import ROOT, data_folder, write

CASES = Path(__file__).parent / "same_cases.py"
MAX_VALUE = 200  # characters of a value in a line of the output
Facts = dict[str, Any]


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A temporary worktree of a revision."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def run_cases(tree: Path, verb: str, folder: Path, names: Sequence[str]) -> Facts:
    """Run this revision's cases with the package of `tree`, and return their facts and core seconds."""
    compiled = os.environ.get("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "headway"))
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": compiled}
    environment["HEADWAY_DATA"] = str(data_folder())
    subprocess.run([sys.executable, str(CASES), verb, str(folder), *names], env=environment, check=True)
    result = json.loads((folder / f"{verb}.json").read_text())
    if not Path(result["package"]).is_relative_to(tree):
        raise RuntimeError(
            f"the cases of {tree} ran with {result['package']}; use an interpreter that honours PYTHONPATH"
        )
    return result


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts with joined names."""
    result: dict[str, Any] = {}
    for name, value in facts.items():
        result |= flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else {prefix + name: value}
    return result


def differences(old: Facts, new: Facts, partial: bool) -> list[str]:
    """A line per fact that differs or is missing on one side; if `partial`, `new` may have fewer facts."""
    before, after = flat(old), flat(new)
    names = after if partial else {**before, **after}
    changed = [name for name in names if name not in before or name not in after or before[name] != after[name]]
    return [f"{name}: {shortened(before.get(name))} != {shortened(after.get(name))}" for name in changed]


def shortened(value: Any) -> str:
    return str(value) if len(str(value)) <= MAX_VALUE else f"{str(value)[:MAX_VALUE]}..."


def compare(revision: str, names: Sequence[str]) -> Facts:
    commit = subprocess.run(["git", "rev-parse", revision], cwd=ROOT, capture_output=True, text=True, check=True)
    with checkout(revision) as tree, TemporaryDirectory() as folder:
        old, new = Path(folder) / "old", Path(folder) / "new"
        passes = {
            "other": run_cases(tree, "create", old, names),
            "this": run_cases(ROOT, "create", new, names),
            "reopened": run_cases(ROOT, "reopen", old, names),
        }
    facts = {name: result["facts"] for name, result in passes.items()}
    return {
        "revision": commit.stdout.strip(),
        "cases": len(facts["other"]),
        "facts": len(flat(facts["other"])),
        "reopened facts": len(flat(facts["reopened"])),
        "core_seconds": {name: result["seconds"] for name, result in passes.items()},
        "errors": [
            f"{kind}: {name}: {value}"
            for kind, cases in facts.items()
            for name, value in flat(cases).items()
            if name.endswith(": error")
        ],
        "differences": differences(facts["other"], facts["this"], partial=False),
        "differences of reopened cases": differences(facts["other"], facts["reopened"], partial=True),
    }


def print_seconds(seconds: Mapping[str, Mapping[str, float]]) -> None:
    """A table of the core seconds of each case in each process."""
    print(f"{'core seconds':24}" + "".join(f"{name:>10}" for name in seconds))
    for case in next(iter(seconds.values())):
        print(f"{case:24}" + "".join(f"{cases[case]:10.1f}" for cases in seconds.values()))
    print(f"{'all':24}" + "".join(f"{sum(cases.values()):10.1f}" for cases in seconds.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="a branch, tag or commit")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="a case of same_cases.py, with all that it needs")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as `timeout` ends it: processes and worktree go, too
    result = compare(args.revision, args.cases)
    if not args.cases:
        write("same", result)
    print_seconds(result["core_seconds"])
    lines = [*result["errors"], *result["differences"], *result["differences of reopened cases"]]
    counts = f"{result['facts']} facts of {result['cases']} cases, and {result['reopened facts']} reopened ones"
    print("\n".join(lines) or f"{counts}, are equal")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
