"""Compare variants of a recipe on the same data, budget and size."""

from __future__ import annotations

import json
import math
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypedDict

import torch

from headway.app.api import train
from headway.app.loading import find_device
from headway.app.recipes import configure_recipe, load_recipe
from headway.app.shares import Part, parse_part
from headway.app.variants import SharedTasks, Variant, variants
from headway.config import from_dict, override, to_dict
from headway.domains import scale_of
from headway.errors import UserError, deduplicated_logs, logger
from headway.io.arguments import check_types, format_value
from headway.io.durable import read_json, write_json
from headway.io.lease import Lease
from headway.io.outputs import check_folder, check_tree
from headway.io.summary_card import SummaryCard, summary_repr
from headway.learn import Recipe, UserInterrupt, measure_of, unit_of
from headway.learn.formatting import format_duration
from headway.learn.metric_names import format_metric, is_rate, title
from headway.learn.plan.budget import Clock, check_minutes
from headway.learn.plan.choose import scale_recipe
from headway.learn.plan.plans import can_scale
from headway.learn.precision import choose_precision
from headway.learn.recipe import difference
from headway.learn.report import Picture, Sections, available, bar_chart, line_chart, write_report
from headway.learn.report.charts import ellipsize
from headway.learn.report.rendering import HOW_TO_INSTALL
from headway.learn.resume import differences, fingerprint
from headway.learn.run import RunDirectory, environment, free_directory, read_metrics
from headway.learn.run_report import chart_heading, chart_value, points, run_title
from headway.nn.models import outline
from headway.predict.in_memory_data import Data, data_paths

_LOG = logger(__name__)
FILE = "compare.json"  # the settings of a comparison, in its directory
_LEASE = ".planning"  # held by the part that opens the comparison
CODECS_FOLDER = "codecs"  # folder with one codec per task config, numbered in variant order
_PRECISION = "train.precision"
_TIME_TOLERANCE = 0.1  # training times that differ by more than this fraction get a caution
_MAX_NAME = 40  # characters of a variant's name in tables
_PAGE_SECONDS = 0.6  # seconds reserved for the report page


class ComparedRun(NamedTuple):
    """One run of a variant: its directory, run.json and metrics.jsonl."""

    directory: Path
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class VariantResult:
    """A variant and its trials, one per seed."""

    variant: Variant
    trials: Sequence[ComparedRun]

    def best_scores(self, name: str) -> list[float]:
        """A metric per trial, at its best validation score."""
        return [trial.summary["best"][name] for trial in self.trials]

    def per_trial(self, key: str) -> list[float]:
        """A value from run.json, per trial."""
        return [trial.summary[key] for trial in self.trials]

    def mean(self, key: str) -> float:
        """A value from run.json, averaged over the trials."""
        return fmean(self.per_trial(key))


@summary_repr
@dataclass(frozen=True)
class Comparison:
    """The results of `compare`.

    settings: the settings that differ between variants.
    goal: the metric to compare, on the validation split; better: "min" or "max".
    unit, measure: what the loss is averaged over, such as tokens, and its unit.
    directory, report: the paths of the runs and of the report page, None without the extra `report`.
    """

    directory: Path
    recipe: Recipe
    settings: Sequence[str]
    goal: str
    better: str
    unit: str
    measure: str
    results: Sequence[VariantResult]
    notes: Sequence[str]
    report: Path | None = None

    def card(self) -> SummaryCard:
        """A summary: the best variant and the table."""
        means = {result.variant.name: fmean(result.best_scores(self.goal)) for result in self.results}
        best = (min if self.better == "min" else max)(means, key=lambda name: means[name])
        facts = {"of": ", ".join(self.settings), "variants": len(means), "best": best, self.goal: means[best]}
        return SummaryCard(f"Comparison {self.directory}", facts, self.formatted(), self.report)

    def table(self) -> list[dict[str, Any]]:
        """A row per variant: its parameters, its size relative to the first, its best validation score (with the lowest
        and the highest over seeds), test score and speed.
        """
        goal, rows = self.goal, []
        size = self.results[0].variant.parameters
        for result in self.results:
            variant, scores = result.variant, result.best_scores(goal)
            row: dict[str, Any] = {"variant": variant.name, "parameters": variant.parameters}
            row["size"] = round(variant.parameters / size, 4)
            if any(compared.variant.width is not None for compared in self.results):
                row["width"] = variant.width or variant.recipe.model.width
            row[f"validation {title(goal)}"] = fmean(scores)
            if len(scores) > 1:
                row |= {"lowest": min(scores), "highest": max(scores)}
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
            cells: dict[str, Any] = {}
            for name, value in row.items():
                if name == "lowest":
                    low, high = (format_metric(self.goal, row[end]) for end in ("lowest", "highest"))
                    cells["range"] = f"{low} to {high}"
                elif name.endswith(f" {title(self.goal)}"):
                    cells[name] = format_metric(self.goal, value)
                elif name != "highest":
                    cells[name] = value
            rows.append({**cells, "variant": ellipsize(row["variant"], _MAX_NAME), "size": f"{row['size']:.1%}"})
        return rows


