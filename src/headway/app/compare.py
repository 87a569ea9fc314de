"""Compare variants of a recipe on the same data, budget and size."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from headway.app.api import train
from headway.app.fitting import fitting
from headway.app.loading import find_device
from headway.app.recipes import configured, named
from headway.app.variants import Tasks, Variant, variants
from headway.card import Card, shows
from headway.config import from_dict, override, to_dict
from headway.errors import UserError, logger, notices_once
from headway.formats.durable import read_json, write_json
from headway.given import shown, typed
from headway.in_memory import Data, kept
from headway.learn import Recipe, Task, UserInterrupt, measure_of, unit_of
from headway.learn.budget import Clock, check_minutes
from headway.learn.fingerprint import differences, fingerprint
from headway.learn.journal import duration
from headway.learn.page import figure, heading, is_rate, points, run_title, scaled, title
from headway.learn.precision import Precision, choose
from headway.learn.recipe import difference
from headway.learn.records import read_metrics
from headway.learn.report import Picture, Sections, available, bar_chart, line_chart, write_report
from headway.learn.report.charts import Points, shorten
from headway.learn.report.page import HOW_TO_INSTALL
from headway.learn.run import RunDirectory, free_directory
from headway.nn.models import outline
from headway.outputs import check_tree

_LOG = logger(__name__)
FILE = "compare.json"  # the settings of a comparison, in its directory
CODECS = "codecs"  # folder of the codecs of all task configs, numbered in the order of the variants
_PRECISION = "train.precision"
_UNEVEN = 0.1  # training times that differ by more than this share get a caution
_NAME = 40  # most characters of a variant's name in tables
_PAGE = 0.6  # seconds reserved for the comparison's page


class ComparedRun(NamedTuple):
    """One run of a variant: its directory, run.json and metrics.jsonl."""

    directory: Path
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """A variant and its trials, one per seed."""

    variant: Variant
    trials: Sequence[ComparedRun]

    def best(self, name: str) -> list[float]:
        """A metric of each trial at its best validation."""
        return [trial.summary["best"][name] for trial in self.trials]

    def each(self, key: str) -> list[float]:
        """A value from each trial's run.json."""
        return [trial.summary[key] for trial in self.trials]

    def mean(self, key: str) -> float:
        """A value from run.json, averaged over the trials."""
        return fmean(self.each(key))


@shows
@dataclass(frozen=True)
class Comparison:
    """The results of `compare`.

    settings: the settings in which the variants differ.
    goal: the metric to compare, on the validation split; better: "min" or "max".
    unit, measure: what the loss is averaged over, such as tokens, and its unit.
    directory, report: the paths of the runs and of the page; `report` is None without the extra `report`.
    """

    directory: Path
    recipe: Recipe
    settings: Sequence[str]
    goal: str
    better: str
    unit: str
    measure: str
    results: Sequence[Result]
    notes: Sequence[str]
    report: Path | None = None

    def card(self) -> Card:
        """A summary: the best variant and the table."""
        means = {result.variant.name: fmean(result.best(self.goal)) for result in self.results}
        best = (min if self.better == "min" else max)(means, key=lambda name: means[name])
        facts = {"of": ", ".join(self.settings), "variants": len(means), "best": best, self.goal: means[best]}
        return Card(f"Comparison {self.directory}", facts, self.formatted(), self.report)

    def table(self) -> list[dict[str, Any]]:
        """A row per variant: its parameters, its size relative to the first, its best validation score (with the lowest
        and the highest over seeds), test score and speed.
        """
        goal, rows = self.goal, []
        size = self.results[0].variant.parameters
        for result in self.results:
            found = result.best(goal)
            row: dict[str, Any] = {"variant": result.variant.name, "parameters": result.variant.parameters}
            row["size"] = round(result.variant.parameters / size, 4)
            if any(other.variant.width is not None for other in self.results):
                row["width"] = result.variant.width or result.variant.recipe.model.width
            row[f"validation {title(goal)}"] = fmean(found)
            if len(found) > 1:
                row |= {"lowest": min(found), "highest": max(found)}
            final = [trial.summary["scores"] for trial in result.trials]
            if final[0]["split"] != "validation":
                row[f"{final[0]['split']} {title(goal)}"] = fmean(scores[goal] for scores in final)
            row["steps"] = round(result.mean("step"))
            row[f"{self.unit}s/s"] = round(result.mean("tokens") / result.mean("seconds"))
            row["seconds"] = round(result.mean("seconds"), 1)
            rows.append(row)
        return rows

    def formatted(self) -> list[dict[str, Any]]:
        """`table` formatted for display: rates in per cent, few digits, the lowest and highest score as a range."""
        rows = []
        for row in self.table():
            found: dict[str, Any] = {}
            for name, value in row.items():
                if name == "lowest":
                    found["range"] = f"{figure(self.goal, value)} to {figure(self.goal, row['highest'])}"
                elif name.endswith(f" {title(self.goal)}"):
                    found[name] = figure(self.goal, value)
                elif name != "highest":
                    found[name] = value
            rows.append({**found, "variant": shorten(row["variant"], _NAME), "size": f"{row['size']:.1%}"})
        return rows


