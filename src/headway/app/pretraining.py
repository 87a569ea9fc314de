"""Pre-training in a run: the stage on unlabelled data, which is a run of its own in the run's folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from headway.domains import pretraining_of, recipe_domains
from headway.errors import UserError, logger
from headway.learn import Recipe
from headway.learn.interrupts import UserInterrupt
from headway.learn.plan.budget import Clock
from headway.learn.pretraining import Pretraining, UnlabelledData, describe_stages, stage_minutes
from headway.learn.recipe import open_task, path_list
from headway.learn.run import PRETRAINING, RunDirectory
from headway.predict.in_memory_data import Paths

_LOG = logger(__name__)
_TOKENIZER_SETTINGS = ("task.codec", "task.size", "task.lowercase")  # the first stage trains the tokenizer
_DROPOUT = "model.dropout"  # the one setting of the model that may differ between the stages


class Pretrained(NamedTuple):
    """The run that a recipe starts from after its first stage, the recipe's settings, a clock that includes the first
    stage, and a description of both stages for people.
    """

    start: Path
    settings: dict[str, Any]
    clock: Clock
    reasons: tuple[str, ...]


def check_pretrain(name: str, minutes: float | None, start: str | Path | None) -> Pretraining:
    """How a recipe is pre-trained. UserError for a recipe that cannot be, without minutes, or with another start."""
    pretraining = pretraining_of(name)
    if pretraining is None:
        able = ", ".join(recipe for recipe in recipe_domains() if pretraining_of(recipe) is not None)
        raise UserError(f"recipe {name!r} has no pre-training; remove --pretrain, or use one of {able}")
    if start is not None:
        raise UserError(f"--pretrain and --from {start} both set the initial weights; remove one of them")
    if minutes is None:
        raise UserError("--pretrain shares the minutes between two stages, and none are set; add --minutes")
    return pretraining


def check_pretrained(directory: Path) -> None:
    """Raise UserError for an existing run that did not start with pre-training."""
    if not (directory / PRETRAINING).is_dir():
        raise UserError(
            f"{directory} was started without --pretrain; remove it to resume, or choose another directory with --run"
        )


@dataclass(frozen=True)
class FirstStage:
    """The stage of a `recipe` with the user's `settings` on `unlabelled` data, in the run `directory`."""

    recipe: Recipe
    unlabelled: Paths
    settings: Mapping[str, Any]
    minutes: float  # of both stages
    directory: Path

    def train(self, train: Callable[..., Any], clock: Clock, resume: bool, options: Mapping[str, Any]) -> Pretrained:
        """Train the stage with `train` (hw.train) and its `options`, continue it, or take it if it is finished.

        The labelled data are read first, so errors in them appear before any training.
        """
        pretraining = check_pretrain(self.recipe.name, self.minutes, None)
        stage, run = pretraining.stage(self.recipe), RunDirectory(self.directory / PRETRAINING)
        data = self._read(pretraining)
        reasons = describe_stages(stage, data, self.minutes)
        if options["progress"]:
            print(reasons[0] if data.doubt else "\n".join(reasons), file=sys.stderr, flush=True)
        if data.doubt:
            _LOG.warning("%s", reasons[1])
        status = run.read_status() if run.claim(resume) else {}
        earlier_seconds = sum(status.get(key) or 0.0 for key in ("elapsed", "judging_seconds"))
        if status.get("status") != "finished":
            minutes = status.get("minutes") or stage_minutes(self.minutes)
            arguments = {"set": self._first_settings(pretraining, stage), "minutes": minutes, "run": run.path}
            try:
                train(stage, data.rows, resume=resume, spent=clock.elapsed(), **arguments, **options)
            except UserInterrupt as stop:
                remedy = f"resume {self.directory} with --resume"
                raise UserInterrupt(f"pre-training {stop.where}", remedy, stop.number, stop.is_agreed) from None
        # At least half of the second stage's time is left, however long an interrupted first stage took.
        seconds = min(clock.elapsed() + earlier_seconds, 30 * (stage_minutes(self.minutes) + self.minutes))
        own = {key: value for key, value in self.settings.items() if not _sets_model(key) or key == _DROPOUT}
        return Pretrained(run.path, {**pretraining.tuning(self.recipe), **own}, Clock(seconds), reasons)

    def _read(self, pretraining: Pretraining) -> UnlabelledData:
        """The unlabelled data next to the recipe's. Raises UserError if the recipe cannot be trained on its data."""
        with TemporaryDirectory() as workspace:
            task = open_task(self.recipe, Path(workspace))
            try:
                task.adapt(self.recipe.model)
                return pretraining.read(self.recipe, task, [Path(path) for path in path_list(self.unlabelled)])
            finally:
                task.close()

    def _first_settings(self, pretraining: Pretraining, stage: str) -> dict[str, Any]:
        """The first stage's settings, with the user's settings of the model and the tokenizer. A model that is named as
        the stage's recipe is that recipe's own, whose size depends on the data.
        """
        chosen = {key: value for key, value in self.settings.items() if _sets_model(key) and value != stage}
        tokenizer = {key: self.settings[key] for key in _TOKENIZER_SETTINGS if key in self.settings}
        return {**pretraining.settings(self.recipe), **tokenizer, **chosen}


def _sets_model(setting: str) -> bool:
    return setting.partition(".")[0] == "model"
