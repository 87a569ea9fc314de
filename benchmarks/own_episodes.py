"""Decision transformers that go on learning from their own episodes, beside the same steps on recorded ones alone.

    python benchmarks/own_episodes.py --work DIR                       # all environments and seeds
    python benchmarks/own_episodes.py CartPole-v1 --seeds 1 --work DIR # some of them; the others stay in the results

The episodes that are recorded are those of chance, and in Pendulum by turns of chance and of a policy by
hand of whose actions 70 % are random. Each run is a process of its own with one thread: one learns from them
(`recorded`), and from its end two go on for the same steps, one that plays (`online`) and one that does not
(`recorded_longer`). Judged are episodes from seeds that no run and no recording has. Needs the extra rl.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.episode_files import read_episodes, write_episodes
from headway.environments.recording import Mixture, Recorder
from headway.environments.vector_env import VectorEnv
from measure import RESULTS, child, report, write

NAME = "own-episodes"
JUDGED = 30  # episodes
RECORDED = 100
RUNS = ("recorded", "online", "recorded_longer")


@dataclass(frozen=True)
class Experiment:
    """Steps from recorded episodes and then online, and the settings of both and of playing."""

    before: int
    steps: int
    settings: dict[str, Any]
    online: dict[str, Any]


SMALL = {
    "model.width": 64,
    "model.depth": 1,
    "model.heads": 2,
    "model.dropout": 0.0,
    "optim": {"kind": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 1e-4},
    "train.batch_size": 64,
    "train.precision": "fp32",
    "task.context": 2,
}
EXPERIMENTS = {
    "CartPole-v1": Experiment(
        100, 400, {**SMALL, "task.target": 500.0, "task.context": 5}, {"episodes": 4, "every": 25}
    ),
    "InvertedPendulum-v5": Experiment(
        150, 600, {**SMALL, "task.target": 1000.0}, {"episodes": 5, "every": 20, "drop": "worst", "noise": 0.3}
    ),
    "Pendulum-v1": Experiment(150, 500, SMALL, {"episodes": 5, "every": 25, "drop": "worst", "noise": 0.3}),
}


def swing_up(states: np.ndarray) -> np.ndarray:
    """Energy is pumped in or let out until the pendulum is near the top, where it is held."""
    up, side, speed = states.T
    energy = 0.5 * speed**2 + 15 * (up - 1)  # 0 at rest at the top
    hold = -10 * np.arctan2(side, up) - 2 * speed
    torque = np.where(up > 0.9, hold, np.where(energy < 0, 2 * np.sign(speed), -np.sign(speed)))
    return np.clip(torque, -2, 2)[:, None]


CHANCE = Mixture(None, 1.0)
MIXTURES = {"Pendulum-v1": [CHANCE, Mixture(swing_up, 0.7)]}  # chance alone in the others


def data_of(env: str, work: Path) -> Path:
    """The file of recorded episodes, made where it is not there yet."""
    path = work / f"{env}.npz"
    if not path.exists():
        with VectorEnv(env, 8) as copies:
            recorder = Recorder(copies, MIXTURES.get(env, [CHANCE]), seed=0, horizon=None)
            recorder.run(RECORDED, num_parallel=8)
            write_episodes(path, recorder.episodes())
    return path


def trained(env: str, seed: int, name: str, work: Path) -> dict[str, Any]:
    """One of the runs of a seed, in this process, and what it reaches."""
    import headway as hw

    chosen, place, started = EXPERIMENTS[env], work / f"{env}-{seed}-{name}", time.process_time()
    begins = name == "recorded"
    steps = chosen.before if begins else chosen.steps
    settings = {**chosen.settings, "train.steps": steps, "train.evaluate_every": -(-steps // 4)}
    if name == "online":
        settings |= {f"task.online.{key}": value for key, value in chosen.online.items()}
    run = hw.train(
        "trajectories",
        data=data_of(env, work),
        set=settings,
        seed=seed,
        start=None if begins else work / f"{env}-{seed}-recorded",
        run=place,
        threads=1,
        samples=0,
    )
    seconds = round(time.process_time() - started, 1)
    played = hw.load(place).rollout(None, JUDGED)
    kept = ("target_return", "return_mean", "return_mean_interval", "samples")
    found = {"steps": steps, "core_seconds": seconds, "parameters": run.summary["parameters"]}
    lines = [line for line in run.metrics if line.get("split") == "validation"]
    found["curve"] = [[line["step"], line.get("environment_steps"), line["return_mean"]] for line in lines]
    if name == "online":
        found |= {key: lines[-1][key] for key in ("episodes_played", "environment_steps")}
    return found | {key: played[key] for key in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--work", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--part", action="store_true", help="one run of one environment and seed, in this process")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.part:
        report(trained(given.envs[0], given.seeds[0], given.runs[0], given.work))
        return
    path = RESULTS / f"{NAME}.json"
    for env in given.envs:
        returns = read_episodes([data_of(env, given.work)]).returns
        for seed, name in product(given.seeds, given.runs):
            words = ("--seeds", str(seed), "--runs", name, "--work", str(given.work), "--part")
            found = child("own_episodes.py", env, *words)
            results = json.loads(path.read_text())["results"] if path.exists() else {}
            of_env = results.setdefault(env, {"seeds": {}})
            of_env["data"] = {"return_mean": float(returns.mean()), "return_best": float(returns.max())}
            of_env["settings"] = {**EXPERIMENTS[env].settings, "online": EXPERIMENTS[env].online}
            of_env["seeds"].setdefault(str(seed), {})[name] = found
            write(NAME, {"recorded_episodes": RECORDED, "judged_episodes": JUDGED, "results": results})


if __name__ == "__main__":
    main()