@notices_once()
@typed
def compare(
    recipe: str | Path | Recipe,
    grid: Mapping[str, Sequence[Any]],
    data: Data | None = None,
    minutes: float | None = None,
    seeds: int = 1,
    resume: bool = False,
    *,
    run: str | Path | None = None,
    tokens: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
    spent: float = 0.0,
) -> Comparison:
    """Train a recipe once for every combination of the grid's values, `seeds` times each, and compare the results.

    grid: the values to try for each setting, such as {"model.mixer": ["attention", "lstm"]}.
    minutes, tokens: the budget of each run: minutes that include everything (its share of the planning, training,
    evaluation and its page), or about that many training tokens (or whatever the task counts). Without either, each
    run trains for the recipe's steps. `spent` seconds of the total time have already passed.
    resume: continue an existing comparison, or start one.
    run: the directory of the comparison (default: a new one in runs/).

    All variants train in the same precision. If model settings are compared, widths are adjusted so that all variants
    have about as many parameters as the first. The other arguments are those of `train`. Raises UserError before any
    training, and UserInterrupt after Ctrl-C in one of the runs.
    """
    check_minutes([] if minutes is None else [minutes])
    if minutes is not None and tokens is not None:
        raise UserError(f"both minutes ({minutes:g}) and tokens ({tokens:,}) are set; pass one of them")
    clock = Clock(spent)
    directory = _place(recipe, grid, seeds, resume, run)
    begun = _is_begun(directory, resume)
    with kept(data, named(recipe).domain, directory, FILE) as paths:
        asked = configured(recipe, paths, {}, seed)
        plan = {"recipe": to_dict(asked), "grid": to_dict(grid), "seeds": seeds, "tokens": tokens}
        plan["minutes"] = None if minutes is None else float(minutes)
        if begun:
            _check_same(directory, asked, plan)
            base = from_dict(Recipe, read_json(directory / FILE).get("fitted", plan["recipe"]), f"{directory / FILE}")
            base = replace(base, data=asked.data)  # its paths may have changed
        else:
            base = _fitted(recipe, asked, grid, minutes, find_device(device), threads)
        tasks = Tasks(directory / CODECS)
        base, several, precision = _in_one_precision(base, asked, grid, tasks, find_device(device))
        if tokens is not None:
            several = [replace(each, recipe=tasks.lasting(each.recipe, tokens)) for each in several]
        _write_plan(directory, {**plan, "fitted": to_dict(base), "data": fingerprint(tasks.of(several[0].recipe))})
        tasks.save()
        trials = _Trials(directory, tasks, minutes, clock, device, threads)
        results = trials.results(several, seeds)
    first = tasks.of(results[0].variant.recipe)
    notes = list(_notes(results, minutes, tokens, seeds, unit_of(first), precision))
    differ = [key for key, values in grid.items() if len(values) > 1]
    kinds = first.goal, first.goal_better, unit_of(first), measure_of(first)
    command = "" if isinstance(recipe, Recipe) else _command(str(recipe), grid, asked.data, plan, directory)
    return _reported(Comparison(directory, base, differ, *kinds, results, notes), command)


