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
import fcntl
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import score_peers
from measure import RESULTS, ROOT, machine
from score_sets import MINUTES, MORE_SERIES, SETS
from score_tools import TOOLS

NAME = "scores"
RUNS = Path(os.environ.get("SCORES_RUNS", ROOT / ".cache" / NAME))
PEER_SHAPE = 128, 3  # width and layers without a run of headway
PROBED = 2000  # training samples of the quick classical method
REFERENCES = ROOT / "src/headway/learn/plan/references.json"
CELLS = ("name", "recipe", "metric", "requested_minutes", "minutes", "score", "tool", "tool_score")
KEPT = ("parameters", "steps", "step", "tokens", "epochs", "seconds", "elapsed", "threads", "precision", "best")


def read() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "minutes": MINUTES, "sets": {}}


def keep(name: str, part: str, row: dict[str, Any]) -> None:
    """Add a part of a set to the results, to which other processes add theirs."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = read()
        entry = result["sets"].setdefault(name, {})
        entry[part] = {**row, "date": time.strftime("%Y-%m-%d"), "processor": machine()["processor"]}
        result["machine"] = machine()
        save(result)
    print(name, part, json.dumps(row)[:400], flush=True)


def save(result: dict[str, Any]) -> None:
    path = RESULTS / f"{NAME}.json"
    path.with_suffix(".new").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".new").replace(path)


def train(name: str, minutes: float) -> dict[str, Any]:
    """A run of headway, as a user would start it. Other programs may leave it less than a core: core seconds count."""
    chosen, run = SETS[name], RUNS / f"{name}-{minutes:g}"
    resume = ["--resume"] if (run / "recipe.json").is_file() else []
    command = [sys.executable, "-m", "headway", "train", chosen.recipe, "--run", str(run), "--threads", "1", "--json"]
    command += resume or ["--data", *map(str, chosen.data()), "--minutes", str(minutes)]
    command += ["--set", *chosen.settings] if chosen.settings and not resume else []
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode == 2:  # an error of the data or of the settings, in a line
        return {"refused": done.stderr.strip().splitlines()[-1]}
    done.check_returncode()
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    recipe = json.loads((run / "recipe.json").read_text())
    return {
        "minutes": minutes,
        "score": summary["scores"].get(chosen.metric),
        "wall_seconds": round(time.monotonic() - started, 1),
        "core_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "resumed": bool(resume),
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
            "evaluated": [task.count("validation"), task.count(task.final_split)],
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

    chosen = (SETS | MORE_SERIES)[name]
    user = parse_settings(list(chosen.settings))
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


def tools(name: str) -> dict[str, Any]:
    """The classical tool of the set's recipe."""
    import torch

    torch.set_num_threads(1)
    started = time.process_time()
    with opened(name) as task:
        found = TOOLS[(SETS | MORE_SERIES)[name].recipe](task)
    return {**found, "core_seconds": round(time.process_time() - started, 1)}


