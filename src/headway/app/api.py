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

from headway.app.fitting import Fitted, Plan, fitting, foretelling, outgrown, plans, tune
from headway.app.loading import find_device, load
from headway.app.model import Model
from headway.app.recipes import begin_task, configured, named, recorded
from headway.codecs import published_codec
from headway.errors import UserError, logger, notices_once
from headway.evaluation import open_task
from headway.formats.native import save_model
from headway.formats.open import Opened
from headway.formats.usage import Usage
from headway.given import typed
from headway.in_memory import Data, kept
from headway.learn import Recipe, Run, Task, Trainer
from headway.learn.budget import FEW, Clock, check_minutes
from headway.learn.distributed import is_first
from headway.learn.page import report_run, with_results
from headway.learn.records import read_metrics
from headway.learn.report import Picture, heatmap
from headway.learn.report.page import HOW_TO_INSTALL, available
from headway.learn.run import RunDirectory

_LOG = logger(__name__)

__all__ = ["Model", "Plan", "find_device", "load", "plan", "train"]


@notices_once()
@typed
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
    data: files to train on instead of the recipe's own data; or, for recipes that take texts or tables, a pandas or
    polars DataFrame, a Dataset, or any iterable of rows (mappings) or texts. Data from memory are read once and stored
    in `data` in the run's directory, for when the run continues.
    set: settings by dotted names, such as {"model.width": 256}.
    minutes: train for a time instead of a number of steps. The time includes evaluation, the report, and the `spent`
    seconds that have already passed.
    run: the directory of the run (default: runs/NAME).
    resume: continue the existing run; a finished run continues for `minutes` more. The data must be the same, but
    their paths may have changed.
    finish: end an interrupted run with a decaying learning rate, within a tenth of the steps so far.
    start, from_: a run or a published model to fine-tune (two names of one argument). The run takes over its
    configuration, tokenizer and weights, with new heads where the task needs them.
    lora: train a low-rank adapter of this rank instead of all weights.
    samples: how many outputs of the trained model to store in the summary and the report.

    Raises UserError before any work starts if the arguments or the data cannot be used, and KeyboardInterrupt after
    Ctrl-C, once a checkpoint is written.
    """
    if start is not None and from_ is not None:
        raise UserError(f"start is {start} and from_ is {from_}, but both name the same argument; remove one")
    clock, start, where = Clock(spent), from_ if start is None else start, find_device(device)
    check_minutes([] if minutes is None else [minutes])
    found = named(recipe)
    directory = Path("runs") / found.name if run is None else Path(run)
    place = RunDirectory(directory)
    begun = place.claim(resume)
    with place.holding() if is_first() else nullcontext(), kept(data, found.domain, directory) as paths:
        if begun:
            chosen = recorded(directory, found.name, paths, set, seed, start, lora)
            fitted = Fitted(chosen, open_task(chosen, directory))
        else:
            chosen = configured(recipe, paths, set, seed, start, lora)
            fitted = _begun(chosen, recipe, set or {}, minutes, clock, where, threads, directory)
        trainer = Trainer(
            fitted.recipe,
            fitted.task,
            place,
            device=where,
            threads=threads,
            progress=progress,
            minutes=minutes,
            clock=clock,
            judged=True,
            samples=samples,
            foretell=foretelling(fitted.recipe),
            most=fitted.most,
            patience=fitted.patience,
        )
        with trainer.holding():
            ended = trainer.fit(resume, finish)
            if not trainer.run.processes.first:
                return ended
            if trainer.extended and progress:
                limit = outgrown(ended.recipe, trainer.run.task, ended.summary["tokens"], ended.summary["minutes"])
                print(limit or "the model size is still right for the total time", file=sys.stderr, flush=True)
            judged = bool(ended.summary.get("scores"))  # the run was already finished
            return ended if judged else _finish(ended, trainer.run.task, samples, progress, trainer.left())


@notices_once()
@typed
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

    The arguments are those of `train`. Nothing is trained; a few steps run to measure their time. Raises UserError for
    arguments or data that cannot be used, and if every number of minutes is too small to learn anything.
    """
    several = [minutes] if isinstance(minutes, (int, float)) else list(minutes)
    check_minutes(several)
    where = find_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    with kept(data, named(recipe).domain) as paths:
        return plans(configured(recipe, paths, set, seed, start, lora), set or {}, several, where, spent)