@dataclass(frozen=True)
class _Trials:
    """The runs of a comparison, which share the total time. Time spent before the first run, or by a run beyond its
    share, is divided among the runs that follow. Unused time is not, so that no run gets more than another.
    """

    directory: Path
    tasks: Tasks
    minutes: float | None
    clock: Clock
    device: str
    threads: int | None

    def results(self, several: Sequence[Variant], seeds: int) -> list[Result]:
        """The runs of each variant, one per seed."""
        places = [[self._place(variant, number, seeds) for number in range(seeds)] for variant in several]
        left = sum(not self._finished(place) for some in places for place in some)
        end = 60 * (self.minutes or 0.0) * left - _PAGE  # in seconds on the clock
        equal = (end - self.clock.worked()) / max(1, left)
        results = []
        for variant, some in zip(several, places):
            task, trials = self.tasks.of(variant.recipe), []
            for number, place in enumerate(some):
                finished = self._finished(place)
                share = min(equal, (end - self.clock.worked()) / max(1, left))
                left -= not finished
                chosen = override(variant.recipe, {"train.seed": variant.recipe.train.seed + number})
                trials.append(self._read(place, task) if finished else self._trained(chosen, task, place, share))
            results.append(Result(replace(variant, parameters=trials[0].summary["parameters"]), trials))
        return results

    def _place(self, variant: Variant, number: int, seeds: int) -> Path:
        return self.directory / (f"{variant.name}-{number + 1}" if seeds > 1 else variant.name)

    def _finished(self, place: Path) -> bool:
        """Whether the run in `directory` is already trained and evaluated."""
        there = RunDirectory(place)
        return there.exists() and bool(there.read_status().get("scores"))

    def _read(self, place: Path, task: Task) -> ComparedRun:
        there = RunDirectory(place)
        summary = there.read_status()
        for part in ("best", "scores"):
            if not isinstance((summary.get(part) or {}).get(task.goal), (int, float)):
                raise UserError(
                    f"{there.status} has no {task.goal} in {part!r}; delete {place} to train that run again"
                )
        return ComparedRun(place, summary, read_metrics(there.metrics))

    def _trained(self, recipe: Recipe, task: Task, place: Path, seconds: float) -> ComparedRun:
        """Start or continue the run in `directory` with the codec of `task`; with minutes, it ends within `seconds`."""
        there = RunDirectory(place)
        if not there.exists():
            with there.holding():  # the lock marks the codec as part of a run
                task.save(place)
        how: dict[str, Any] = {"resume": True, "device": self.device, "threads": self.threads}
        if self.minutes is not None:
            how |= {"minutes": self.minutes, "spent": 60 * self.minutes - seconds}
        try:
            run = train(recipe, data=recipe.data or None, run=place, **how)
        except KeyboardInterrupt as interrupt:
            where = interrupt.where if isinstance(interrupt, UserInterrupt) else "stopped"
            remedy = f"continue with the same command and --run {shlex.quote(str(self.directory))} --resume"
            raise UserInterrupt(f"variant {place.name} {where}", remedy) from interrupt
        return ComparedRun(run.directory, run.summary, run.metrics)


def _in_one_precision(
    base: Recipe, asked: Recipe, grid: Mapping[str, Sequence[Any]], tasks: Tasks, device: torch.device
) -> tuple[Recipe, list[Variant], str]:
    """The recipe and its variants with one common training precision, unless the grid compares precisions; and a
    sentence that names it.
    """
    several = variants(base, grid, tasks.adapted)
    if _PRECISION in grid:
        return base, several, ""
    own = _precisions(several, device)
    common = _common(base, own)
    told = _said_precision(common, own if asked.train.precision == "auto" else {})
    one = {_PRECISION: common}
    several = [replace(each, recipe=override(each.recipe, one)) for each in several]
    return override(base, one), several, told


def _precisions(found: Sequence[Variant], device: torch.device) -> dict[str, Precision]:
    """The precision of matrix products that each variant would choose alone."""
    return {variant.name: choose("auto", outline(variant.model), device) for variant in found}


def _common(base: Recipe, own: Mapping[str, Precision]) -> str:
    """The common precision: as set, or the one that all variants choose, otherwise fp32."""
    if base.train.precision != "auto":
        return base.train.precision
    names = {precision.name for precision in own.values()}
    return names.pop() if len(names) == 1 else "fp32"


