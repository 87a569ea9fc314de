"""The scaling laws by which recipes choose the size of a model, fitted to short runs.

    python benchmarks/laws.py runs [RECIPE ...] --minutes 1     # each size on each set of a recipe
    python benchmarks/laws.py fit [RECIPE ...]      # fit a law, and choose sizes by it

A run has one thread and the rates of its recipe. Runs that exist are not done again, and need no quiet machine, because
a law is fitted to steps and targets, not to seconds. A set's losses may differ from the law by a factor of their own:
to choose a size is to compare losses of one set. The last lines compare three laws by the regret of their choices, the
share by which the loss of the chosen size is above the lowest at the same minutes: the law in the recipe, the new one,
and for each set the one that is fitted without it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

import budget
from budget import FOLDER, files, sized, trained
from budget import SETS as GRIDS
from headway.domains import scale_of
from headway.learn.plan.scale import Scale, ScalingLaw
from measure import RESULTS, machine
from score_sets import SETS

NAME = "laws"
FREE = ("size", "data")  # runs of minutes hardly show what repeated data and too many parameters are worth
RUN_NOISE = 0.03  # standard deviation of the log loss of a run
# That of one validation sample: a class, a row of tokens, a sentence, or an episode.
SAMPLE_NOISE = {"classification": 1.2, "vision": 1.2, "audio": 1.2, "text": 0.1, "translation": 0.4, "robotics": 0.4}
SIZES: dict[str, tuple[tuple[int, int | list[int], int], ...]] = {
    "text": ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 5, 6)),
    "vision": ((48, 2, 3), (64, 4, 4), (96, 3, 4), (128, 4, 4)),
    "audio": ((64, 2, 2), (96, 3, 3), (128, 4, 4), (192, 4, 6)),
    "classification": ((64, 1, 2), (96, 1, 3), (128, 2, 4), (256, 3, 8)),
    "translation": ((64, 2, 2), (128, 3, 4), (256, 4, 8)),
    "robotics": ((64, [1, 1, 1], 2), (96, [2, 1, 1], 3), (128, [3, 1, 1], 4), (192, [3, 1, 1], 6)),
}
FURTHER = {"text": ("wikitext-2", "scenes-of-shakespeare"), "robotics": ("door-open", "drawer-open")}
SHORT = 120_000  # characters of the first scenes of Shakespeare


def sets_of(recipe: str) -> dict[str, list[str]]:
    """The sets of a recipe with their data. Those of robots are demonstrations in the folder ROBOTS."""
    scored = {name: one.data for name, one in SETS.items() if one.recipe == recipe and not one.settings}
    found = {name: list(map(str, data())) for name, data in scored.items()}
    for name in FURTHER.get(recipe, ()):  # beside those of score_sets
        if name == "scenes-of-shakespeare":
            path = FOLDER / f"{name}.txt"
            path.write_text(Path(files(GRIDS["shakespeare"])[0]).read_text(encoding="utf-8")[:SHORT], encoding="utf-8")
            found[name] = [str(path)]
        else:
            found[name] = files(GRIDS[name]) if name in GRIDS else [os.path.join(os.environ["ROBOTS"], name)]
    return found


def read() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "runs": [], "laws": {}}


def keep(result: dict[str, Any]) -> None:
    result["machine"] = machine()
    (RESULTS / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")


def run(recipes: Sequence[str], minutes: Sequence[float], core: int) -> None:
    """Every run that is not there yet."""
    for duration, recipe in product(minutes, recipes):
        for name, data in sets_of(recipe).items():
            for size in SIZES[recipe]:
                key = {"recipe": recipe, "set": name, "minutes": duration, "size": list(size)}
                if any(key.items() <= one.items() for one in read()["runs"]):
                    continue
                one = {**key, **trained(recipe, data, duration, sized(size), core)}
                with (FOLDER / "lock").open("w") as lock:  # another process may add its own
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    result = read()
                    result["runs"].append(one)
                    keep(result)
                print(one, flush=True)


def grid_cells(recipe: str) -> list[dict[str, Any]]:
    """The cells of benchmarks/budget.py: of each size, the rate with the lower validation loss."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in sorted(budget.read()["grid"], key=lambda one: -one.get("validation_loss", 0.0)):
        if "targets" in one and "beside" not in one and GRIDS[one["set"]].recipe == recipe:
            found[one["set"], one["minutes"], one["active"]] = one
    return list(found.values())


