"""Time to quality: what each choice of the recipe `shakespeare` gives, by leaving it out.

    python benchmarks/ablation.py               # about half an hour of one core; goes on where it was stopped
    python benchmarks/ablation.py --trials 1    # one more of them, for machines that have other work in between
    python benchmarks/ablation.py --fresh       # forget the trials there are

Every variant has the same core-seconds: as many steps as cost what STEPS of the recipe's do, in fp32 on one thread.
What a step costs is the least CPU time of many, taken in turn with the recipe's own, so other programs hardly count.
Loss is that of the whole validation split after the last step, each seed of each variant once. A variant that has a
rate of its own to find (AdamW, a batch of another size) is there with several. The recipe has no warm-up of the batch
to leave out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.app.recipes import configure_recipe
from headway.config import override
from headway.learn import AdamWConfig, ConstantConfig, CosineConfig, Recipe, Task
from headway.learn.fine_tuning import open_new_task
from headway.learn.learner import Learner
from headway.learn.memory import retained_heap
from headway.learn.parallel.processes import Processes
from headway.nn.models import build
from headway.nn.models.stack import cycle
from headway.nn.parts.feedforward import MLPConfig
from headway.nn.parts.init import InitConfig
from headway.nn.parts.positions import LearnedConfig
from measure import RESULTS, spread, write

NAME, STEPS, SEEDS = "ablation", 500, (1, 2, 3)
TIMED, WARM = 25, 4  # steps whose cost is measured, and steps before them
Change = Callable[[Recipe], Recipe]


def block(**changes: Any) -> Change:
    """Every block with other parts; `mixer` holds changes of the mixer's settings."""

    def change(recipe: Recipe) -> Recipe:
        model: Any = recipe.model
        first = model.stack.blocks[0]
        others = {name: value for name, value in changes.items() if name != "mixer"}
        altered = replace(first, mixer=replace(first.mixer, **changes.get("mixer", {})), **others)
        stack = replace(model.stack, blocks=cycle((altered,), len(model.stack.blocks)))
        return replace(recipe, model=replace(model, stack=stack))

    return change


def init(config: InitConfig) -> Change:
    return lambda recipe: replace(recipe, model=replace(recipe.model, init=config))  # type: ignore[call-arg]


def settings(**values: Any) -> Change:
    return lambda recipe: override(recipe, {name.replace("__", "."): value for name, value in values.items()})


def learned(recipe: Recipe) -> Recipe:
    """A table of positions in place of turned queries and keys."""
    model: Any = block(mixer={"rotary": None})(recipe).model
    return replace(recipe, model=replace(model, context=64, embed=replace(model.embed, positions=LearnedConfig())))


VARIANTS: dict[str, Change] = {
    "the recipe": lambda recipe: recipe,
    "AdamW, rate 2e-3": lambda recipe: replace(recipe, optim=AdamWConfig(lr=2e-3)),
    "AdamW, rate 4e-3": lambda recipe: replace(recipe, optim=AdamWConfig(lr=4e-3)),
    "AdamW, rate 8e-3": lambda recipe: replace(recipe, optim=AdamWConfig(lr=8e-3)),
    "no norm of queries and keys": block(mixer={"qk_norm": None}),
    "GELU": block(feed_forward=MLPConfig(activation="gelu", bias=False)),
    "GPT-2's initial weights": init(InitConfig()),
    "branches that do not start at zero": init(InitConfig("fan_in", residual="scaled", embedding=1.0, head="zero")),
    "cosine to a tenth": lambda recipe: replace(recipe, schedule=CosineConfig(warmup=50)),
    "one rate to the end": lambda recipe: replace(recipe, schedule=ConstantConfig(warmup=50)),
    "learned positions": learned,
    "half the batch": settings(train__batch_tokens=512),
    "half the batch, 0.7 of the rates": settings(train__batch_tokens=512, optim__lr=0.014, optim__adam_lr=2.8e-3),
    "twice the batch": settings(train__batch_tokens=2048),
}


def opened(variant: str, seed: int, steps: int, folder: str) -> tuple[Recipe, Task]:
    recipe = configure_recipe("shakespeare", None, {"train.steps": steps}, seed)
    recipe = VARIANTS[variant](recipe)
    task = open_new_task(recipe, Path(folder))
    return replace(recipe, model=task.adapt(recipe.model)), task


def trained(variant: str, seed: int, steps: int) -> Iterator[tuple[Learner, Task]]:
    """The learner before each step, and after the last."""
    with tempfile.TemporaryDirectory() as folder:
        recipe, task = opened(variant, seed, steps, folder)
        learner = Learner(build(recipe.model, seed), recipe, task, Processes(torch.device("cpu")))
        stream = task.batches("train")
        for step in range(steps):
            yield learner, task
            learner.update(step, [next(stream)])
        yield learner, task


def costs() -> dict[str, dict[str, float]]:
    """Core-seconds of a step of each variant and of the recipe's, measured by turns."""
    found = {}
    for variant in VARIANTS:
        runs = [trained(name, 1, 10**6) for name in (variant, "the recipe")]
        times: list[list[float]] = [[], []]
        for run in runs:
            next(run)
        for _ in range(WARM + TIMED):
            for run, seconds in zip(runs, times):
                started = time.process_time()
                next(run)
                seconds.append(time.process_time() - started)
        own, recipe = (min(seconds[WARM:]) for seconds in times)
        found[variant] = {"step": round(own, 5), "recipe": round(recipe, 5), "ratio": round(own / recipe, 4)}
    found["the recipe"]["ratio"] = 1.0
    return found


def trial(variant: str, seed: int, steps: int) -> dict[str, Any]:
    started = time.process_time()
    learner, task = [*trained(variant, seed, steps)][-1]
    training = time.process_time() - started
    with learner.evaluating() as model:
        loss = task.evaluate(model)["loss"]
    return {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "loss": round(loss, 4),
        "core_seconds": round(training, 1),
    }


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    losses = {name: [t["loss"] for t in trials if t["variant"] == name] for name in VARIANTS}
    base = {t["seed"]: t["loss"] for t in trials if t["variant"] == "the recipe"}
    found = {}
    for name, values in losses.items():
        worse = [t["loss"] - base[t["seed"]] for t in trials if t["variant"] == name and t["seed"] in base]
        if values and worse:
            found[name] = {"loss": spread(values), "worse_by": round(statistics.median(worse), 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--trials", type=int, default=len(SEEDS) * len(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"{NAME}.json"
    before = json.loads(path.read_text()) if path.exists() and not args.fresh else {}
    trials = before.get("trials", [])
    done = {(t["variant"], t["seed"]) for t in trials}
    # all variants with one seed before the next: a table as soon as possible
    missing = [(variant, seed) for seed in SEEDS for variant in VARIANTS if (variant, seed) not in done]
    with retained_heap():
        cost = before.get("step_cost") or costs()
        write(NAME, told(cost, trials))
        for variant, seed in missing[: args.trials]:
            trials.append(trial(variant, seed, round(STEPS / cost[variant]["ratio"])))
            write(NAME, told(cost, trials))


def told(cost: dict[str, Any], trials: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": (
            f"validation loss after the core-seconds of {STEPS} steps of the shakespeare recipe (fp32, one thread): "
            "steps are fixed by the least CPU time of a step, which other programs hardly change"
        ),
        "seeds": list(SEEDS),
        "step_cost": cost,
        "variants": summary(trials),
        "trials": trials,
    }


if __name__ == "__main__":
    main()
