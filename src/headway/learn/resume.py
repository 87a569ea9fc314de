"""The recipe of an existing run that continues: as recorded, extended by minutes, or shortened; and fingerprints of its
data, to detect different data. Paths are ignored, because the same data may be in another place or on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.data.token_store import content_digest
from headway.errors import UserError
from headway.learn.checkpoint import step_of
from headway.learn.formatting import format_number
from headway.learn.plan.budget import Clock, Speed, plan_steps
from headway.learn.recipe import Recipe, difference
from headway.learn.task import Task
from headway.nn.kernels import is_deterministic

_FINISH_FRACTION = 10  # --finish decays the learning rate over 1 / 10 of the steps so far


def resumed_recipe(
    requested: Recipe, recorded: Recipe, status: Mapping[str, Any], goal: str, data: Mapping[str, int | str], path: Path
) -> Recipe:
    """The `recorded` recipe of the run at `path` with the requested data paths. UserError if the requested recipe,
    goal, data (by their fingerprint) or mode would train another run.
    """
    deterministic = status.get("deterministic", False)
    if deterministic != is_deterministic():
        preposition = "with" if deterministic else "without"
        raise UserError(f"{path} was started {preposition} --deterministic; resume it {preposition} it")
    train, schedule = requested.train, requested.schedule
    if status.get("minutes") is not None:
        train = replace(train, steps=recorded.train.steps, evaluate_every=recorded.train.evaluate_every)
        schedule = recorded.schedule
    if train.precision == "auto":
        train = replace(train, precision=recorded.train.precision)
    exact = requested.parallel.exact
    if exact is not None and exact != bool(recorded.parallel.exact):
        preposition = "with" if recorded.parallel.exact else "without"
        raise UserError(f"{path} was started {preposition} parallel.exact; resume it without this setting")
    parallel = replace(requested.parallel, exact=bool(recorded.parallel.exact))
    recorded_goal = status.get("goal", goal)
    if recorded_goal != goal:
        raise UserError(
            f"{path} selected its best model by {recorded_goal}, but would now use {goal}; resume it "
            "with its original data and environment (HEADWAY_ENV for your own environment)"
        )
    if type(requested.task) is type(recorded.task):
        changed_settings = {name: getattr(requested.task, name) for name in recorded.task.changeable}
        recorded = replace(recorded, task=replace(recorded.task, **changed_settings))
    data_difference = differences(status.get("data"), data)
    has_fingerprint = bool(data) and isinstance(status.get("data"), dict)
    paths = recorded.data if has_fingerprint else requested.data  # named datasets are compared by content, not by path
    changed = difference(
        replace(recorded, parallel=parallel),
        replace(requested, train=train, schedule=schedule, data=paths, parallel=parallel),
    )
    if data_difference is not None and (changed is None or changed.startswith("model")):  # the data may change it
        raise UserError(
            f"{path} was trained on other data: the new data have {data_difference}; pass the run's "
            f"data, or train a new run from it: --from {path} --run NEW"
        )
    if changed:
        raise UserError(
            f"{path} was started with another recipe: {changed}; "
            "resume it with its own settings, or choose another directory with --run"
        )
    return replace(recorded, data=requested.data, parallel=parallel)


def extended_recipe(
    recipe: Recipe,
    status: Mapping[str, Any],
    checkpoints: Sequence[Path],
    minutes: float,
    path: Path,
    clock: Clock,
    measure_speed: Callable[[Recipe, float], Speed],
) -> tuple[Path, Recipe]:
    """The checkpoint from which the run at `path` continues for `minutes` more, and its recipe with that many steps."""
    steps = recipe.train.steps
    decay_start = recipe.schedule.decay_start(steps)
    earlier = [] if decay_start is None else [path for path in checkpoints if step_of(path) <= decay_start]
    start = max(earlier, key=step_of, default=None)
    if start is None:
        raise UserError(
            f"{path} has no checkpoint from before its learning rate decayed, so it cannot be extended; start "
            "a new run with more --minutes" + ("" if decay_start is not None else " and schedule=wsd")
        )
    start_step, speed = step_of(start), measure_speed(recipe, 60 * minutes)
    extra_steps = plan_steps(recipe.train, speed, 60 * minutes - clock.elapsed()).steps
    new_steps = start_step + extra_steps
    if new_steps <= max(steps, int(status.get("step") or 0)) and status.get("status") == "finished":
        minimum_minutes = 1.1 * minutes * (steps - start_step) / extra_steps
        raise UserError(
            f"{path} has trained for {steps:,} steps, and its learning rate started to decay after {start_step:,}: "
            f"{minutes:g} more minutes reach only step {new_steps:,}; use --minutes "
            f"{format_number(minimum_minutes)} or more"
        )
    schedule = recipe.schedule.extended(start_step, steps, new_steps)
    if schedule is None:
        raise UserError(
            f"the learning rate schedule in {path} depends on its length; start a new run with more --minutes"
        )
    return start, replace(recipe, schedule=schedule, train=replace(recipe.train, steps=new_steps))


def shortened_recipe(recipe: Recipe, step: int, is_finished: bool, path: Path) -> Recipe:
    """The recipe whose learning rate decays to 0 within a tenth of the `step` steps so far."""
    if is_finished or not step:
        state = "is already finished" if is_finished else "has no checkpoint yet"
        raise UserError(f"{path} {state}; remove --finish")
    steps = min(recipe.train.steps, step + max(2, step // _FINISH_FRACTION))
    schedule = recipe.schedule.rescheduled(step, recipe.train.steps, steps)
    if schedule is None:
        raise UserError(
            f"the schedule in {path} depends on its length; remove --finish, or start a new run with schedule=wsd"
        )
    return replace(recipe, schedule=schedule, train=replace(recipe.train, steps=steps))


_VERSION = 1
_TOTAL = "samples"


def fingerprint(task: Task) -> dict[str, int | str]:
    """A fingerprint of a task's data: the number of samples in total and per split, and a digest of each part. It is {}
    if the task's examples do not report their contents.
    """
    contents = task.examples.contents()
    if not contents:
        return {}
    digests: dict[str, int | str] = {"version": _VERSION}
    splits = task.examples.data_splits
    if splits is not None:
        digests[_TOTAL] = len(splits.all_indices)
        digests |= {f"{split} samples": len(rows) for split, rows in splits.indices.items()}
    digests |= {name: content_digest(values) for name, values in contents.items()}
    if splits is not None:
        digests["splits"] = content_digest(splits.indices.values())
    return digests


def differences(recorded: Any, current: Mapping[str, int | str]) -> str | None:
    """How the `current` data differ from the data `recorded` in run.json, for a message. None if they are equal, or if
    either has no fingerprint, as in runs from earlier versions.
    """
    if not isinstance(recorded, dict) or not current or recorded.get("version") != _VERSION:
        return None
    changes: list[str] = []
    for name, value in current.items():
        previous = recorded.get(name, value)  # a part that the run's version did not record
        if previous == value:
            continue
        counts = isinstance(value, int) and isinstance(previous, int)
        changes.append(f"{value:,} {name}, not {previous:,}" if counts else f"other {name}")
        if name == _TOTAL:  # if the number of samples differs, so does everything else
            break
    return ", ".join(changes) or None
