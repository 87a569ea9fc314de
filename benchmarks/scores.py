"""Expected scores: what a run was predicted to reach, what it reached, and what a classical tool reaches.

    python benchmarks/scores.py train [SET ...]    # five minutes of one core per set; a stopped run continues
    python benchmarks/scores.py probe [SET ...]    # facts that are measured before training; seconds per set
    python benchmarks/scores.py tools [SET ...]    # a classical tool, tuned on the validation split
    python benchmarks/scores.py peer [SET ...]     # transformers' Trainer, the best of three learning rates
    python benchmarks/scores.py table              # write the references that `headway plan` predicts from
    python benchmarks/scores.py report             # predict each set without its source, and compare

The sets are those of score_sets.SETS, in the order in which they are measured. A run is what `headway train RECIPE
--data ... --minutes 5` gives on one thread. Learning rates, penalties and n-gram lengths of tools are chosen by the
validation split; the test split is scored once. A set is predicted from sets of other sources alone. Rows that exist
are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import RESULTS, ROOT, machine
from score_sets import MINUTES, SETS

NAME = "scores"
RUNS = Path(os.environ.get("SCORES_RUNS", ROOT / ".cache" / NAME))
PROBED = 2000  # training samples of the quick classical method
REFERENCES = ROOT / "src/headway/learn/plan/references.json"
KEPT = ("parameters", "steps", "step", "tokens", "epochs", "seconds", "elapsed", "threads", "precision", "best")


def read() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "minutes": MINUTES, "sets": {}}


def keep(name: str, part: str, row: dict[str, Any]) -> None:
    """Add a part of a set to the results. Another process may have added others."""
    result = read()
    entry = result["sets"].setdefault(name, {})
    entry[part] = {**row, "date": time.strftime("%Y-%m-%d"), "processor": machine()["processor"]}
    result["machine"] = machine()
    (RESULTS / f"{NAME}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(name, part, json.dumps(row)[:400], flush=True)


def train(name: str) -> dict[str, Any]:
    """A run of headway, as a user would start it."""
    chosen, run = SETS[name], RUNS / name
    resume = ["--resume"] if (run / "recipe.json").is_file() else []
    command = [sys.executable, "-m", "headway", "train", chosen.recipe, "--run", str(run), "--threads", "1", "--json"]
    command += resume or ["--data", *map(str, chosen.data()), "--minutes", str(MINUTES)]
    command += ["--set", *chosen.settings] if chosen.settings and not resume else []
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1]}
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    recipe = json.loads((run / "recipe.json").read_text())
    return {
        "score": summary["scores"].get(chosen.metric),
        "wall_seconds": round(time.monotonic() - started, 1),
        "load_average": os.getloadavg()[1],
        "reasons": recipe["reasons"],
        "seed": recipe["train"]["seed"],
        "scores": {key: value for key, value in summary["scores"].items() if not key.endswith("signature")},
        **{key: summary.get(key) for key in KEPT},
    }


def probe(name: str) -> dict[str, Any]:
    """What is known before training: the number of training samples, and the score of a quick classical method."""
    import torch

    torch.set_num_threads(1)
    with opened(name) as task:
        started = time.monotonic()
        baseline = task.objective.baseline(task.examples, PROBED)
        return {
            "samples": task.count("train"),
            "classes": len(task.examples.class_counts()),
            "targets": task.unit,
            "baseline": baseline,
            "seconds": round(time.monotonic() - started, 2),
        }


@contextmanager
def opened(name: str) -> Iterator[Any]:
    """The task that a run of the set has, with its splits."""
    from headway.app.recipes import configure_recipe
    from headway.config import parse_settings
    from headway.domains import scale_of
    from headway.learn.plan.scale import with_user_settings
    from headway.learn.recipe import open_task

    chosen, user = SETS[name], parse_settings(list(SETS[name].settings))
    recipe = configure_recipe(chosen.recipe, list(map(str, chosen.data())), user, None)
    scale = scale_of(chosen.recipe)
    assert scale is not None
    settings = scale.data_settings(recipe, [Path(path) for path in recipe.data], MINUTES).settings
    with TemporaryDirectory() as folder:
        task = open_task(with_user_settings(recipe, settings, user), Path(folder))
        try:
            yield task
        finally:
            task.close()


PARTS = {"train": train, "probe": probe}


def rows(sets: dict[str, Any]) -> list[dict[str, Any]]:
    """The references: every set with a run and a probe, and runs of benchmarks/budget.py on these sets, one core."""
    result = []
    for name, parts in sets.items():
        chosen, facts = SETS[name], parts.get("probe")
        runs = [(MINUTES, parts["train"]["score"])] if parts.get("train", {}).get("score") is not None else []
        for run in json.loads((RESULTS / "budget.json").read_text())["chosen"]:
            is_known = run["set"] == name and run.get("cores") == 1 and run["minutes"] >= MINUTES
            if is_known and not (run["minutes"] == MINUTES and "train" in parts):
                runs.append((run["minutes"], run["scores"][chosen.metric]))
        tool = parts.get("tools", {})
        for minutes, score in runs if facts else ():
            result.append(
                {
                    "name": name,
                    "source": chosen.source or name,
                    "metric": chosen.metric,
                    "recipe": chosen.recipe,
                    "minutes": minutes,
                    "samples": facts["samples"],
                    "baseline": facts["baseline"],
                    "score": score,
                    "tool": tool.get("tool"),
                    "tool_score": tool.get("score"),
                }
            )
    return result


def table(sets: dict[str, Any]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows(sets))
    REFERENCES.write_text(f'{{"references": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "table", "report"))
    parser.add_argument("sets", nargs="*", help="names of sets (default: all)")
    args = parser.parse_args()
    if args.part == "table":
        table(read()["sets"])
        return
    measure: Sequence[str] = args.sets or list(SETS)
    for name in measure:
        if args.part not in read()["sets"].get(name, {}):
            keep(name, args.part, PARTS[args.part](name))


if __name__ == "__main__":
    main()
