"""The Python API: `train` and `plan` a recipe; see `headway.app.loading` for `load`."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from headway.app.loading import find_device, load
from headway.app.model import Model
from headway.app.pretraining import check_pretrain, train_first_stage
from headway.app.recipes import configure_recipe, load_recipe, load_recorded_recipe
from headway.codecs import published_codec
from headway.config import override
from headway.domains import scale_of
from headway.errors import UserError, deduplicated_logs, logger
from headway.formats.native import FILE, read_model, save_model
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.io.arguments import check_types
from headway.io.json_files import parse_json
from headway.learn import Recipe, Run, Task, Trainer
from headway.learn.fine_tuning import adapted_model, open_new_task
from headway.learn.objective import FinishedHead
from headway.learn.parallel.group import joined, process_rank
from headway.learn.plan.budget import MIN_EVALUATED, Clock, check_minutes
from headway.learn.plan.choose import outgrown_message
from headway.learn.plan.plans import Plan, TrainingSetup, loss_predictor, make_plans, plan_run
from headway.learn.plan.scale import Scale
from headway.learn.recipe import ParallelConfig, open_task
from headway.learn.report import Picture, heatmap, write_report
from headway.learn.report.rendering import HOW_TO_INSTALL, available
from headway.learn.run import RunDirectory, read_metrics
from headway.learn.run_report import run_sections, with_results
from headway.predict.attention_maps import Attention
from headway.predict.in_memory_data import Data, data_paths

if TYPE_CHECKING:
    from headway.learn.plan.ranks import RankPlan

_LOG = logger(__name__)
_MAX_GPUS = 100_000
_FINISHED_HEAD = "finished_head"  # note in a model file
_MAX_TOKENS, _MAX_HEADS = 24, 4  # maximum tokens and heads in pictures of attention

__all__ = ["Model", "Plan", "find_device", "load", "plan", "plan_gpus", "train"]


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
    pretrain: str | Path | Sequence[str | Path] | None = None,
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
    pretrain: unlabelled data to train the model on first, in the run directory's `pretraining`; both stages share the
    minutes.
    samples: how many outputs of the trained model to store in the summary and the report.

    Raises UserError before any work starts if the arguments or the data cannot be used, and KeyboardInterrupt after
    Ctrl-C, once a checkpoint has been written.
    """
    timeout = ParallelConfig().timeout
    with suppress(UserError):  # reported below, once for all processes
        parallel = {name: value for name, value in (set or {}).items() if name.startswith("parallel.")}
        timeout = override(load_recipe(recipe), parallel).parallel.timeout
    with joined(timeout):
        _check_arguments([] if minutes is None else [minutes], threads, start, from_, set)
        clock, torch_device, start = Clock(spent), find_device(device), from_ if start is None else start
        base, reasons = load_recipe(recipe), tuple[str, ...]()
        run_directory = RunDirectory(Path("runs") / base.name if run is None else Path(run))
        directory, resuming = run_directory.path, run_directory.claim(resume, finish)
        check_pretrain(pretrain, base.name, minutes, start, directory, resuming)
        lock = run_directory.locked() if process_rank() == 0 else nullcontext()
        with lock, data_paths(data, base.domain, directory) as paths:
            if pretrain is not None and not resuming:
                arguments = recipe, paths, set or {}, seed, minutes or 0.0, directory
                options = {"device": device, "threads": threads, "progress": progress, "resume": resume}
                start, set, clock, reasons = train_first_stage(train, pretrain, *arguments, clock, options, lora)
            if resuming:
                chosen = load_recorded_recipe(directory, base.name, paths, set, seed, start, lora)
                setup = TrainingSetup(chosen, open_task(chosen, directory))
            else:
                chosen = configure_recipe(recipe, paths, set, seed, start, lora)
                chosen = replace(chosen, reasons=(*reasons, *chosen.reasons))
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
                expected=setup.expected,
                max_steps=setup.max_steps,
                patience=setup.patience,
            )
            return _report(trainer, trainer.fit(resume, finish), scale, samples)


