"""Variants of a recipe side by side: the same data, budget and size."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from headway.api import find_device, train
from headway.card import Card, shows
from headway.checkpoints.durable import read_json, write_json
from headway.config import from_dict, override, to_dict
from headway.errors import UserError
from headway.fitting import fitting
from headway.given import shown, typed
from headway.recipes import Paths, configured, named
from headway.report import Picture, Sections, available, bar_chart, line_chart, write_report
from headway.report.charts import Points
from headway.report.page import HOW_TO_INSTALL
from headway.report.run import figure, heading, points, scaled, title
from headway.train import Recipe, Task, UserInterrupt
from headway.train.budget import Clock, check_minutes
from headway.train.log import read_metrics
from headway.train.recipe import difference
from headway.train.run import RunDirectory, free_directory
from headway.variants import Tasks, Variant, variants

FILE = "compare.json"  # what is compared, in the directory of a comparison
CODECS = "codecs"  # those of its task configs, in the order of the variants


class Trial(NamedTuple):
    """One run of a variant: its directory, run.json and metrics.jsonl."""

    directory: Path
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """A variant and its trials, one a seed."""

    variant: Variant
    trials: Sequence[Trial]

    def best(self, name: str) -> list[float]:
        """A metric of each trial's best validation."""
        return [trial.summary["best"][name] for trial in self.trials]

    def mean(self, key: str) -> float:
        """A number of run.json, averaged over the trials."""
        return fmean(trial.summary[key] for trial in self.trials)


@shows
@dataclass(frozen=True)
class Comparison:
    """All results, the settings in which they differ, and the metric that they are compared by (validation split). The
    runs lie below `directory`, as does the `report`; None without the extra of that name.
    """

    directory: Path
    recipe: Recipe
    settings: Sequence[str]
    goal: str
    better: str
    results: Sequence[Result]
    notes: Sequence[str]
    report: Path | None = None

    def card(self) -> Card:
        """Which variant is best, and all of them in a table."""
        means = {result.variant.name: fmean(result.best(self.goal)) for result in self.results}
        best = (min if self.better == "min" else max)(means, key=lambda name: means[name])
        facts = {"of": ", ".join(self.settings), "variants": len(means), "best": best, self.goal: means[best]}
        return Card(f"Comparison {self.directory}", facts, self.table(), self.report)

    def table(self) -> list[dict[str, Any]]:
        """A row a variant: its size, the goal at its best validation (with the range over seeds), test and speed."""
        goal, rows = self.goal, []
        size = self.results[0].variant.parameters
        for result in self.results:
            found = result.best(goal)
            row: dict[str, Any] = {"variant": result.variant.name, "parameters": result.variant.parameters}
            row["size"] = f"{result.variant.parameters / size:.1%}"
            if any(other.variant.width is not None for other in self.results):
                row["width"] = result.variant.width or getattr(result.variant.recipe.model, "width", None)
            row[title(goal)] = figure(goal, fmean(found))
            if len(found) > 1:
                row["range"] = f"{figure(goal, min(found))} to {figure(goal, max(found))}"
            final = [trial.summary["scores"] for trial in result.trials]
            if final[0]["split"] != "validation":
                row[final[0]["split"]] = figure(goal, fmean(scores[goal] for scores in final))
            row["steps"] = round(result.mean("step"))
            row["tokens/s"] = round(result.mean("tokens") / result.mean("seconds"))
            row["seconds"] = round(result.mean("seconds"), 1)
            rows.append(row)
        return rows


