"""A run: its directory, its recipe and the trained model."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from headway.config import from_dict
from headway.errors import UserError
from headway.formats import native
from headway.io.durable import DIGESTS_FILE, compute_digests, read_json, remove, write_json
from headway.io.files import open_file
from headway.io.outputs import check_tree, open_run_file, visible_names
from headway.io.summary_card import SummaryCard, main_scores, summary_repr
from headway.learn.recipe import Recipe, check_model, read_recipe
from headway.learn.run_schemas import Status, read_metrics
from headway.learn.task import Task
from headway.nn.kernels import is_deterministic

FORMAT = 1
_WITHOUT_DIGESTS = ("checkpoints", "trunk", "data", "tensorboard", "wandb")  # folders excluded from a run's digests
_MAX_PID_DIGITS = 20  # maximum digits in a process id
_PACKAGES = ("headway", "torch", "numpy", "safetensors", "tokenizers")


@summary_repr
@dataclass
class Run:
    """A trained model with its recipe, its task (None for a run that was opened from disk), the lines of metrics.jsonl
    as `metrics`, and run.json as `summary`, with the test scores under "scores".
    """

    directory: Path
    recipe: Recipe
    model: nn.Module
    task: Task | None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def card(self) -> SummaryCard:
        """Settings, scores and the report's path."""
        scores = self.summary.get("scores") or {}
        return SummaryCard(
            f"Run {self.directory}",
            {
                "recipe": self.recipe.name,
                "parameters": self.summary.get("parameters"),
                "steps": self.summary.get("step"),
                "seconds": self.summary.get("seconds"),
                "evaluated on": scores.get("split"),
                **main_scores(scores),
            },
            link=self.summary.get("report"),
        )


class RunDirectory:
    """A run's file paths, lock and status."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory)
        self.recipe = self.path / "recipe.json"
        self.model = self.path / native.FILE
        self.quantised = self.path / native.QUANTISED
        self.metrics = self.path / "metrics.jsonl"
        self.base = self.path / "base"  # the weights under an adapter
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self.pre_decay = self.path / "trunk"  # the checkpoint before the decay, from which an extended run continues
        self.status = self.path / "run.json"
        self.digests = self.path / DIGESTS_FILE  # exists only while no process trains the run
        self._lock = self.path / ".lock"
        self._lock_depth = 0

    def exists(self) -> bool:
        """Whether the directory contains a run."""
        return self.status.exists()

    def create(self) -> None:
        """Create the directory; raise UserError if that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be created: {error.strerror}; choose another with --run") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run; raise UserError if another process has locked it or the folder has other content. The system
        releases the lock when the process ends.

        Folders created for the run are removed if it wrote nothing.
        """
        if self._lock_depth:
            yield
            return
        created = [path for path in (self.path, *self.path.parents) if not os.path.lexists(path)]
        with self._open_lock():
            self._lock_depth = 1
            try:
                yield
            finally:
                self._lock_depth = 0
                # Next to other files, the lock shows that they belong to a run.
                if not self.exists() and not visible_names(self.path):
                    self._lock.unlink(missing_ok=True)
                    with suppress(OSError):  # the folder is not empty
                        for path in created:
                            path.rmdir()

    def _open_lock(self) -> IO[str]:
        """The lock file, which is locked while it is open."""
        while True:
            if not self.exists():
                self._check_usable()
            self.create()
            try:
                file = open_run_file(self._lock, update=True)
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written: {error.strerror}; choose another with --run"
                ) from error
            if not _acquire_lock(file):
                file.seek(0)
                holder = file.read(_MAX_PID_DIGITS).strip()
                file.close()
                raise UserError(
                    f"{self.path} is being trained by another process ({holder}); wait until it ends, or choose "
                    "another directory with --run"
                )
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), os.lstat(self._lock)):  # else it was just removed
                    file.truncate(0)
                    file.write(str(os.getpid()))
                    file.flush()
                    return file
            file.close()

    def claim(self, resume: bool) -> bool:
        """Whether there is a run to continue. Raises UserError for a run without `resume` or in another format, for a
        non-empty folder without a run, and for links in the folder, because files elsewhere would be changed through
        them.
        """
        if not self.exists():
            self._check_usable()
            check_tree(self.path)
            return False
        status = self.read_status()
        if not resume:
            raise UserError(
                f"{self.path} already contains a run ({status.get('status')}); "
                "resume it with --resume, or choose another directory with --run"
            )
        check_tree(self.path)
        return True

    def _check_usable(self) -> None:
        """Raise UserError for a folder that contains anything but the remains of a run killed at its start."""
        names = visible_names(self.path)
        if not names:
            return
        if next(self.checkpoints.glob("step-*"), None) is not None:
            raise UserError(
                f"{self.path} has checkpoints from a run whose {self.status.name} is missing; restore that file, or "
                "choose another directory with --run"
            )
        try:
            with open_file(self._lock) as file:
                was_started = (
                    file.read(_MAX_PID_DIGITS).isdigit() and next(self.path.glob("*.safetensors"), None) is None
                )
        except UserError:  # there is no lock file
            was_started = False
        if not was_started:
            raise UserError(
                f"{self.path} is not empty and does not contain a run ({names}), so its files could be overwritten; "
                "choose another directory with --run"
            )

    def read_status(self) -> dict[str, Any]:
        """Read run.json and check its format."""
        status = read_json(self.status)
        version = status.get("format") if isinstance(status, dict) else None
        if version != FORMAT:
            raise UserError(
                f"{self.path} is a run in format {str(version)[:50]}, but this version of headway reads {FORMAT}; "
                "use the version that wrote it, or choose another directory"
            )
        return dict(from_dict(Status, status, str(self.status)))

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace run.json, and write the run's digests if it is not being trained."""
        remove(self.digests)
        write_json(self.status, {"format": FORMAT, **status})
        if status.get("status") != "running":
            write_json(self.digests, compute_digests(self.path, _WITHOUT_DIGESTS))


def _acquire_lock(file: IO[str]) -> bool:
    """Lock a file; also True on systems without locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def free_directory(directory: Path) -> Path:
    """`directory`, or the first of `directory-2`, `directory-3`, ... that does not exist."""
    candidate, count = directory, 1
    while candidate.exists():
        count += 1
        candidate = directory.with_name(f"{directory.name}-{count}")
    return candidate


def open_run(directory: Path, device: torch.device | str = "cpu") -> Run:
    """A run's best model, recipe, metrics and summary; its task, which needs data, is None."""
    run_directory = RunDirectory(directory)
    if not run_directory.exists():
        raise UserError(
            f"{run_directory.path} does not contain a run (no run.json); use a directory that `headway train` wrote"
        )
    recipe, summary = open_recipe(directory), run_directory.read_status()
    model = native.load_model(run_directory.path, device)
    check_model(recipe, model.config, directory)  # type: ignore[arg-type]
    return Run(run_directory.path, recipe, model, None, read_metrics(run_directory.metrics), summary)


def open_recipe(directory: Path) -> Recipe:
    """A run's recipe. Raises UserError for a run that has no model yet or is in another format."""
    run_directory = RunDirectory(directory)
    summary = run_directory.read_status()
    if not (run_directory.model.exists() or run_directory.quantised.exists()):
        raise UserError(f"{run_directory.path} has no model yet ({summary.get('status')}); resume it with --resume")
    return read_recipe(run_directory.recipe)


def environment(device: torch.device, world: int) -> dict[str, Any]:
    """What a run's results depend on besides its recipe."""
    return {
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "deterministic": is_deterministic(),
        "processes": world,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
