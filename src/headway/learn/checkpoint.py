"""Checkpoints: everything that a run needs to resume bit for bit, in safetensors and JSON.

One process writes model.safetensors and optimizer.safetensors. Processes that share the model's tensors write a file
each, and any number of processes reads either.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from headway.errors import UserError
from headway.formats import native
from headway.formats.stored_tensors import StoredTensors, rank_files
from headway.formats.tensorfile import write_tensors
from headway.io.durable import DIGESTS_FILE, atomic_write, find_damage, is_sealed, remove, seal, write_json
from headway.io.outputs import check_folder
from headway.learn.learner import Learner
from headway.learn.parallel.rows import Rows
from headway.learn.parallel.saving import STATE_PREFIX, is_sharded, save_rows
from headway.learn.run import Progress, read_progress

_VERSION = 1
_STATE = "optimizer.safetensors"
_MAX_NAMED = 3  # damaged files named in a message


class Checkpoints:
    """The folder with a run's checkpoints."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first. UserError if their folder is a link."""
        check_folder(self.directory)
        return sorted(self.directory.glob("step-" + "[0-9]" * 8))

    def clean(self) -> None:
        """Remove incomplete checkpoints left by a killed process."""
        check_folder(self.directory)
        for path in self.directory.glob(".step-*"):
            remove(path)

    def save(self, learner: Learner, progress: Progress, keep: int = 1, interval: int = 1) -> None:
        """Write a checkpoint, and keep the `keep` newest ones whose step is a multiple of `interval`. All processes
        call it; if they share the model's tensors, each writes its own.

        A checkpoint at any other step, left by a stopped run, is removed when the next one is written. So a finished
        run has the same files whether or not it was stopped.
        """
        path, processes = self.directory / f"step-{progress.step:08d}", learner.processes
        config, model, state = learner.recipe.model, learner.saved_tensors(), learner.state_dict()

        def write_progress(draft: Path) -> None:
            write_json(draft / "state.json", {"version": _VERSION, **asdict(progress)})

        if is_sharded(model) or is_sharded(state):
            save_rows(path, model, state, config, processes, write_progress)
        elif processes.is_main:
            check_folder(self.directory)
            with atomic_write(path) as draft:
                draft.mkdir()
                native.save_tensors(model, config, draft)  # type: ignore[arg-type]
                write_tensors(draft / _STATE, state, {"format": "headway"})  # type: ignore[arg-type]
                write_progress(draft)
                seal(draft)
        if not processes.is_main:
            return
        *earlier, _ = self.all()
        regular = [path for path in earlier if step_of(path) % interval == 0]
        remaining = regular[max(0, len(regular) - keep + 1) :]
        for path in earlier:
            if path not in remaining:
                remove(path)

    def go_back_to(self, path: Path, best: dict[str, Any] | None) -> None:
        """Make the checkpoint at `path`, in this folder or another, the newest one here. `best` is the run's best
        evaluation, including evaluations after that checkpoint.
        """
        for other in self.all():
            if step_of(other) > step_of(path):
                remove(other)
        with atomic_write(self.directory / path.name) as draft:
            shutil.copytree(path, draft)
            progress = replace(read_progress(path / "state.json", _VERSION), best=best)
            write_json(draft / "state.json", {"version": _VERSION, **asdict(progress)})
            seal(draft)

    def set_aside_damaged(self) -> list[str]:
        """Rename damaged checkpoints and return a message for each, with the damage and the new path. If no intact
        checkpoint would be left, raise UserError without renaming any.
        """
        problems: dict[Path, str] = {}
        for path in self.all():
            try:
                if is_sealed(path):
                    damage = find_damage(path)
                    if damage:
                        problems[path] = ", ".join(damage[:_MAX_NAMED]) + ", ..." * (len(damage) > _MAX_NAMED)
                elif rank_files(path):
                    problems[path] = f"{path / DIGESTS_FILE} is missing"
                else:  # a checkpoint from an earlier version, without digests, only needs to be complete
                    read_progress(path / "state.json", _VERSION)
                    native.read_model(path / native.FILE)
                    StoredTensors.open(path / _STATE, STATE_PREFIX, "")
            except UserError as error:
                problems[path] = str(error).rpartition("; ")[0]
        if problems and len(problems) == len(self.all()):
            newest = list(problems.values())[-1]
            raise UserError(f"{newest}, and no intact checkpoint is left; restore one from a copy, or start a new run")
        messages = []
        for path, problem in problems.items():
            new_path = path.with_name(f"damaged-{path.name}")
            remove(new_path)
            path.rename(new_path)
            messages.append(
                f"{problem}; the run resumes from an intact checkpoint, and this one was renamed to {new_path}"
            )
        return messages

    @torch.no_grad()
    def load_newest(self, learner: Learner, goal: str) -> Progress | None:
        """Load the newest checkpoint into `learner` and return its progress; None if there is no checkpoint. The best
        evaluation must have a score `goal`.
        """
        processes = learner.processes
        newest = processes.broadcast_object(self.all()[-1].name if processes.is_main and self.all() else None)
        if newest is None:
            return None
        path, loaded = self.directory / newest, list[Progress]()

        def load() -> None:
            progress = read_progress(path / "state.json", _VERSION)
            best = progress.best
            if best is not None and not isinstance(best.get(goal), (int, float)):
                raise UserError(f"the best evaluation in {path / 'state.json'} has no {goal}; restore it from a copy")
            load_weights(learner, path)
            remedy = f"remove {path} to resume from the previous checkpoint"
            learner.load_state_dict(StoredTensors.open(path / _STATE, STATE_PREFIX, remedy))
            loaded.append(progress)

        processes.run_all(load)
        return loaded[0]

    @torch.no_grad()
    def average_newest(self, learner: Learner, count: int) -> int:
        """Load the mean of the weights in the `count` newest checkpoints into the learner's model; return the number of
        checkpoints, which the main process names once it has written them.
        """
        names = [path.name for path in self.all()[-count:]] if learner.processes.is_main else None
        paths = [self.directory / name for name in learner.processes.broadcast_object(names)]
        total = torch.zeros_like(learner.flat.data, dtype=torch.float64)
        for path in paths:
            load_weights(learner, path)
            total += learner.flat.data
        learner.flat.data.copy_(total / len(paths))
        return len(paths)


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


@torch.no_grad()
def load_weights(learner: Learner, directory: Path) -> None:
    """Load the weights of a checkpoint into the learner's model, of each tensor the rows that this process has."""
    stored, _ = native.read_model(directory / native.FILE)
    model_tensors = learner.saved_tensors()
    native.check_tensors(model_tensors, stored.tensors, Path(stored.source))
    for name, tensor in model_tensors.items():
        rows = tensor if isinstance(tensor, Rows) else Rows(tensor.data, 0, tensor.shape)
        stored.copy(name, rows.local, rows.start)
