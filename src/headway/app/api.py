"""The Python API: `train` and `plan` a recipe; see `headway.app.loading` for `load`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from headway.app.loading import find_device, load
from headway.app.model import Model
from headway.app.recipes import configure_recipe, load_recipe, load_recorded_recipe
from headway.codecs import published_codec
from headway.domains import scale_of
from headway.errors import UserError, deduplicated_logs, logger
from headway.formats.native import save_model
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.io.arguments import check_types
from headway.learn import Recipe, Run, Task, Trainer
from headway.learn.distributed import is_main_process
from headway.learn.plan.choose import outgrown_message
from headway.learn.plan.measure import MIN_EVALUATED, Clock, check_minutes
from headway.learn.plan.plans import Plan, TrainingSetup, loss_predictor, make_plans, plan_run
from headway.learn.recipe import open_task
from headway.learn.report import Picture, heatmap
from headway.learn.report.rendering import HOW_TO_INSTALL, available
from headway.learn.run import RunDirectory
from headway.learn.run_report import report_run, with_results
from headway.learn.run_schemas import read_metrics
from headway.predict.in_memory_data import Data, data_paths

_LOG = logger(__name__)

__all__ = ["Model", "Plan", "find_device", "load", "plan", "train"]


@deduplicated_logs()
@check_types
def train(
    recipe: str | Path | Recipe,
    data: Data | None = None,
    set: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    finish: bool = False,
    start: str | Path | None = None,
    lora: int | None = None,
    *,
    from_: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
    samples: int = 10,
    spent: float = 0.0,
    progress: bool = True,
) -> Run:
    """Train a recipe and return the run with its best model, test scores, samples and (with the extra `report`) a
    report page.

    recipe: the name of a recipe, the path of a recipe.json, or a Recipe.
    data: files to train on instead of the recipe's own data; or, for recipes that take text or tables, a pandas or
    polars DataFrame, a Dataset, or any iterable of rows (mappings) or strings. Data from memory is read once and stored
    in the run directory's `data`, so that the run can be resumed.
    set: settings by dotted names, such as {"model.width": 256}.
    minutes: train for this long instead of a number of steps. The time includes evaluation, the report, and the `spent`
    seconds that have already passed.
    run: the run directory (default: runs/NAME).
    resume: continue the existing run; a finished run continues for `minutes` more. The data must be the same, but
    its paths may have changed.
    finish: decay the learning rate and end an interrupted run within a tenth of the steps so far.
    start, from_: a run or a published model to fine-tune (two names for one argument). The run takes over its
    configuration, tokenizer and weights, with new heads where the task needs them.
    lora: train a low-rank adapter of this rank instead of all weights.
    samples: how many outputs of the trained model to store in the summary and the report.

    Raises UserError before any work starts if the arguments or the data cannot be used, and KeyboardInterrupt after
    Ctrl-C, once a checkpoint has been written.
    """
    if start is not None and from_ is not None:
        raise UserError(f"start is {start} and from_ is {from_}, but both name the same argument; remove one")
    clock, start, torch_device = Clock(spent), from_ if start is None else start, find_device(device)
    check_minutes([] if minutes is None else [minutes])
    if threads is not None:
        torch.set_num_threads(threads)
    base = load_recipe(recipe)
    directory = Path("runs") / base.name if run is None else Path(run)
    run_directory = RunDirectory(directory)
    resuming = run_directory.claim(resume)
    lock = run_directory.locked() if is_main_process() else nullcontext()
    with lock, data_paths(data, base.domain, directory) as paths:
        if resuming:
            chosen = load_recorded_recipe(directory, base.name, paths, set, seed, start, lora)
            setup = TrainingSetup(chosen, open_task(chosen, directory))
        else:
            chosen = configure_recipe(recipe, paths, set, seed, start, lora)
            scale = scale_of(chosen.name) if recipe == chosen.name else None  # scaled only if requested by name
            setup = plan_run(chosen, scale, set or {}, minutes, clock, torch_device, directory)
        scale = scale_of(setup.recipe.name)
        trainer = Trainer(
            *(setup.recipe, setup.task, run_directory),
            device=torch_device,
            progress=progress,
            minutes=minutes,
            clock=clock,
            evaluate_final=True,
            samples=samples,
            predict_loss=loss_predictor(scale, setup.recipe),
            max_steps=setup.max_steps,
            patience=setup.patience,
        )
        with trainer.locked():
            finished_run = trainer.fit(resume, finish)
            summary, task = finished_run.summary, trainer.task
            if trainer.extended and trainer.shows_progress:
                limit = outgrown_message(finished_run.recipe, scale, task, summary["tokens"], summary["minutes"])
                print(limit or "the model size still suits the total time", file=sys.stderr, flush=True)
            if not trainer.processes.is_main or summary.get("scores"):  # the run was already finished
                return finished_run
            return _evaluate_and_report(finished_run, task, samples, progress, trainer.seconds_left())


@deduplicated_logs()
@check_types
def plan(
    recipe: str | Path | Recipe,
    data: Data | None = None,
    minutes: float | Sequence[float] = (5, 30, 120),
    set: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
    lora: int | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
    spent: float = 0.0,
) -> list[Plan]:
    """Plan what `train` would do in each number of minutes: model size, batches, steps and memory, with the reasons.

    Takes the arguments of `train`. Nothing is trained, but a few steps are timed. Raises UserError for
    arguments or data that cannot be used, and if every number of minutes is too small to learn anything.
    """
    minute_options = [minutes] if isinstance(minutes, (int, float)) else list(minutes)
    check_minutes(minute_options)
    torch_device = find_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    with data_paths(data, load_recipe(recipe).domain) as paths:
        chosen = configure_recipe(recipe, paths, set, seed, start, lora)
        return make_plans(chosen, scale_of(chosen.name), set or {}, minute_options, torch_device, spent)


def _attention_of_run(run: Run) -> list[Picture]:
    """Attention pictures of a text model whose task has no other pictures."""
    codec = published_codec(run.directory)
    if codec is None:
        return []
    model = Model(OpenedModel(run.model, Usage(), codec), run.directory, run.recipe)
    return attention_pictures(model, run.summary["samples"])


def _evaluate_and_report(run: Run, task: Task, num_samples: int, progress: bool, seconds_left: float | None) -> Run:
    """Evaluate the best model on the final split, generate samples, and write the results and report within
    `seconds_left`.
    """
    if progress:
        print("evaluating the best model", file=sys.stderr, flush=True)
    started = time.perf_counter()
    messages = task.calibrate(run.model, run.directory)
    if run.recipe.start is not None and run.recipe.adapter is None:
        refitted = task.refit_head(run.model, run.summary["fresh"], run.recipe.train.linear_probe)
        if refitted:
            save_model(run.model, run.recipe.model, run.directory)
            run.summary["refitted"] = refitted
            messages.append(f"refitted the head on all {refitted:,} training and validation samples")
    for line in messages if progress else ():
        print(line, file=sys.stderr, flush=True)
    scores = _final_scores(run, task, None if seconds_left is None else seconds_left - (time.perf_counter() - started))
    run = with_results(run, scores, task.samples(run.model, num_samples) if num_samples else [])
    if remark := task.remark(run.model):
        run.summary["remark"] = remark
    run.summary["judging_seconds"] = round(time.perf_counter() - started, 3)
    run.summary["report"] = None
    if available():
        run.summary["report"] = str(report_run(run, task.pictures(run.model) or _attention_of_run(run)))
    elif progress:
        _LOG.warning(HOW_TO_INSTALL)
    RunDirectory(run.directory).write_status(run.summary)
    return run


def record_evaluation(model: Model, task: Task, scores: Mapping[str, Any]) -> str | None:
    """Write the scores of a finished run on its final split to its summary and report, and return the report's path;
    None for a run that is not finished. Raises UserError if the run cannot be written.
    """
    run_directory = RunDirectory(model.directory)
    with run_directory.locked():
        summary = run_directory.read_status()
        if model.recipe is None or summary.get("status") != "finished" or not summary.get("scores"):
            return None
        run = Run(run_directory.path, model.recipe, model.module, task, read_metrics(run_directory.metrics), summary)
        run = with_results(run, scores, summary.get("samples") or ())
        if available():
            run.summary["report"] = str(report_run(run, task.pictures(run.model) or _attention_of_run(run)))
        run_directory.write_status(run.summary)
    return run.summary["report"]


def _final_scores(run: Run, task: Task, seconds_left: float | None) -> dict[str, Any]:
    """The scores on the final split, with as many of its samples as time allows."""
    split = task.final_split
    if seconds_left is None or seconds_left == math.inf:
        return {"split": split, **task.evaluate(run.model, split)}
    total = task.count(split)
    scores, limit, next_limit = {}, 0, min(MIN_EVALUATED, total)
    while next_limit == total > limit or next_limit >= max(1, 2 * limit):  # small batches take more time per sample
        started, limit = time.perf_counter(), next_limit
        scores = task.evaluate(run.model, split, None if limit == total else limit)
        duration = time.perf_counter() - started
        seconds_left -= duration
        next_limit = min(total, int(limit * seconds_left / duration))
    return {"split": split, **scores, **({} if limit == total else {"judged": limit, "judged_of": total})}


_MAX_TOKENS = 24  # maximum tokens in a readable picture
_MAX_HEADS = 4


def attention_pictures(model: Model, samples: Sequence[Mapping[str, str]]) -> list[Picture]:
    """The last layer's attention per head over a sample's prompt; empty without attention or samples."""
    prompts = [sample["prompt"] for sample in samples if sample.get("prompt")]
    attention = model.attention(prompts[0]) if prompts else None
    if attention is None or not attention.maps:
        return []
    name, weights = list(attention.maps.items())[-1]
    heads, tokens = weights[:_MAX_HEADS, :_MAX_TOKENS, :_MAX_TOKENS].tolist(), attention.symbols[:_MAX_TOKENS]
    return [
        Picture(
            f"Attention, head {number}",
            f"{name}: attention from each token (row) to each token (column)",
            heatmap(head, tokens, tokens, "self-attention"),
        )
        for number, head in enumerate(heads, 1)
    ]