@typed
def compare(
    recipe: str | Path | Recipe,
    grid: Mapping[str, Sequence[Any]],
    data: Paths | None = None,
    minutes: float | None = None,
    seeds: int = 1,
    resume: bool = False,
    *,
    run: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
) -> Comparison:
    """Train every combination of the grid's values, as in {"model.mixer": ["attention", "lstm"]}, `seeds` times each.

    They lie below `run`, by default a new directory in runs/. Each gets the same steps, or the same `minutes`. Where
    settings of the model are compared, the width is adjusted so that all have about as many parameters as the first.
    `resume` goes on with the comparison that is there, or begins.
    Raises UserError before any training, and UserInterrupt after Ctrl-C in one of the runs.
    """
    check_minutes([] if minutes is None else [minutes])
    directory = _place(recipe, grid, seeds, resume, run)
    find_device(device)
    asked = configured(recipe, data, {}, seed)
    plan = {"recipe": to_dict(asked), "grid": to_dict(grid), "seeds": seeds}
    plan["minutes"] = None if minutes is None else float(minutes)
    begun = _claim(directory, resume, asked, plan)
    if begun:
        base = from_dict(Recipe, read_json(directory / FILE).get("fitted", plan["recipe"]), f"{directory / FILE}")
    else:
        base = _fitted(recipe, asked, grid, minutes, find_device(device), threads)
        plan["fitted"] = to_dict(base)
    tasks = Tasks(directory / CODECS)
    several = variants(base, grid, tasks.adapted)
    RunDirectory(directory).create()
    if not begun:
        write_json(directory / FILE, plan)
    tasks.save()
    results = []
    for variant in several:
        task, trials = tasks.of(variant.recipe), []
        for number in range(seeds):
            name = f"{variant.name}-{number + 1}" if seeds > 1 else variant.name
            chosen = override(variant.recipe, {"train.seed": base.train.seed + number})
            with _resumable(name, directory):
                trials.append(_trial(chosen, task, directory / name, minutes, device, threads))
        results.append(Result(replace(variant, parameters=trials[0].summary["parameters"]), trials))
    first = tasks.of(results[0].variant.recipe)
    notes = _notes([result.variant for result in results], minutes, seeds)
    found = Comparison(directory, base, list(grid), first.goal, first.goal_better, results, notes)
    if not available():
        print(HOW_TO_INSTALL, file=sys.stderr, flush=True)
        return found
    command = "" if isinstance(recipe, Recipe) else _command(str(recipe), grid, asked.data, plan, directory)
    return replace(found, report=write_report(directory, sections(found, command)))


def _place(
    recipe: str | Path | Recipe, grid: Mapping[str, Any], seeds: int, resume: bool, run: str | Path | None
) -> Path:
    """The directory of a comparison. UserError for what cannot be compared."""
    for key, values in grid.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{key} is {shown(values)}; give a list of the values that are compared")
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; give 1 or more")
    if run is not None:
        return Path(run)
    if resume:
        raise UserError("--resume was given without --run, so a new directory would be taken; add --run DIR (run=...)")
    return free_directory(Path("runs") / f"compare-{named(recipe).name}")


def _command(
    recipe: str, grid: Mapping[str, Sequence[Any]], data: Sequence[str], plan: Mapping[str, Any], directory: Path
) -> str:
    """The command that makes the same comparison again."""
    words = ["headway", "compare", recipe, *(["--data", *data] if data else [])]
    say = lambda value: value if isinstance(value, str) else json.dumps(to_dict(value))  # noqa: E731
    words += ["--set", *(f"{key}={','.join(map(say, values))}" for key, values in grid.items())]
    words += [] if plan["minutes"] is None else ["--minutes", f"{plan['minutes']:g}"]
    words += [] if plan["seeds"] == 1 else ["--seeds", str(plan["seeds"])]
    return shlex.join([*words, "--run", f"{directory}-again"])


def _fitted(
    name: str | Path | Recipe,
    recipe: Recipe,
    grid: Mapping[str, Sequence[Any]],
    minutes: float | None,
    device: torch.device,
    threads: int | None,
) -> Recipe:
    """A generic recipe with the size that fits the minutes, with the first value of each setting: all variants have it,
    but for what is compared.
    """
    if minutes is None or name != recipe.name:
        return recipe
    if threads is not None:
        torch.set_num_threads(threads)
    first = {key: values[0] for key, values in grid.items()}
    found = fitting(recipe, first, minutes, Clock(), device)
    if found is None:
        return recipe
    with found:
        return found.fit().recipe