@deduplicated_logs()
@check_types
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
    part: str | None = None,
) -> Comparison:
    """Train a recipe once for every combination of the grid's values, `seeds` times each, and compare the results.

    grid: the values to try for each setting, such as {"model.mixer": ["attention", "lstm"]}.
    minutes, tokens: the budget of each run: minutes in total (including its share of planning, training,
    evaluation and the report), or about that many training tokens (or whatever the task counts). Without either, each
    run trains for the recipe's steps. `spent` seconds of the total time have already passed.
    resume: continue an existing comparison, or start one.
    run: the comparison directory (default: a new one in runs/).
    part: "I/N" trains only part I of N of the runs, in a directory `run` that the parts share, and returns their
    results. Runs are dealt in the order of variants and seeds. The first part decides sizes and precision for all.

    All variants train in the same precision. If model settings are compared, widths are adjusted so that all variants
    have about as many parameters as the first. The other arguments are those of `train`. Raises UserError before any
    training, and UserInterrupt after Ctrl-C in one of the runs.
    """
    check_minutes([] if minutes is None else [minutes])
    if minutes is not None and tokens is not None:
        raise UserError(f"both minutes ({minutes:g}) and tokens ({tokens:,}) are set; pass one of them")
    clock, share = Clock(spent), None if part is None else parse_part(part)
    directory = _choose_directory(recipe, grid, seeds, resume, run, share)
    with data_paths(data, load_recipe(recipe).domain, directory, FILE) as paths:
        requested = configure_recipe(recipe, paths, {}, seed)
        plan = {"recipe": to_dict(requested), "grid": to_dict(grid), "seeds": seeds, "tokens": tokens}
        plan["minutes"] = None if minutes is None else float(minutes)
        if share is not None:
            plan |= {"parts": share.count, "processor": None}
            if minutes is not None:  # the work of a minute depends on it
                facts = environment(find_device(device), 1)
                name = facts["machine"]["processor"] if facts["device"] == "cpu" else facts["device"]
                plan["processor"] = f"{name}, {threads or facts['threads']} threads"
        with nullcontext() if share is None else _one_at_a_time(directory):
            opened = _open_comparison(recipe, requested, grid, plan, directory, device, threads)
        results = _run_trials(directory, opened, seeds, minutes, clock, device, threads, share)
    first = opened.tasks.get(results[0].variant.recipe)
    notes = list(_notes(results, minutes, tokens, seeds, unit_of(first), opened.precision))
    compared_settings = [key for key, values in grid.items() if len(values) > 1]
    kinds = first.goal, first.goal_better, unit_of(first), measure_of(first)
    command = "" if isinstance(recipe, Recipe) else _repeat_command(str(recipe), grid, requested.data, plan, directory)
    comparison = Comparison(directory, opened.base, compared_settings, *kinds, results, notes)
    if share is not None:
        return comparison
    if not available():
        _LOG.warning(HOW_TO_INSTALL)
        return comparison
    return replace(comparison, report=write_report(directory, sections(comparison, command)))


def join_comparison(directory: Path) -> Comparison:
    """The results of a comparison whose parts have trained all runs. Raises UserError if one is missing."""
    file = directory / FILE
    if not file.is_file():
        raise UserError(f"{directory} is not a comparison (it has no {FILE}); pass the directory of the parts' --run")
    stored = from_dict(_StoredPlan, read_json(file), str(file))
    total = stored["seeds"] * math.prod(map(len, stored["grid"].values()))
    statuses = [RunDirectory(path).read_status() for path in directory.iterdir() if (path / "run.json").is_file()]
    finished = sum(bool(status.get("scores")) for status in statuses)
    if finished < total:
        raise UserError(f"{directory} has {finished} of {total} runs; run the parts that are not complete again")
    budget = stored["minutes"], stored["seeds"], True
    return compare(stored["recipe"], stored["grid"], None, *budget, run=directory, tokens=stored["tokens"])


class _StoredPlan(TypedDict):
    """What compare.json contains of the arguments of `compare`."""

    recipe: Recipe
    grid: dict[str, list[Any]]
    seeds: int
    minutes: float | None
    tokens: int | None


