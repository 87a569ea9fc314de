"""Agents that learn online beside stable-baselines3's PPO, for the same steps of the environment.

    python benchmarks/online.py                          # all environments and seeds, each in a process of its own
    python benchmarks/online.py CartPole-v1 --seeds 1    # some of them; the others stay as they are in the results

Both have the same settings (those of the ppo recipe), the same normalisation of states and rewards, and one thread;
networks are each program's own. What is counted is CPU time, so that other programs hardly count. Judged is the last
model of either in episodes from the same seeds, which neither has learnt in, by the most probable action. Needs the
extras rl and report, the package box2d for LunarLander, and stable-baselines3 with cloudpickle.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from headway.config import override
from headway.domains import recipe as find_recipe
from headway.environments.rollouts import SEEDS
from headway.learn import Trainer
from measure import RESULTS, child, report, write

NAME = "online"
STEPS = {"CartPole-v1": 65_536, "Acrobot-v1": 163_840, "LunarLander-v3": 409_600}
GOALS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "LunarLander-v3": 200.0}
PROGRAMS = ("headway", "stable-baselines3")
ROWS = 256  # steps of a batch
JUDGED = 20  # episodes
POINTS = 16  # of a curve


def headway(env: str, seed: int) -> dict[str, Any]:
    """A run of the recipe, of which an episode is played at its end, and then those that it is judged by."""
    task: Any = find_recipe("ppo").task
    steps = STEPS[env] // (task.num_envs * task.steps) * task.epochs * (task.num_envs * task.steps // ROWS)
    settings = {"task.env": env, "task.episodes": JUDGED, "train.steps": steps, "train.seed": seed}
    once = {"train.evaluate_every": steps, "train.evaluate_limit": 1, "train.batch_size": ROWS}
    recipe = override(find_recipe("ppo"), {**settings, **once})
    with TemporaryDirectory() as folder:
        opened: Any = recipe.task.open(recipe, None, Path(folder))
        begun = time.process_time()
        run = Trainer(recipe, opened, Path(folder) / "run", progress=False).fit()
        seconds = time.process_time() - begun
        scores = opened.evaluate(run.model, "test")
        returns = scores["return_mean"], scores["return_mean_interval"]
        curve = opened.examples.experience.curve
        return {"parameters": run.summary["parameters"], "cpu_seconds": seconds, **_told(env, curve, seconds, returns)}


def peer(env: str, seed: int) -> dict[str, Any]:
    """stable-baselines3's PPO under the settings of the recipe."""
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from headway.metrics import bootstrap_mean

    recipe = find_recipe("ppo")
    task: Any = recipe.task

    class Curve(BaseCallback):
        """Keeps the returns of what ended since the last update."""

        def __init__(self) -> None:
            super().__init__()
            self.curve: list[tuple[float, float, float]] = []
            self.ended: list[float] = []

        def _on_step(self) -> bool:
            self.ended += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            return True

        def _on_rollout_end(self) -> None:
            mean = float(np.mean(self.ended)) if self.ended else float("nan")
            self.curve.append((float(self.num_timesteps), mean, float(len(self.ended))))
            self.ended = []

    begun, watch = time.process_time(), Curve()
    environments = VecNormalize(make_vec_env(env, task.num_envs, seed=seed), gamma=task.discount)
    model = PPO(
        "MlpPolicy",
        environments,
        learning_rate=lambda left: recipe.optim.lr * min(1.0, left / recipe.schedule.decay),  # type: ignore[attr-defined]
        n_steps=task.steps,
        batch_size=ROWS,
        n_epochs=task.epochs,
        gamma=task.discount,
        gae_lambda=task.trace,
        clip_range=task.clip,
        ent_coef=task.entropy,
        vf_coef=task.value,
        max_grad_norm=recipe.train.clip or 0.5,
        seed=seed,
        device="cpu",
    )
    model.learn(STEPS[env], callback=watch)
    seconds = time.process_time() - begun
    environment, returns = gymnasium.make(env), []
    for number in range(JUDGED):
        seen, _ = environment.reset(seed=SEEDS["test"] + number)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(environments.normalize_obs(seen), deterministic=True)
            seen, reward, ended, cut, _ = environment.step(action)
            total, over = total + float(reward), ended or cut
        returns.append(total)
    found = float(np.mean(returns)), bootstrap_mean(np.array(returns))
    parameters = sum(each.numel() for each in model.policy.parameters())
    return {"parameters": parameters, "cpu_seconds": seconds, **_told(env, watch.curve, seconds, found)}


def _told(
    env: str, curve: list[tuple[float, float, float]], seconds: float, returns: tuple[float, Any]
) -> dict[str, Any]:
    """What is written down of a run: the curve in few points, and the steps after which the goal was first reached."""
    reached = next((steps for steps, mean, count in curve if count and mean >= GOALS[env]), None)
    places = np.unique(np.linspace(0, len(curve) - 1, POINTS).round().astype(int)).tolist()
    points = [[int(curve[place][0]), round(curve[place][1], 1)] for place in places if curve[place][2]]
    return {
        "steps_per_cpu_second": round(STEPS[env] / seconds),
        "goal_reached_after_steps": reached,
        "goal_reached_after_cpu_seconds": reached and round(reached / STEPS[env] * seconds, 1),
        "test_return_mean": returns[0],
        "test_return_mean_interval": list(returns[1]),
        "training_returns": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="*", default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS))
    parser.add_argument("--part", action="store_true", help="one environment, seed and program, in this process")
    given = parser.parse_args()
    if given.part:
        torch.set_num_threads(1)
        part = headway if given.programs[0] == "headway" else peer
        report(part(given.envs[0], given.seeds[0]))
        return
    path = RESULTS / f"{NAME}.json"
    for env in given.envs:
        for seed in given.seeds:
            for program in given.programs:
                found = child("online.py", env, "--seeds", str(seed), "--programs", program, "--part")
                results = json.loads(path.read_text())["results"] if path.exists() else {}
                results.setdefault(env, {}).setdefault(program, {})[str(seed)] = found
                write(NAME, {"goals": GOALS, "steps": STEPS, "judged_episodes": JUDGED, "results": results})


if __name__ == "__main__":
    main()
