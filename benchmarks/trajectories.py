"""Agents that learn from episodes of mixed quality: returns reached against returns asked for, and behaviour cloning.

    python benchmarks/trajectories.py cartpole pendulum double hopper --work DIR      # what is in DIR goes on

Each experiment is run with several seeds, each in a process of its own with one thread. The episodes of `double`,
`hopper` and `cheetah` are recorded here, from policies of four qualities that a search finds (policy_search.py) and
with shares of random actions. Cloning is the same model, data and steps without the return. Runs are judged by
episodes from seeds that no recording and no validation has; `data` says what there was to learn from.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import child, report, write

EPISODES = 50
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """A recipe, the returns that its models are asked for (none: the run's own), and how its data are made."""

    recipe: str
    environment: str
    targets: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    cloning: bool = True
    draw: bool = False  # the curve also with choices drawn
    search: tuple[str, ...] = ()
    collect: tuple[str, ...] = ()


def words(line: str) -> tuple[str, ...]:
    """The words of a command line."""
    return tuple(line.split())


SMALL = {  # the size of the recipe pendulum, an eighth of the paper's
    "model.width": 64,
    "model.depth": 2,
    "model.mixer": {"kind": "attention", "heads": 2, "dropout": 0.0},
    "model.dropout": 0.0,
    "train.steps": 3000,
}
EXPERIMENTS = {
    "cartpole": Experiment(
        "cartpole", "CartPole-v1", (500.0, *(float(asked) for asked in range(50, 500, 50))), draw=True
    ),
    "pendulum": Experiment("pendulum", "Pendulum-v1"),
    "double": Experiment(
        "trajectories",
        "InvertedDoublePendulum-v5",
        (9300.0, 1000.0, 3000.0, 5000.0, 7000.0),
        {**SMALL, "task.target": 9300.0},
        search=words("--minutes 8"),
        collect=words("--mix 0 0.2 --episodes 400"),
    ),
    "hopper": Experiment(
        "trajectories",
        "Hopper-v5",
        (3600.0, 500.0, 1000.0, 2000.0, 3000.0),
        {**SMALL, "task.target": 3600.0},
        search=words("--minutes 12 --bonus 1 --scale 0.025 --rate 0.01 --directions 8 --best 4"),
        collect=words("--mix 0 0.1 0.3 --episodes 900"),
    ),
    "cheetah": Experiment(
        "trajectories",
        "HalfCheetah-v5",
        settings=SMALL,
        search=words("--minutes 12 --directions 32 --best 4"),
        collect=words("--mix 0 0.1 0.3 --episodes 400"),
    ),
}


def recorded(name: str, experiment: Experiment, work: Path, processes: int) -> tuple[Path | None, list[dict[str, Any]]]:
    """The file of episodes, and what the search said of its policies; made where they are not there yet."""
    if not experiment.search:
        return None, []
    data, notes = work / f"{name}.npz", work / f"{name}-policies.json"
    if not notes.exists():
        line = [sys.executable, str(HERE / "policy_search.py"), experiment.environment, *experiment.search]
        line += ["--out", str(work / name), "--processes", str(processes)]
        found = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
        notes.write_text(json.dumps([json.loads(line) for line in found.stdout.splitlines()]))
    policies = json.loads(notes.read_text())
    if not data.exists():
        paths = [str(work / Path(policy["path"]).name) for policy in policies]
        words = ("data", "collect", experiment.environment, "--policy", *paths, "random", *experiment.collect)
        code = "import sys; from headway.app.cli.main import main; sys.exit(main(sys.argv[1:]))"
        subprocess.run([sys.executable, "-c", code, *words, "--out", str(data)], check=True)
    return data, [{**policy, "path": Path(policy["path"]).name} for policy in policies]


def trained(name: str, seed: int, cloning: bool, work: Path, data: Path | None) -> dict[str, Any]:
    """One run in this process, and the returns that it reaches."""
    import headway as hw

    experiment = EXPERIMENTS[name]
    settings = {**experiment.settings, **({"task.condition": False} if cloning else {})}
    directory = work / f"{name}-{'cloning-' if cloning else ''}{seed}"
    started = time.process_time()
    run = hw.train(experiment.recipe, data=data, set=settings, seed=seed, run=directory, threads=1, resume=True)
    core_seconds = time.process_time() - started
    model = hw.load(directory)
    asked = () if cloning else experiment.targets
    played = {"most probable" if experiment.draw else "played": model.rollout(None, EPISODES, asked)}
    if experiment.draw and not cloning:
        played["drawn"] = model.rollout(None, EPISODES, asked, draw=True)
    return {
        "seed": seed,
        "parameters": run.summary["parameters"],
        "steps": run.summary["steps"],
        "core_seconds_training": round(core_seconds, 1),
        "settings": settings,
        "played": {how: _results(found) for how, found in played.items()},
    }


def _results(found: dict[str, Any]) -> list[dict[str, Any]]:
    kept = ("target_return", "return_mean", "return_mean_interval", "return_normalised", "length_mean", "samples")
    return [{key: result[key] for key in kept if key in result} for result in found["results"]]


def learned_from(data: Path | None, recipe: str) -> dict[str, Any]:
    """What the files hold; a recipe may add episodes of chance."""
    import numpy as np

    from headway.data.episode_files import read_episodes
    from headway.domains import recipe as find_recipe

    episodes = read_episodes([data] if data else find_recipe(recipe).files(None))
    returns = episodes.returns
    return {
        "episodes": len(episodes),
        "steps": len(episodes.rewards),
        "return_mean": round(float(returns.mean()), 1),
        "return_quartiles": [round(float(value), 1) for value in np.quantile(returns, (0, 0.25, 0.5, 0.75, 1))],
    }


def experiment(name: str, seeds: list[int], work: Path, processes: int) -> dict[str, Any]:
    chosen = EXPERIMENTS[name]
    work.mkdir(parents=True, exist_ok=True)
    data, policies = recorded(name, chosen, work, processes)
    found: dict[str, Any] = {"environment": chosen.environment, "processes": processes, "policies": policies}
    found["data"] = learned_from(data, chosen.recipe)
    for kind in ("conditioned", *(("cloning",) if chosen.cloning else ())):
        given = [*(("--data", str(data)) if data else ()), "--work", str(work)]
        more = ["--cloning"] if kind == "cloning" else []
        runs = [child("trajectories.py", name, "--part", "--seeds", str(seed), *given, *more) for seed in seeds]
        found[kind] = runs
        first = [run["played"][next(iter(run["played"]))][0]["return_mean"] for run in runs]
        found[f"{kind}_return"] = {"median": statistics.median(first), "low": min(first), "high": max(first)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--work", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of the search for policies")
    parser.add_argument("--part", action="store_true")
    parser.add_argument("--cloning", action="store_true")
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    if args.part:
        report(trained(args.names[0], args.seeds[0], args.cloning, args.work, args.data))
        return
    for name in args.names:
        write(f"trajectories-{name}", experiment(name, args.seeds, args.work, args.processes))


if __name__ == "__main__":
    main()