def _said_precision(common: str, own: Mapping[str, Precision]) -> str:
    others = [name for name, precision in own.items() if precision.name != common]
    reason = next((precision.reason for precision in own.values() if precision.name == common), "as set")
    told = f"; alone, {', '.join(others)} would train in {own[others[0]].name}" if others else ""
    return f"All matrix products of training are in {common} ({reason}){told}."


def _place(
    recipe: str | Path | Recipe, grid: Mapping[str, Any], seeds: int, resume: bool, run: str | Path | None
) -> Path:
    """The directory of a comparison. Raises UserError for invalid arguments."""
    for key, values in grid.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{key} is {shown(values)}; pass a list of values to compare")
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; pass 1 or more")
    if run is not None:
        return Path(run)
    if resume:
        raise UserError("--resume without --run would use a new directory; add --run DIR (run=...)")
    return free_directory(Path("runs") / f"compare-{named(recipe).name}")


def _command(
    recipe: str, grid: Mapping[str, Sequence[Any]], data: Sequence[str], plan: Mapping[str, Any], directory: Path
) -> str:
    """The command that repeats the comparison."""
    words = ["headway", "compare", recipe, *(["--data", *data] if data else [])]
    say = lambda value: value if isinstance(value, str) else json.dumps(to_dict(value))  # noqa: E731
    words += ["--set", *(f"{key}={','.join(map(say, values))}" for key, values in grid.items())]
    words += [] if plan["minutes"] is None else ["--minutes", f"{plan['minutes']:g}"]
    words += [] if plan["tokens"] is None else ["--tokens", str(plan["tokens"])]
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
    """A generic recipe scaled to the minutes, planned with the first value of each setting. All variants share the
    plan, except for the compared settings.
    """
    if minutes is None or name != recipe.name:
        return recipe
    if threads is not None:
        torch.set_num_threads(threads)
    first = {key: values[0] for key, values in grid.items()}
    found = fitting(override(recipe, first), first, minutes, Clock(), device)
    if found is None:
        return recipe
    with found:
        return found.fit().recipe