def _claim(directory: Path, resume: bool, base: Recipe, plan: Mapping[str, Any]) -> bool:
    """Whether this comparison is here to go on with. UserError for anything else, and for one that is not resumed."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    file = directory / FILE
    if not resume:
        remedy = "go on with it with --resume, or choose" if file.is_file() else "choose"
        raise UserError(f"{directory} is not empty; {remedy} another directory with --run")
    if not file.is_file():
        raise UserError(f"{directory} holds no comparison (no {FILE}); choose another directory with --run")
    changed = _changed(read_json(file), file, base, plan)
    if changed:
        raise UserError(
            f"{directory} was started with another comparison: {changed}; resume it with its own settings, or choose "
            "another directory with --run"
        )
    return True


def _changed(before: Any, file: Path, base: Recipe, plan: Mapping[str, Any]) -> str | None:
    """The first setting in which a comparison differs from the one that was begun `before`."""
    found = before if isinstance(before, dict) else {}
    recipe = from_dict(Recipe, found.get("recipe"), f"{file}: recipe")
    if recipe.name != base.name:
        return f"recipe is {recipe.name}, not {base.name}"
    for name in ("grid", "minutes", "seeds"):
        one, two = (json.dumps(each.get(name)) for each in (found, plan))  # the order of settings names variants
        if one != two:
            return f"{name} is {one}, not {two}"
    return difference(recipe, base)


def _trial(recipe: Recipe, task: Task, place: Path, minutes: float | None, device: str, threads: int | None) -> Trial:
    """The run at `place`: as it lies there where it was trained and judged before; else it goes on, or begins with the
    codec of `task`.
    """
    there = RunDirectory(place)
    summary = there.read_status() if there.exists() else {}
    if summary.get("scores"):
        return Trial(place, summary, read_metrics(there.metrics))
    if not summary:
        task.save(place)
    run = train(recipe, minutes=minutes, run=place, resume=True, device=device, threads=threads)
    return Trial(run.directory, run.summary, run.metrics)


@contextmanager
def _resumable(name: str, directory: Path) -> Iterator[None]:
    """Tells after Ctrl-C which run it stopped, and how the comparison goes on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        where = interrupt.where if isinstance(interrupt, UserInterrupt) else "stopped"
        remedy = f"the same command with --run {shlex.quote(str(directory))} --resume goes on"
        raise UserInterrupt(f"variant {name} {where}", remedy) from interrupt


def _notes(found: Sequence[Variant], minutes: float | None, seeds: int) -> list[str]:
    steps = " or ".join(f"{count:,}" for count in sorted({variant.recipe.train.steps for variant in found}))
    budget = f"{minutes:g} minutes" if minutes is not None else f"{steps} steps"
    notes = [f"Each was trained for {budget} on the same data, {seeds} time{'s' if seeds > 1 else ''}."]
    if any(variant.width is not None for variant in found):
        notes.append("Widths were adjusted so that all have about as many parameters as the first.")
    off = max(abs(variant.parameters / found[0].parameters - 1) for variant in found)
    notes.append(f"The sizes differ by at most {off:.1%} from the first.")
    return notes


def sections(comparison: Comparison, command: str) -> Sections:
    """The page of a comparison."""
    goal, results = comparison.goal, comparison.results
    best = {result.variant.name: [scaled(goal, value) for value in result.best(goal)] for result in results}
    means = {name: fmean(values) for name, values in best.items()}
    spread = {name: (min(values), max(values)) for name, values in best.items() if len(values) > 1}
    better = "lower" if comparison.better == "min" else "higher"
    caption = f"validation, by seconds of training; {better} is better"
    over_time = {result.variant.name: _curve(result, goal, "seconds") for result in results}
    over_steps = {result.variant.name: _curve(result, goal, "step") for result in results}
    name = heading(goal)
    return Sections(
        title=f"{comparison.recipe.name} compared",
        subtitle=f"{comparison.recipe.description}; {', '.join(comparison.settings)}",
        curves=[
            Picture(name, f"best validation; {better} is better", bar_chart(means, title(goal), spread)),
            Picture(name, caption, line_chart(over_time, "seconds", title(goal), dots=True)),
            Picture(name, "validation, by step", line_chart(over_steps, "step", title(goal), dots=True)),
        ],
        table=comparison.table(),
        notes=comparison.notes,
        configuration=to_dict(comparison.recipe),
        command=command,
    )


def _curve(result: Result, goal: str, x: str) -> Points:
    return points((line for line in result.trials[0].metrics if "split" in line), goal, x)
