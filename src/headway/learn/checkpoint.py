"""Checkpoints: all that a run needs to go on bit for bit, in safetensors and JSON."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headway.errors import UserError
from headway.formats import native
from headway.formats.digests import damage, is_sealed, seal
from headway.formats.durable import beside, remove, write_json, write_tensors
from headway.formats.tensorfile import read_tensors
from headway.learn.learner import Learner
from headway.learn.records import read_progress
from headway.outputs import check_folder

if TYPE_CHECKING:
    from headway.learn.training import RunState

_VERSION = 1


class Checkpoints:
    """A folder of checkpoints of a run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def all(self) -> list[Path]:
        """Complete checkpoints, the oldest first. UserError where their folder has become a link."""
        check_folder(self.directory)
        return sorted(self.directory.glob("step-" + "[0-9]" * 8))

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        check_folder(self.directory)
        for path in self.directory.glob(".step-*"):
            remove(path)

    def save(self, run: RunState, keep: int = 1, interval: int = 1) -> None:
        """Write a checkpoint beside the others, of which the newest `keep` stay that lie `interval` steps apart.

        One saved between them, when the run was stopped, goes with the next: in the end a run leaves the same files
        whether it was stopped or not.
        """
        learner, progress = run.learner, run.progress
        path = self.directory / f"step-{progress.step:08d}"
        check_folder(self.directory)
        with beside(path) as draft:
            draft.mkdir()
            native.save_tensors(learner.kept(), run.recipe.model, draft)
            write_tensors(draft / "optimizer.safetensors", learner.state_dict(), {"format": "headway"})
            write_json(draft / "state.json", {"version": _VERSION, **asdict(progress)})
            seal(draft)
        *older, _ = self.all()
        regular = [path for path in older if step_of(path) % interval == 0]
        kept = regular[max(0, len(regular) - keep + 1) :]
        for path in older:
            if path not in kept:
                remove(path)

    def go_back_to(self, path: Path, best: dict[str, Any] | None) -> None:
        """Make the checkpoint at `path`, of this folder or another, the newest one here; `best` is the best evaluation
        that a run has had, later ones included.
        """
        for other in self.all():
            if step_of(other) > step_of(path):
                remove(other)
        with beside(self.directory / path.name) as draft:
            shutil.copytree(path, draft)
            progress = replace(read_progress(path / "state.json", _VERSION), best=best)
            write_json(draft / "state.json", {"version": _VERSION, **asdict(progress)})
            seal(draft)

    def set_aside_damaged(self) -> list[str]:
        """Rename checkpoints that are not as they were written, and say what is wrong with them and where they are now.
        UserError, and nothing is renamed, where none would be left.
        """
        problems = {path: problem for path in self.all() if (problem := _problem(path)) is not None}
        if problems and len(problems) == len(self.all()):
            newest = list(problems.values())[-1]
            raise UserError(f"{newest}, and no whole checkpoint is left; restore one from a copy, or start another run")
        told = []
        for path, problem in problems.items():
            aside = path.with_name(f"damaged-{path.name}")
            remove(aside)
            path.rename(aside)
            told.append(f"{problem}; the run goes on from a checkpoint that is whole, and this one is now {aside}")
        return told

    @torch.no_grad()
    def load_newest(self, run: RunState) -> None:
        """Let `run` go on from the newest checkpoint, where there is one."""
        paths = self.all()
        if not paths:
            return
        path = paths[-1]
        run.progress = read_progress(path / "state.json", _VERSION)
        best, goal = run.progress.best, run.task.goal
        if best is not None and not isinstance(best.get(goal), (int, float)):
            raise UserError(f"{path / 'state.json'} has no {goal} in its best evaluation; restore it from a copy")
        load_weights(run.learner, path)
        remedy = f"remove {path} to resume from the checkpoint before"
        run.learner.load_state_dict(read_tensors(path / "optimizer.safetensors", remedy)[0])

    @torch.no_grad()
    def average_newest(self, run: RunState) -> int:
        """Put the mean of the newest checkpoints' weights into the model of `run`; the number averaged."""
        learner, paths = run.learner, self.all()[-run.recipe.train.average :]
        total = torch.zeros_like(learner.flat.data, dtype=torch.float64)
        for path in paths:
            load_weights(learner, path)
            total += learner.flat.data
        learner.flat.data.copy_(total / len(paths))
        return len(paths)


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint; one without digests, of an earlier version, need only be complete."""
    try:
        if is_sealed(path):
            return next(iter(damage(path)), None)
        read_progress(path / "state.json", _VERSION)
        native.read_model(path / native.FILE)
        read_tensors(path / "optimizer.safetensors", "")
    except UserError as error:
        return str(error).rpartition("; ")[0]
    return None


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


@torch.no_grad()
def load_weights(learner: Learner, directory: Path) -> None:
    """Copy the weights of a checkpoint's model.safetensors into the learner's model."""
    path = directory / native.FILE
    tensors, _ = native.read_model(path)
    places = learner.kept()
    native.check_tensors(places, tensors, path)
    for name, own in places.items():
        own.data.copy_(tensors[name])