def _is_begun(directory: Path, resume: bool) -> bool:
    """Whether to continue an existing comparison. Raises UserError for other contents, and without `resume`."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    file = directory / FILE
    if not resume:
        remedy = "continue with --resume, or choose" if file.is_file() else "choose"
        raise UserError(f"{directory} is not empty; {remedy} another directory with --run")
    if not file.is_file():
        raise UserError(f"{directory} is not a comparison (it has no {FILE}); choose another directory with --run")
    return True


def _check_same(directory: Path, base: Recipe, plan: Mapping[str, Any]) -> None:
    """Raise UserError if the existing comparison has other settings."""
    file = directory / FILE
    changed = _changed(read_json(file), file, base, plan)
    if changed:
        raise UserError(
            f"{directory} has a different comparison: {changed}; resume it with its own settings, or choose another "
            "directory with --run"
        )
    check_tree(directory)


def _write_plan(directory: Path, plan: Mapping[str, Any]) -> None:
    """Write the settings of a new comparison. Raises UserError if an existing one used other data."""
    file = directory / FILE
    RunDirectory(directory).create()
    if not file.exists():
        write_json(file, plan)
        return
    other = differences(read_json(file).get("data"), plan["data"])
    if other is not None:
        raise UserError(
            f"the runs of {directory} were trained on other data: these have {other}; pass the comparison's data, or "
            "choose another directory with --run"
        )


def _changed(before: Any, file: Path, base: Recipe, plan: Mapping[str, Any]) -> str | None:
    """The first setting in which a comparison differs from the `earlier` one, or None."""
    found = before if isinstance(before, dict) else {}
    recipe = from_dict(Recipe, found.get("recipe"), f"{file}: recipe")
    if recipe.name != base.name:
        return f"recipe is {recipe.name}, not {base.name}"
    for name in ("grid", "minutes", "tokens", "seeds"):
        one, two = (json.dumps(each.get(name)) for each in (found, plan))  # the order of settings names variants
        if one != two:
            return f"{name} is {one}, not {two}"
    moved = isinstance(found.get("data"), dict)  # then the contents are compared later, instead of the paths
    return difference(replace(recipe, data=base.data) if moved else recipe, base)


def _reported(found: Comparison, command: str) -> Comparison:
    """The comparison with its page, if the extra `report` is installed."""
    if available():
        return replace(found, report=write_report(found.directory, sections(found, command)))
    _LOG.warning(HOW_TO_INSTALL)
    return found


def _notes(
    results: Sequence[Result], minutes: float | None, tokens: int | None, seeds: int, unit: str, precision: str
) -> Iterator[str]:
    """Sentences on the budget, the measured training, the sizes and the seeds."""
    if minutes is not None:
        asked = f"for {duration(60 * minutes)}, everything included,"
    elif tokens is not None:
        asked = f"on about {tokens:,} {unit}s"
    else:
        asked = f"for {_span([result.variant.recipe.train.steps for result in results])} steps"
    yield f"Each run trained {asked} on the same data{f', {seeds} times' if seeds > 1 else ''}."
    keys = ("seconds", "step", "tokens")
    seconds, steps, seen = ([number for result in results for number in result.each(key)] for key in keys)
    yield f"Measured: {_span(seconds, 1)} s of training, {_span(steps)} steps, {_span(seen)} {unit}s."
    if minutes is not None and min(seconds) < (1 - _UNEVEN) * max(seconds):
        yield (
            f"Caution: the shortest training took {min(seconds) / max(seconds):.0%} of the time of the longest, "
            "because of slow evaluations, few steps or other load on the machine; use more --minutes."
        )
    compared = [result.variant for result in results]
    if any(variant.width is not None for variant in compared):
        yield "Widths were adjusted so that all variants have about as many parameters as the first."
    off = max(abs(variant.parameters / compared[0].parameters - 1) for variant in compared)
    yield f"Sizes differ from the first by at most {off:.1%}."
    if precision:
        yield precision
    if seeds == 1:
        yield "Each variant has one run; differences may be due to the seed. Repeat with --seeds 3."


def _span(values: Sequence[float], digits: int = 0) -> str:
    """The range from the minimum to the maximum, or the single value if all are equal."""
    low, high = (f"{edge:,.{digits}f}" for edge in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def sections(comparison: Comparison, command: str) -> Sections:
    """The sections of a comparison's page."""
    goal, results = comparison.goal, comparison.results
    best = {result.variant.name: [scaled(goal, value) for value in result.best(goal)] for result in results}
    means = {name: fmean(values) for name, values in best.items()}
    spread = {name: (min(values), max(values)) for name, values in best.items() if len(values) > 1}
    better = "lower" if comparison.better == "min" else "higher"
    caption = f"validation, by seconds of training; {better} is better"
    over_time = {result.variant.name: _curve(result, goal, "seconds") for result in results}
    over_steps = {result.variant.name: _curve(result, goal, "step") for result in results}
    losses = {result.variant.name: points(_lines(result, "training"), "loss", "seconds") for result in results}
    name, share = heading(goal), is_rate(goal)
    return Sections(
        title=run_title(comparison.directory, f"{comparison.recipe.name} compared"),
        subtitle=f"{comparison.recipe.description}; {', '.join(comparison.settings)}",
        curves=[
            Picture(name, f"best validation; {better} is better", bar_chart(means, title(goal), spread, share=share)),
            Picture(name, caption, line_chart(over_time, "seconds", title(goal), dots=True, share=share)),
            Picture(name, "validation, by step", line_chart(over_steps, "step", title(goal), dots=True, share=share)),
            Picture(
                "Training loss",
                f"{comparison.measure}, by seconds of training",
                line_chart(losses, "seconds", "loss", log=True),
            ),
        ],
        table=comparison.formatted(),
        notes=comparison.notes,
        configuration=to_dict(comparison.recipe),
        command=command,
    )


def _curve(result: Result, goal: str, x: str) -> Points:
    return points(_lines(result, "validation"), goal, x)


def _lines(result: Result, split: str) -> list[dict[str, Any]]:
    """The lines of the first trial's metrics.jsonl for a split."""
    return [line for line in result.trials[0].metrics if line.get("split", "training") == split]