def _begun(
    recipe: Recipe,
    asked: str | Path | Recipe,
    user: Mapping[str, Any],
    minutes: float | None,
    clock: Clock,
    device: torch.device,
    threads: int | None,
    directory: Path,
) -> Fitted:
    """The recipe and its task. A generic recipe requested by name is scaled to the minutes."""
    if threads is not None:
        torch.set_num_threads(threads)
    if minutes is None or asked != recipe.name:
        return Fitted(recipe, begin_task(recipe, directory))
    found = fitting(recipe, user, minutes, clock, device)
    if found is not None:
        with found:
            return found.fit()
    known = tune(recipe, user, minutes, clock, device, directory)
    return known or Fitted(recipe, begin_task(recipe, directory))


def _attention(run: Run) -> list[Picture]:
    """Attention pictures of a text model whose task has no other pictures."""
    codec = published_codec(run.directory)
    if codec is None:
        return []
    model = Model(Opened(run.model, Usage(), codec), run.directory, run.recipe)
    return attention_pictures(model, run.summary["samples"])


def _finish(run: Run, task: Task, count: int, progress: bool, left: float | None) -> Run:
    """Evaluate the best model on the final split, generate samples, and write the results and the report within
    `seconds_left`.
    """
    if progress:
        print("evaluating the best model", file=sys.stderr, flush=True)
    started = time.perf_counter()
    lines = task.calibrate(run.model, run.directory)
    if run.recipe.start is not None and run.recipe.adapter is None:
        refitted = task.refit_head(run.model, run.summary["fresh"], run.recipe.train.linear_probe)
        if refitted:
            save_model(run.model, run.recipe.model, run.directory)
            run.summary["refitted"] = refitted
            lines.append(f"refitted the head on all {refitted:,} training and validation samples")
    for line in lines if progress else ():
        print(line, file=sys.stderr, flush=True)
    scores = _judged(run, task, None if left is None else left - (time.perf_counter() - started))
    run = with_results(run, scores, task.samples(run.model, count) if count else [])
    if remark := task.remark(run.model):
        run.summary["remark"] = remark
    run.summary["judging_seconds"] = round(time.perf_counter() - started, 3)
    run.summary["report"] = None
    if available():
        run.summary["report"] = str(report_run(run, task.pictures(run.model) or _attention(run)))
    elif progress:
        _LOG.warning(HOW_TO_INSTALL)
    RunDirectory(run.directory).write_status(run.summary)
    return run


def record_evaluation(model: Model, task: Task, scores: Mapping[str, Any]) -> str | None:
    """Write the scores of a finished run on its final split to its summary and report, and return the report's path;
    None for a run that is not finished. Raises UserError if the run cannot be written.
    """
    place = RunDirectory(model.directory)
    with place.holding():
        summary = place.read_status()
        if model.recipe is None or summary.get("status") != "finished" or not summary.get("scores"):
            return None
        run = Run(place.path, model.recipe, model.module, task, read_metrics(place.metrics), summary)
        run = with_results(run, scores, summary.get("samples") or ())
        if available():
            run.summary["report"] = str(report_run(run, task.pictures(run.model) or _attention(run)))
        place.write_status(run.summary)
    return run.summary["report"]


def _judged(run: Run, task: Task, left: float | None) -> dict[str, Any]:
    """The scores on the final split, with as many of its samples as time allows."""
    split = task.final_split
    if left is None or left == math.inf:
        return {"split": split, **task.evaluate(run.model, split)}
    whole = task.count(split)
    scores, limit, more = {}, 0, min(FEW, whole)
    while more == whole > limit or more >= max(1, 2 * limit):  # small batches take more time per sample
        started, limit = time.perf_counter(), more
        scores = task.evaluate(run.model, split, None if limit == whole else limit)
        took = time.perf_counter() - started
        left -= took
        more = min(whole, int(limit * left / took))
    return {"split": split, **scores, **({} if limit == whole else {"judged": limit, "judged_of": whole})}


_MOST = 24  # most tokens in a readable picture
_HEADS = 4


def attention_pictures(model: Model, samples: Sequence[Mapping[str, str]]) -> list[Picture]:
    """The attention of heads in the last layer over a sample's prompt; empty without attention or samples."""
    prompts = [sample["prompt"] for sample in samples if sample.get("prompt")]
    found = model.attention(prompts[0]) if prompts else None
    if found is None or not found.maps:
        return []
    name, weights = list(found.maps.items())[-1]
    part, symbols = weights[:_HEADS, :_MOST, :_MOST].tolist(), found.symbols[:_MOST]
    return [
        Picture(
            f"Attention, head {number}",
            f"{name}: attention of each token (row) over the tokens (columns)",
            heatmap(head, symbols, symbols, "self-attention"),
        )
        for number, head in enumerate(part, 1)
    ]
