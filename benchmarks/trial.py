"""The trial of files and of the server, as one table: each row has its figure, its target and its results file.

    python benchmarks/trial.py                        # the table, from results that are there
    python benchmarks/trial.py --run types fuzz       # run these rows again first; without names, all of them

Rows that read other projects' material take a folder: --maskbench (maskbench/data of
github.com/guidance-ai/jsonschemabench), --npm (where npm has installed zod and openai), --vllm (an unpacked source
distribution of vLLM). A row whose folder is missing is refused before any row runs. Exit 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from measure import RESULTS, ROOT


class Row(NamedTuple):
    """A figure of the trial. `commands` are arguments of scripts in this folder, in which {name} is an option's folder.
    `read` returns the figure for people and whether the target is reached.
    """

    subject: str
    target: str
    results: str
    commands: tuple[tuple[str, ...], ...]
    read: Callable[[dict[str, Any]], tuple[str, bool]]


def _maskbench(found: dict[str, Any]) -> tuple[str, bool]:
    taken, wrong = found["taken"] / found["schemas"], len(found["invalid_accepted"])
    refused = len(found["valid_refused"]) / found["valid"]
    reached = taken >= 0.95 and wrong == 0 and refused <= 0.003
    return f"{taken:.1%} / {wrong} / {refused:.2%} of {found['valid']:,}", reached


def _types(found: dict[str, Any]) -> tuple[str, bool]:
    return f"{found['right']} of {found['types']}", found["right"] >= 58


def _vllm(found: dict[str, Any]) -> tuple[str, bool]:
    failed = {name: test for name, test in found["tests"].items() if test["outcome"] == "failed"}
    unexplained = sum(not test.get("reason") for test in failed.values())
    return f"{found['counts']['passed']} pass, {len(failed)} fail, {unexplained} without a reason", not unexplained


def _clients(found: dict[str, Any]) -> tuple[str, bool]:
    passed = sum(outcome == "ok" for outcome in found["checks"].values())
    return f"{passed} of {len(found['checks'])} checks", passed == len(found["checks"])


def _configurations(found: dict[str, Any]) -> tuple[str, bool]:
    families, wrong = {name.split()[0] for name in found["cases"]}, found["totals"].get("wrong", 0)
    return f"{wrong} wrong of {sum(found['totals'].values()):,} in {len(families)} families", wrong == 0


def _fuzz(found: dict[str, Any]) -> tuple[str, bool]:
    done = f"{found['core_minutes']:.0f} minutes of a core, {found['cases']:,} cases, {found['failures']} failures"
    return done, found["failures"] == 0 and found["core_minutes"] >= 120


def _surroundings(found: dict[str, Any]) -> tuple[str, bool]:
    return f"{found['tried']} tried, {found['faults']} faults", found["faults"] == 0


def _hostile(found: dict[str, Any]) -> tuple[str, bool]:
    return f"{found['commands']} commands, {found['failures']} failures", found["failures"] == 0


ROWS = {
    "maskbench": Row(
        "MaskBench: schemas taken / invalid instances accepted / valid ones refused",
        "95 % / 0 / 0.3 %",
        "maskbench",
        (("maskbench.py", "{maskbench}"),),
        _maskbench,
    ),
    "types": Row(
        "schemas that Zod, pydantic and the OpenAI SDKs make of 60 types",
        "58",
        "schema-types",
        (("schema_types.py", "{npm}"),),
        _types,
    ),
    "vllm": Row(
        "vLLM's tests of completions and chats",
        "a reason for each failure",
        "vllm-server-suite",
        (("vllm_server_suite.py", "{vllm}"),),
        _vllm,
    ),
    "clients": Row("client libraries over HTTP", "all", "clients", (("clients.py",),), _clients),
    "configurations": Row(
        "changed configurations of published models, compared with transformers",
        "0 wrong",
        "configurations",
        (("configurations.py", "--out", "results/configurations.json"),),
        _configurations,
    ),
    "real": Row(
        "configurations of published models, made smaller, compared with transformers",
        "0 wrong",
        "configurations-real",
        (("configurations.py", "--real", "--out", "results/configurations-real.json"),),
        _configurations,
    ),
    "fuzz": Row(
        "JSON files of runs by grammar, and the commands that read them",
        "120 minutes of a core, 0 failures",
        "fuzz_runs",
        (("fuzz.py", "--minutes", "120", "runs"),),
        _fuzz,
    ),
    "surroundings": Row(
        "clocks, memory, descriptors, paths, names, folders, HEADWAY_FORM",
        "0 faults",
        "surroundings",
        (("surroundings.py",),),
        _surroundings,
    ),
    "hostile": Row(
        "files made to do harm, and the commands that read them",
        "0 failures",
        "hostile",
        (("hostile.py",),),
        _hostile,
    ),
}


def run(row: Row, folders: dict[str, Path | None]) -> None:
    for command in row.commands:
        filled = [argument.format(**folders) for argument in command]
        subprocess.run([sys.executable, *filled], cwd=ROOT / "benchmarks", check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", metavar="ROW", help=f"rows to run first (default: all): {', '.join(ROWS)}")
    for name in ("maskbench", "npm", "vllm"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), metavar="FOLDER")
    args = parser.parse_args()
    folders = {name: getattr(args, name) for name in ("maskbench", "npm", "vllm")}
    names = [] if args.run is None else args.run or list(ROWS)
    for name in names:
        if name not in ROWS:
            parser.error(f"unknown row {name!r}; choose from {', '.join(ROWS)}")
        wanted = {word[1:-1] for command in ROWS[name].commands for word in command if word.startswith("{")}
        missing = sorted(folder for folder in wanted if folders[folder] is None or not folders[folder].is_dir())
        if missing:
            parser.error(f"{name} reads other projects' material; pass --{missing[0]} with a folder")
    for name in names:
        run(ROWS[name], folders)
    table = Table("subject", "target", "result", "reached", "date and processor")
    missed = 0
    for row in ROWS.values():
        path = RESULTS / f"{row.results}.json"
        if not path.is_file():
            table.add_row(row.subject, row.target, "not run", "no", "")
            missed += 1
            continue
        found = json.loads(path.read_text())
        result, reached = row.read(found)
        missed += not reached
        where = f"{found['date']}, {found['machine']['processor']}"
        table.add_row(row.subject, row.target, result, "yes" if reached else "no", where)
    Console(width=max(120, Console().width)).print(table)
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