def _check_arguments(
    minutes: Sequence[float],
    threads: int | None,
    start: str | Path | None = None,
    from_: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Set the number of threads. Raises UserError for arguments that cannot be used, and for both minutes and steps."""
    if minutes and "train.steps" in (settings or {}):
        steps = (settings or {})["train.steps"]
        raise UserError(f"the minutes and train.steps={steps} both determine how long the run trains; remove one")
    if start is not None and from_ is not None:
        raise UserError(f"start is {start} and from_ is {from_}, but both name the same argument; remove one")
    check_minutes(minutes)
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads is {threads}; use a number of at least 1")
        torch.set_num_threads(threads)


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
    minute_options = [minutes] if isinstance(minutes, (int, float)) else list(minutes or ())
    if not minute_options:
        raise UserError("minutes is empty; pass at least one number")
    torch_device = find_device(device)
    _check_arguments(minute_options, threads)
    with data_paths(data, load_recipe(recipe).domain) as paths:
        chosen = configure_recipe(recipe, paths, set, seed, start, lora)
        return make_plans(chosen, scale_of(chosen.name), set or {}, minute_options, torch_device, spent)


@deduplicated_logs()
@check_types
def plan_gpus(
    recipe: str | Path | Recipe,
    gpus: int,
    gpu: str = "h100",
    data: Data | None = None,
    set: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
    lora: int | None = None,
) -> RankPlan:
    """Plan a step of `train` on so many GPUs, without having one: memory of each, traffic and time.

    Takes the arguments of `train`. A language model needs no data. Raises UserError for arguments or data that cannot
    be used, and for an unknown GPU.
    """
    from headway.learn.plan.ranks import find_gpu, plan_ranks  # simulates tensors, which takes a second to import

    chosen = find_gpu(gpu)
    if not 1 <= gpus <= _MAX_GPUS:
        raise UserError(f"gpus is {gpus}; use a number from 1 to {_MAX_GPUS:,}")
    with data_paths(data, load_recipe(recipe).domain) as paths, TemporaryDirectory() as workspace:
        configured = configure_recipe(load_recipe(recipe), paths, set, None, start, lora)
        if not configured.data and not configured.task.generates_data:
            return plan_ranks(configured, None, gpus, chosen)
        task = open_new_task(configured, Path(workspace))
        try:
            return plan_ranks(replace(configured, model=adapted_model(configured, task)), task, gpus, chosen)
        finally:
            task.close()


def _report(trainer: Trainer, run: Run, scale: Scale | None, num_samples: int) -> Run:
    """Evaluate the best model on the final split, generate samples, and write the results and report in the time that
    is left.
    """
    task, model, examples = trainer.task, run.model, trainer.task.examples
    if trainer.extended and trainer.shows_progress:
        limit = outgrown_message(run.recipe, scale, task, run.summary["tokens"], run.summary["minutes"])
        print(limit or "the model size still suits the total time", file=sys.stderr, flush=True)
    if not trainer.processes.is_main or run.summary.get("scores"):  # the run was already finished
        return run
    seconds_left = None if trainer.budget is None else trainer.budget.final_evaluation_seconds()
    if trainer.shows_progress:
        print("evaluating the best model", file=sys.stderr, flush=True)
    started = time.perf_counter()
    messages = task.objective.calibrate(model, examples, run.directory)
    if messages:
        task.save(run.directory)
    if run.recipe.adapter is None:
        refitted, added = _finish_head(run, task)
        if refitted:
            run.summary["refitted"] = refitted
            messages.append(f"refitted the head on all {refitted:,} training and validation samples")
        if added:
            run.summary["extended"] = added
            messages.append(added)
    for line in messages if trainer.shows_progress else ():
        print(line, file=sys.stderr, flush=True)
    split = task.final_split
    if seconds_left is None or seconds_left == math.inf:
        scores = {"split": split, **task.evaluate(model, split)}
    else:  # with as many samples as time allows
        deadline, total, scores = started + seconds_left, task.count(split), {}
        limit, next_limit = 0, min(MIN_EVALUATED, total)
        while next_limit == total > limit or next_limit >= max(1, 2 * limit):  # small batches take more time per sample
            evaluation_started, limit = time.perf_counter(), next_limit
            scores = task.evaluate(model, split, None if limit == total else limit)
            now = time.perf_counter()
            next_limit = min(total, int(limit * (deadline - now) / (now - evaluation_started)))
        scores = {"split": split, **scores, **({} if limit == total else {"judged": limit, "judged_of": total})}
    run = with_results(run, scores, task.samples(model, num_samples) if num_samples else [])
    if remark := task.objective.remark(model, examples):
        run.summary["remark"] = remark
    run.summary["judging_seconds"] = round(time.perf_counter() - started, 3)
    run.summary["report"] = None
    if available():
        run.summary["report"] = str(_write_page(run, task))
    elif trainer.shows_progress:
        _LOG.warning(HOW_TO_INSTALL)
    RunDirectory(run.directory).write_status(run.summary)
    return run


def _finish_head(run: Run, task: Task) -> FinishedHead:
    """Finish the head of the best model and save it, with a note in the file. So a run that was stopped in its final
    evaluation, or that was extended and did not become better, does not finish a head twice.
    """
    stored, _ = read_model(run.directory / FILE)
    if note := stored.metadata.get(_FINISHED_HEAD):
        return FinishedHead(*parse_json(note))
    fresh = () if run.recipe.start is None else run.summary["fresh"]
    finished = task.objective.finish_head(run.model, task.examples, fresh, run.recipe.train.linear_probe)
    if any(finished):
        save_model(run.model, run.recipe.model, run.directory, {_FINISHED_HEAD: json.dumps(finished)})
    return finished


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
            run.summary["report"] = str(_write_page(run, task))
        run_directory.write_status(run.summary)
    return run.summary["report"]


def _write_page(run: Run, task: Task) -> Path:
    """Write the report page. A text model whose task has no pictures gets those of the last layer's attention per head
    over a sample's prompt.
    """
    pictures, codec = task.pictures(run.model), published_codec(run.directory)
    prompts = [sample["prompt"] for sample in run.summary["samples"] if sample.get("prompt")]
    if not pictures and codec is not None and prompts:
        model = Model(OpenedModel(run.model, Usage(), codec), run.directory, run.recipe)
        attention = model.attention(prompts[0]) if "attention" in model.verbs else Attention({}, [], [])
        for name, weights in list(attention.maps.items())[-1:]:
            tokens = attention.symbols[:_MAX_TOKENS]
            caption = f"{name}: attention from each token (row) to each token (column)"
            pictures = [
                Picture(f"Attention, head {number}", caption, heatmap(head, tokens, tokens, "self-attention"))
                for number, head in enumerate(weights[:_MAX_HEADS, :_MAX_TOKENS, :_MAX_TOKENS].tolist(), 1)
            ]
    return write_report(run.directory, run_sections(run, pictures))