def peer(name: str, minutes: float) -> dict[str, Any]:
    """transformers' Trainer, on classes of texts and images, with the shape of headway's run."""
    import torch

    from headway.learn.plan.scale import shape_of
    from headway.learn.recipe import read_recipe

    torch.set_num_threads(1)
    if SETS[name].recipe not in ("classification", "pairs", "vision"):
        return {"refused": "only classes of texts and images are compared"}
    path = RUNS / f"{name}-{minutes:g}" / "recipe.json"
    width, layers = shape_of(read_recipe(path).model) if path.is_file() else PEER_SHAPE
    with opened(name) as task:
        return score_peers.peer(task, minutes, (width, layers, max(1, width // 32)))


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "probe": probe, "tools": tools, "peer": peer}


def earlier(name: str, metric: str, tool_score: float | None) -> list[tuple[float, float, float | None]]:
    """Minutes, scores and the tool's scores of runs of one core that other benchmarks measured. Forecasts and
    exponential smoothing are those on the same 100 windows.
    """
    series = json.loads((RESULTS / "forecast.json").read_text())["sets"].get(name)
    runs = [(series["minutes"], series["model"]["mase"]["median"], series["smoothing"]["mase"])] if series else []
    for run in json.loads((RESULTS / "budget.json").read_text())["chosen"]:
        if run["set"] == name and run.get("cores") == 1 and run["minutes"] >= MINUTES:
            runs.append((run["minutes"], run["scores"][metric], tool_score))
    return runs


def rows(sets: dict[str, Any]) -> list[dict[str, Any]]:
    """The references: every set with a probe and a run, its own or an earlier one."""
    result = []
    for name, chosen in (SETS | MORE_SERIES).items():
        parts = sets.get(name, {})
        facts, tool = parts.get("probe"), parts.get("tools", {})
        own = {part["minutes"]: part for key, part in parts.items() if key.startswith("train-") and "score" in part}
        tool_score = tool.get("score")
        runs = [(minutes, core_minutes(part), part["score"], tool_score) for minutes, part in own.items()]
        for minutes, score, other in earlier(name, chosen.metric, tool_score):
            runs += [] if minutes in own else [(minutes, minutes, score, other)]
        for minutes, used, score, compared in runs if facts else ():
            result.append(
                {
                    "name": name,
                    "source": chosen.source or name,
                    "metric": chosen.metric,
                    "recipe": chosen.recipe,
                    "requested_minutes": minutes,
                    "minutes": used,
                    "samples": facts["samples"],
                    "baseline": facts["baseline"],
                    "evaluated": facts["evaluated"],
                    "score": score,
                    "tool": None if compared is None else tool["tool"],
                    "tool_score": compared,
                }
            )
    return result


def core_minutes(part: dict[str, Any]) -> float:
    """The time that a run had of its core; all of it, if it ended early because the data were used up."""
    share = min(1.0, part["core_seconds"] / part["wall_seconds"])
    return part["minutes"] if part["resumed"] else round(share * part["minutes"], 2)


def table(sets: dict[str, Any]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows(sets))
    REFERENCES.write_text(f'{{"references": [\n{lines}\n]}}\n')


def compare(sets: dict[str, Any]) -> dict[str, Any]:
    """Each run next to the prediction from references of other sources, and next to the classical tool."""
    from headway.learn.plan.expected import as_reference, expected_score, kind_of

    table_rows = rows(sets)
    known = [as_reference(row) for row in table_rows]
    compared: list[dict[str, Any]] = []
    for row, reference in zip(table_rows, known):
        others = [other for other in known if other.source != reference.source]
        found = expected_score(reference.facts, others)
        entry = {key: row[key] for key in CELLS}
        sign = -1 if kind_of(reference.metric) == "error" else 1
        if row["tool_score"] is not None:
            entry["wins"] = sign * row["score"] >= sign * row["tool_score"]
        if found is not None:
            entry |= {"expected": found.score, "interval": [found.low, found.high], "width": found.high - found.low}
            entry["inside"] = found.low <= row["score"] <= found.high
            if "wins" in entry:
                tool_score = found.tool_score  # None without a tool of the recipe among the others
                entry["tool_expected_to_win"] = tool_score is not None and sign * tool_score > sign * found.score
        best = [sign * other["score"] for other in table_rows if other["name"] == row["name"]]
        if len(set(best)) > 1 and row["tool_score"] is not None:  # the longest run known, at most 45 minutes
            entry["spread"] = abs(sign * max(best) - row["tool_score"])
        compared.append(entry)
    return {
        "all": summary(compared),
        "at_5_minutes": summary([row for row in compared if row["requested_minutes"] == MINUTES]),
        "compared": compared,
    }


def summary(compared: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many runs lie in their intervals, and how many beat their tools; sets with several runs count each."""
    predicted = [row for row in compared if "inside" in row]
    tried = [row for row in compared if "wins" in row]
    named = [row for row in tried if "tool_expected_to_win" in row]
    spreads = [row["width"] / row["spread"] for row in predicted if row.get("spread")]
    return {
        "runs": len(compared),
        "sets": len({row["name"] for row in compared}),
        "recipes": sorted({row["recipe"] for row in compared}),
        "predicted": len(predicted),
        "inside": sum(row["inside"] for row in predicted),
        "with_tool": len(tried),
        "beat_the_tool": sum(row["wins"] for row in tried),
        "winner_predicted": sum(row["tool_expected_to_win"] != row["wins"] for row in named),
        "winner_predictions": len(named),
        "width_by_spread": round(statistics.mean(spreads), 2) if spreads else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "table", "report"))
    parser.add_argument("sets", nargs="*", help="names of sets (default: all)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of a run")
    args = parser.parse_args()
    if args.part in ("table", "report"):
        result = read()
        if args.part == "table":
            table(result["sets"])
        else:
            result["report"] = compare(result["sets"])
            save(result)
            print(json.dumps({key: value for key, value in result["report"].items() if key != "compared"}, indent=1))
        return
    names: Sequence[str] = args.sets or list(SETS if args.part in ("train", "peer") else SETS | MORE_SERIES)
    is_timed = args.part in ("train", "peer")
    part, given = (f"{args.part}-{args.minutes:g}", (args.minutes,)) if is_timed else (args.part, ())
    for name in names:
        if part not in read()["sets"].get(name, {}):
            keep(name, part, PARTS[args.part](name, *given))


if __name__ == "__main__":
    main()
