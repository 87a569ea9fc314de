"""Pre-training in a run: the stage on unlabelled data, which is a run of its own in the run's folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from headway.app.recipes import TOKENIZER_SETTINGS, configure_recipe, load_recipe, second_stage_settings, sets_model
from headway.config import override
from headway.domains import pretraining_of, recipe_domains
from headway.errors import UserError, logger
from headway.learn import Recipe
from headway.learn.interrupts import UserInterrupt
from headway.learn.parallel.group import world_size
from headway.learn.plan.budget import Clock
from headway.learn.plan.scale import without_user_settings
from headway.learn.pretraining import Pretraining, UnlabelledData, describe_stages
from headway.learn.recipe import open_task, path_list, read_recipe
from headway.learn.run import PRETRAINING, RunDirectory
from headway.predict.in_memory_data import Paths

_LOG = logger(__name__)


class Pretrained(NamedTuple):
    """The run that a recipe starts from after its first stage, the recipe's settings, a clock that includes the first
    stage, and a description of both stages for people.
    """

    start: Path
    settings: dict[str, Any]
    clock: Clock
    reasons: tuple[str, ...]


def check_pretrain(
    unlabelled: Paths | None, name: str, minutes: float | None, start: str | Path | None, run: Path, resuming: bool
) -> None:
    """Raise UserError for a recipe that cannot be pre-trained, without minutes, with another start, for several
    processes, for resuming a run that did not start with pre-training, and for training without `unlabelled` data
    where a first stage was stopped.
    """
    if unlabelled is None:
        if start is None and not resuming and RunDirectory(run / PRETRAINING).exists():
            raise UserError(
                f"{run} contains a first stage on unlabelled data; continue it with --resume and --pretrain, or choose "
                "another folder with --run"
            )
        return
    if pretraining_of(name) is None:
        able = ", ".join(recipe for recipe in recipe_domains() if pretraining_of(recipe) is not None)
        raise UserError(f"recipe {name!r} has no pre-training; remove --pretrain, or use one of {able}")
    if world_size() > 1:
        raise UserError(
            "--pretrain trains with one process; train the first stage as a run of its own, and continue with --from"
        )
    if not path_list(unlabelled):
        raise UserError("--pretrain has no files; pass at least one")
    if start is not None:
        raise UserError(f"--pretrain and --from {start} both set the initial weights; remove one of them")
    if resuming and not (run / PRETRAINING).is_dir():
        raise UserError(f"{run} started without --pretrain; remove it to resume, or choose another folder with --run")
    if minutes is None and not resuming:
        raise UserError("--pretrain shares the minutes between two stages, and none are set; add --minutes")


def train_first_stage(
    train: Callable[..., Any],
    unlabelled: Paths,
    recipe: str | Path | Recipe,
    data: Paths | None,
    settings: Mapping[str, Any],
    seed: int | None,
    minutes: float,
    directory: Path,
    clock: Clock,
    options: Mapping[str, Any],
    lora: int | None = None,
) -> Pretrained:
    """Train the stage of a `recipe` on `unlabelled` data in the run `directory`, with `train` (hw.train) and its
    `options`. A stopped stage continues, and a finished one is taken as it is if it had the same data and settings.
    `minutes` are those of both stages, and `lora` is for the second one.

    The labelled data are read first, so errors in them appear before any training.
    """
    configured = configure_recipe(recipe, data, settings, seed, lora=lora)
    pretraining, run = pretraining_of(configured.name), RunDirectory(directory / PRETRAINING)
    assert pretraining is not None  # checked by check_pretrain
    tuning = without_user_settings(pretraining.tuning(configured), settings)
    tuned, stage = override(configured, tuning), load_recipe(pretraining.stage(configured))
    samples = _read(pretraining, tuned, stage, unlabelled)
    reasons = describe_stages(stage.name, samples, minutes)
    if options["progress"]:
        print(reasons[0] if samples.doubt else "\n".join(reasons), file=sys.stderr, flush=True)
    if samples.doubt:
        _LOG.warning("%s", reasons[1])
    status = run.read_status() if run.claim(options["resume"]) else {}
    earlier_seconds = sum(status.get(key) or 0.0 for key in ("elapsed", "judging_seconds"))
    # A model that is named as the stage's recipe is that recipe's own, whose size depends on the data.
    own = {key: value for key, value in settings.items() if sets_model(key) and value != stage.name}
    known = {f"task.{name}" for name in vars(stage.task)}
    if settings.get("task.lowercase") and "task.lowercase" not in known:
        raise UserError(f"task.lowercase: a first stage of recipe {stage.name!r} keeps the case; remove the setting")
    # The first stage trains the tokenizer.
    tokenizer = {name: settings[name] for name in TOKENIZER_SETTINGS if name in settings and name in known}
    share = float(f"{samples.share * minutes:.3g}")
    first_minutes = None if status.get("status") == "finished" else status.get("minutes") or share
    chosen, spent = {**pretraining.settings(tuned), **tokenizer, **own}, clock.elapsed()
    try:
        train(stage.name, samples.rows, chosen, first_minutes, run.path, seed=seed, spent=spent, **options)
    except UserInterrupt as stop:
        remedy = f"resume {directory} with --resume and --pretrain"
        raise UserInterrupt(f"pre-training {stop.where}", remedy, stop.number, stop.is_agreed) from None
    # The second stage has its share, however long an interrupted first stage took.
    seconds = min(clock.elapsed() + earlier_seconds, 60 * samples.share * minutes)
    second = {**tuning, **second_stage_settings(settings)}
    if second.get("task.ngrams") and not samples.doubt:
        second.setdefault("task.unlabelled", list(read_recipe(run.recipe).data))
    return Pretrained(run.path, second, Clock(seconds), reasons)


def _read(pretraining: Pretraining, recipe: Recipe, stage: Recipe, unlabelled: Paths) -> UnlabelledData:
    """The unlabelled data next to the recipe's. UserError for prepared data that the stage does not read, and if the
    recipe cannot be trained on its data.
    """
    paths = stage.files([Path(path) for path in path_list(unlabelled)])
    with TemporaryDirectory() as workspace:
        task = open_task(recipe, Path(workspace))
        try:
            task.adapt(recipe.model)
            return pretraining.read(recipe, task, paths)
        finally:
            task.close()