class _Opened(NamedTuple):
    """What the runs of a comparison share: recipe, tasks, variants and a sentence about the precision."""

    base: Recipe
    tasks: SharedTasks
    variants: Sequence[Variant]
    precision: str


def _open_comparison(
    recipe: str | Path | Recipe,
    requested: Recipe,
    grid: Mapping[str, Sequence[Any]],
    plan: Mapping[str, Any],
    directory: Path,
    device: str,
    threads: int | None,
) -> _Opened:
    """Plan a comparison and record the plan in its directory, or open the one that is there."""
    file, tokens = directory / FILE, plan["tokens"]
    if file.is_file():
        _check_same(directory, requested, plan)
        base = from_dict(Recipe, read_json(file).get("fitted", plan["recipe"]), f"{file}")
        base = replace(base, data=requested.data)  # the paths may have changed
    else:
        base = _plan_size(recipe, requested, grid, plan["minutes"], find_device(device), threads)
    tasks = SharedTasks(directory / CODECS_FOLDER)
    base, all_variants, precision = _with_common_precision(base, requested, grid, tasks, find_device(device))
    if tokens is not None:
        all_variants = [
            replace(variant, recipe=tasks.with_token_budget(variant.recipe, tokens)) for variant in all_variants
        ]
    data_fingerprint = fingerprint(tasks.get(all_variants[0].recipe))
    RunDirectory(directory).create()
    if not file.exists():
        write_json(file, {**plan, "fitted": to_dict(base), "data": data_fingerprint})
    elif other_data := differences(read_json(file).get("data"), data_fingerprint):
        raise UserError(
            f"the runs in {directory} were trained on other data: the new data have {other_data}; pass the "
            "comparison's data, or choose another directory with --run"
        )
    tasks.save()
    return _Opened(base, tasks, all_variants, precision)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Hold a lease in the directory: parts that start together would plan and write the same files."""
    RunDirectory(directory).create()
    lease = Lease(directory / _LEASE)
    while lease.take(lambda: False) is not None:
        time.sleep(1)
    try:
        yield
    finally:
        lease.release()


def _run_trials(
    directory: Path,
    opened: _Opened,
    seeds: int,
    minutes: float | None,
    clock: Clock,
    device: str,
    threads: int | None,
    share: Part | None,
) -> list[VariantResult]:
    """Run each variant, once per seed, or load the runs that are finished; of a part, only its runs.

    The runs share the total time. Time spent before the first run, or by a run beyond its share, is deducted equally
    from the remaining runs. Unused time is not redistributed: no run gets more than another.
    """
    suffixes = [f"-{number + 1}" for number in range(seeds)] if seeds > 1 else [""]
    folders = [RunDirectory(directory / f"{variant.name}{end}") for variant in opened.variants for end in suffixes]
    mine = [folder for index, folder in enumerate(folders) if share is None or share.has(index)]
    if not mine:
        raise UserError(f"part {share} has no runs, because there are only {len(folders)}; use fewer parts")
    finished = {folder.path: folder.exists() and bool(folder.read_status().get("scores")) for folder in mine}
    remaining = len(finished) - sum(finished.values())
    deadline = 60 * (minutes or 0.0) * remaining - _PAGE_SECONDS  # in seconds on the clock
    equal_share = (deadline - clock.elapsed()) / max(1, remaining)
    results = []
    for index, variant in enumerate(opened.variants):
        task, trials = opened.tasks.get(variant.recipe), []
        for number in range(seeds):
            folder = folders[index * seeds + number]
            if folder.path not in finished:
                continue
            if finished[folder.path]:
                summary = folder.read_status()
                for part in ("best", "scores"):
                    if not isinstance((summary.get(part) or {}).get(task.goal), (int, float)):
                        raise UserError(
                            f"{folder.status} has no {task.goal} in {part!r}; delete {folder.path} to train that run "
                            "again"
                        )
                trials.append(ComparedRun(folder.path, summary, read_metrics(folder.metrics)))
                continue
            seconds = min(equal_share, (deadline - clock.elapsed()) / max(1, remaining))
            remaining -= 1
            recipe = override(variant.recipe, {"train.seed": variant.recipe.train.seed + number})
            if not folder.exists():
                with folder.locked():  # the lock marks the codec as part of a run
                    task.save(folder.path)
            options: dict[str, Any] = {"resume": True, "device": device, "threads": threads}
            if minutes is not None:
                options |= {"minutes": minutes, "spent": 60 * minutes - seconds}
            try:
                run = train(recipe, data=recipe.data or None, run=folder.path, **options)
            except KeyboardInterrupt as interrupt:
                where = interrupt.where if isinstance(interrupt, UserInterrupt) else "stopped"
                remedy = f"continue with the same command and --run {shlex.quote(str(directory))} --resume"
                number = getattr(interrupt, "number", signal.SIGINT)
                raise UserInterrupt(f"variant {folder.path.name} {where}", remedy, number) from interrupt
            trials.append(ComparedRun(run.directory, run.summary, run.metrics))
        if trials:
            results.append(VariantResult(replace(variant, parameters=trials[0].summary["parameters"]), trials))
    return results


def _with_common_precision(
    base: Recipe, requested: Recipe, grid: Mapping[str, Sequence[Any]], tasks: SharedTasks, device: torch.device
) -> tuple[Recipe, list[Variant], str]:
    """The recipe and its variants with one common training precision, unless the grid compares precisions; and a
    sentence that names it.
    """
    all_variants = variants(base, grid, tasks.adapted_model)
    if _PRECISION in grid:
        return base, all_variants, ""
    choices = {variant.name: choose_precision("auto", outline(variant.model), device) for variant in all_variants}
    names = {precision.name for precision in choices.values()}
    common = base.train.precision  # as set, or the one that all variants choose, otherwise fp32
    if common == "auto":
        common = names.pop() if len(names) == 1 else "fp32"
    setting = {_PRECISION: common}
    all_variants = [replace(variant, recipe=override(variant.recipe, setting)) for variant in all_variants]
    reason, alternative = "as set", ""
    if requested.train.precision == "auto":
        reason = next((precision.reason for precision in choices.values() if precision.name == common), reason)
        others = [name for name, precision in choices.items() if precision.name != common]
        if others:
            alternative = f"; trained separately, {', '.join(others)} would use {choices[others[0]].name}"
    note = f"All training matrix products are in {common} ({reason}){alternative}."
    return override(base, setting), all_variants, note


def _choose_directory(
    recipe: str | Path | Recipe,
    grid: Mapping[str, Any],
    seeds: int,
    resume: bool,
    run: str | Path | None,
    share: Part | None,
) -> Path:
    """The comparison directory. Raises UserError for invalid arguments, for other contents, and for an existing
    comparison without `resume`, which a part does not need.
    """
    for key, values in grid.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{key} is {format_value(values)}; pass a list of values to compare")
    if seeds < 1:
        raise UserError(f"seeds={seeds}, but it must be at least 1")
    if run is None:
        if share is not None:
            raise UserError(f"part {share} needs a directory that all parts share; add --run DIR (run=...)")
        if resume:
            raise UserError("--resume without --run would use a new directory; add --run DIR (run=...)")
        return free_directory(Path("runs") / f"compare-{load_recipe(recipe).name}")
    directory = Path(run)
    check_folder(directory)
    names = {path.name for path in directory.iterdir()} if directory.exists() else set[str]()
    has_comparison = FILE in names
    if not names or (share is not None and (has_comparison or names <= {_LEASE, "data"})):
        return directory
    if not resume:
        remedy = "continue with --resume, or choose" if has_comparison else "choose"
        raise UserError(f"{directory} is not empty; {remedy} another directory with --run")
    if not has_comparison:
        raise UserError(f"{directory} is not a comparison (it has no {FILE}); choose another directory with --run")
    return directory


def _repeat_command(
    recipe: str, grid: Mapping[str, Sequence[Any]], data: Sequence[str], plan: Mapping[str, Any], directory: Path
) -> str:
    """The command that repeats the comparison."""
    words = ["headway", "compare", recipe, *(["--data", *data] if data else [])]
    format_value = lambda value: value if isinstance(value, str) else json.dumps(to_dict(value))  # noqa: E731
    words += ["--set", *(f"{key}={','.join(map(format_value, values))}" for key, values in grid.items())]
    words += [] if plan["minutes"] is None else ["--minutes", f"{plan['minutes']:g}"]
    words += [] if plan["tokens"] is None else ["--tokens", str(plan["tokens"])]
    words += [] if plan["seeds"] == 1 else ["--seeds", str(plan["seeds"])]
    return shlex.join([*words, "--run", f"{directory}-again"])


def _plan_size(
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
    first, scale = {key: values[0] for key, values in grid.items()}, scale_of(recipe.name)
    if minutes is None or scale is None or name != recipe.name:
        return recipe
    recipe_of_first = override(recipe, first)
    if not can_scale(recipe_of_first, scale, first):
        return recipe
    if threads is not None:
        torch.set_num_threads(threads)
    return scale_recipe(recipe_of_first, scale, first, minutes, Clock(), device).recipe


def _check_same(directory: Path, base: Recipe, plan: Mapping[str, Any]) -> None:
    """Raise UserError if the existing comparison has other settings."""
    file = directory / FILE
    earlier = read_json(file)
    settings = earlier if isinstance(earlier, dict) else {}
    recipe, changed = from_dict(Recipe, settings.get("recipe"), f"{file}: recipe"), None
    if recipe.name != base.name:
        changed = f"recipe is {recipe.name}, not {base.name}"
    for name in ("grid", "minutes", "tokens", "seeds", *({"parts"} & plan.keys())):
        old, new = (json.dumps(source.get(name)) for source in (settings, plan))  # the order of settings names variants
        if old != new:
            changed = changed or f"{name} is {old}, not {new}"
    began, here = settings.get("processor"), plan.get("processor")
    if not changed and here and began and here != began:
        raise UserError(
            f"{directory} was begun on {began}, and this part has {here}, where a minute is other work; compare equal "
            "--tokens instead of --minutes, in another directory"
        )
    moved = isinstance(settings.get("data"), dict)  # then the contents are compared later instead of the paths
    changed = changed or difference(replace(recipe, data=base.data) if moved else recipe, base)
    if changed:
        raise UserError(
            f"{directory} contains a different comparison: {changed}; resume it with its own settings, or "
            "choose another directory with --run"
        )
    check_tree(directory)


def _notes(
    results: Sequence[VariantResult], minutes: float | None, tokens: int | None, seeds: int, unit: str, precision: str
) -> Iterator[str]:
    """Sentences about the budget, training measurements, sizes and seeds."""
    if minutes is not None:
        budget = f"for {format_duration(60 * minutes)} in total"
    elif tokens is not None:
        budget = f"on about {tokens:,} {unit}s"
    else:
        budget = f"for {_format_range([result.variant.recipe.train.steps for result in results])} steps"
    yield f"Each variant trained {budget} on the same data{f', {seeds} times' if seeds > 1 else ''}."
    keys = ("seconds", "step", "tokens")
    seconds, steps, targets = ([number for result in results for number in result.per_trial(key)] for key in keys)
    yield (
        f"Training took {_format_range(seconds, 1)} s and {_format_range(steps)} steps, and processed "
        f"{_format_range(targets)} {unit}s."
    )
    if minutes is not None and min(seconds) < (1 - _TIME_TOLERANCE) * max(seconds):
        yield (
            f"Caution: the shortest training run took {min(seconds) / max(seconds):.0%} of the longest run's time, "
            "because of slow evaluations, few steps or other load on the machine; use more --minutes."
        )
    compared = [result.variant for result in results]
    if any(variant.width is not None for variant in compared):
        yield "Widths were adjusted so that all variants have about as many parameters as the first."
    largest_difference = max(abs(variant.parameters / compared[0].parameters - 1) for variant in compared)
    yield f"Sizes differ from the first by at most {largest_difference:.1%}."
    if precision:
        yield precision
    if seeds == 1:
        yield "Each variant was run once, so differences may be due to the seed. Repeat with --seeds 3."


def _format_range(values: Sequence[float], digits: int = 0) -> str:
    """The range from the minimum to the maximum, or the single value if all are equal."""
    low, high = (f"{edge:,.{digits}f}" for edge in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def sections(comparison: Comparison, command: str) -> Sections:
    """The sections of the report page."""
    goal, results = comparison.goal, comparison.results
    best, over_time, over_steps, losses = {}, {}, {}, {}
    for result in results:
        name, lines = result.variant.name, result.trials[0].metrics
        training = [line for line in lines if line.get("split", "training") == "training"]
        validation = [line for line in lines if line.get("split") == "validation"]
        best[name] = [chart_value(goal, value) for value in result.best_scores(goal)]
        over_time[name] = points(validation, goal, "seconds")
        over_steps[name] = points(validation, goal, "step")
        losses[name] = points(training, "loss", "seconds")
    means = {name: fmean(values) for name, values in best.items()}
    spread = {name: (min(values), max(values)) for name, values in best.items() if len(values) > 1}
    direction = "lower" if comparison.better == "min" else "higher"
    caption = f"validation, by seconds of training; {direction} is better"
    name, share = chart_heading(goal), is_rate(goal)
    return Sections(
        title=run_title(comparison.directory, f"{comparison.recipe.name} compared"),
        subtitle=f"{comparison.recipe.description}; {', '.join(comparison.settings)}",
        curves=[
            Picture(
                name, f"best validation; {direction} is better", bar_chart(means, title(goal), spread, share=share)
            ),
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
