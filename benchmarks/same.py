"""Whether this revision gives the bits of another: every recipe and verb in small, on this machine.

    python benchmarks/same.py REVISION [CASE ...]       # a branch, a tag or a commit

The cases (`same_cases.py`) run under the package of the other revision and under this one, on one thread in fp32, and
every fact is compared: weights by name, losses, scores, answers. Then what the other revision left is taken up here:
its models answer, its quantised folders too, and its runs, as they lie after a kill, are resumed; that must give the
other revision's bits. Exit 0 where all is the same, else 1 with each difference in a line; results/same.json has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import ROOT, data_folder, write

CASES = Path(__file__).parent / "same_cases.py"
Facts = dict[str, Any]


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """The tree of a revision, for as long as it is needed."""
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def run(tree: Path, *arguments: str) -> None:
    """The cases of this revision with the package of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    environment["HEADWAY_DATA"] = str(data_folder())
    subprocess.run([sys.executable, str(CASES), *arguments], env=environment, check=True)


def flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Facts by their whole names."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= flat(value, f"{before}{name}: ") if isinstance(value, dict) else {before + name: value}
    return found


def differences(old: Facts, new: Facts, shared: bool) -> list[str]:
    """The facts that differ; where `shared`, only of those that both have."""
    one, other = flat(old), flat(new)
    names = [name for name in one if name in other] if shared else sorted({*one, *other})
    return [f"{name}: {one.get(name)} != {other.get(name)}" for name in names if one.get(name) != other.get(name)]


def compare(revision: str, names: Sequence[str]) -> dict[str, Any]:
    with checkout(revision) as tree, TemporaryDirectory() as folder:
        old, new, taken = (Path(folder) / name for name in ("old", "new", "taken"))
        run(tree, str(old), "-", *names)
        run(ROOT, str(new), "-", *names)
        run(ROOT, str(taken), str(old), *names)
        before, now = (json.loads((place / "facts.json").read_text()) for place in (old, new))
        after = json.loads((taken / "old.json").read_text())
    commit = subprocess.run(["git", "rev-parse", revision], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "revision": commit.stdout.strip(),
        "cases": len(before),
        "facts": len(flat(before)),
        "errors": {name: facts["error"] for name, facts in now.items() if "error" in facts},
        "differences": differences(before, now, shared=False),
        "differences of what was taken up": differences(before, after, shared=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    found = compare(args.revision, args.cases)
    if not args.cases:
        write("same", found)
    wrong = [*found["errors"].values(), *found["differences"], *found["differences of what was taken up"]]
    print("\n".join(wrong) or f"{found['facts']} facts of {found['cases']} cases are the same")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