def predicted(law: ScalingLaw, scale: Scale, one: dict[str, Any]) -> float:
    """The loss that a law predicts for a run."""
    step = one["targets"] / one["steps"]
    return law.loss(one["active"], one["targets"] / (1 + step / scale.critical_batch(one["targets"])), one["unique"])


def fitted(recipe: str, scale: Scale, runs: Sequence[dict[str, Any]]) -> ScalingLaw:
    """The law with the least squared errors of log losses, beside a factor for each set, in units of their standard
    deviations; coefficients that the runs do not tell stay near those of the recipe (their logarithms deviate by 1).
    """
    noise = SAMPLE_NOISE[recipe]
    deviations = np.array([math.hypot(RUN_NOISE, noise * one["validated"] ** -0.5) for one in runs])
    names = sorted({one["set"] for one in runs})
    groups = [[row for row, one in enumerate(runs) if one["set"] == name] for name in names]

    law = scale.law

    def changed(factors: Any) -> ScalingLaw:
        return replace(law, **{name: getattr(law, name) * math.exp(f) for name, f in zip(FREE, factors)})

    def errors(factors: Any) -> Any:
        tried = changed(factors)
        logs = np.array([math.log(predicted(tried, scale, one) / one["validation_loss"]) for one in runs])
        centred = [(logs[rows] - np.average(logs[rows], weights=deviations[rows] ** -2)) for rows in groups]
        return np.concatenate([*(c / deviations[rows] for c, rows in zip(centred, groups)), factors])

    new = changed(least_squares(errors, np.zeros(len(FREE)), max_nfev=500).x)
    level = statistics.mean(math.log(one["validation_loss"] / predicted(new, scale, one)) for one in runs)
    return replace(new, size=new.size * math.exp(level), data=new.data * math.exp(level))


def regrets(law: ScalingLaw, scale: Scale, runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By set and minutes, the share by which the loss of the size with the lowest predicted one exceeds the lowest."""
    found = {}
    for name, minutes in sorted({(one["set"], one["minutes"]) for one in runs}):
        sizes = [one for one in runs if (one["set"], one["minutes"]) == (name, minutes)]
        chosen = min(sizes, key=lambda one: predicted(law, scale, one))
        best = min(one["validation_loss"] for one in sizes)
        found[f"{name} {minutes:g}"] = round(chosen["validation_loss"] / best - 1, 4)
    return found


def fit(recipe: str) -> dict[str, Any]:
    scale = scale_of(recipe)
    assert scale is not None
    runs = [one for one in read()["runs"] if one["recipe"] == recipe and "targets" in one]
    runs += grid_cells(recipe)
    law = fitted(recipe, scale, runs)
    without: dict[str, float] = {}
    for name in sorted({one["set"] for one in runs}):
        others = [one for one in runs if one["set"] != name]
        left = fitted(recipe, scale, others) if others else scale.law
        without |= regrets(left, scale, [one for one in runs if one["set"] == name])
    choices = {"recipe": regrets(scale.law, scale, runs), "new": regrets(law, scale, runs), "without the set": without}
    return {
        "runs": len(runs),
        "law": {name: float(f"{getattr(law, name):.3g}") for name in FREE},
        "mean_regret": {kind: round(statistics.mean(found.values()), 4) for kind, found in choices.items()},
        "regret": choices,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("runs", "fit"))
    parser.add_argument("recipes", nargs="*", default=list(SIZES))
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 2.0])
    parser.add_argument("--core", type=int, default=0)
    args = parser.parse_args()
    if args.part == "runs":
        run(args.recipes, args.minutes, args.core)
        return
    for recipe in args.recipes:
        found, result = fit(recipe), read()
        result["laws"][recipe] = found
        keep(result)
        print(recipe, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
