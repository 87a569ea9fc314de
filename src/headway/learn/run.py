"""A run: the directory in which a model is trained, its figures, and what is in it afterwards."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import nn

from headway.card import Card, figures, shows
from headway.errors import UserError, nearest
from headway.formats import native
from headway.formats.digests import FILE as DIGESTS
from headway.formats.digests import digests
from headway.formats.durable import read_json, remove, write_json, write_text
from headway.learn.recipe import Recipe, read_recipe
from headway.learn.task import Task
from headway.nn.kernels import is_deterministic
from headway.parsing import DuplicateKeyError, parse_json

# Names the loggers to use beside metrics.jsonl: HEADWAY_LOG=tensorboard,wandb
VARIABLE = "HEADWAY_LOG"


class Logger(Protocol):
    """Takes a line of figures; `step` is always among them."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: a JSON object a line, for logged steps and evaluations. Numbers that are not finite are null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)  # by line, for who follows it

    def write(self, line: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(finite, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} could not be written: {error.strerror}; free space, then resume") from error

    def sync(self) -> None:
        """Make sure that all lines so far outlive a crash."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what a full disk did not take was told when it was written
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    return list(_lines(path)) if path.is_file() else []


def truncate_metrics(path: Path, step: int, evaluated: int) -> None:
    """Drop what will be written again: lines after `step`, evaluations after `evaluated` and of a mean at the end."""

    def stays(line: dict[str, Any]) -> bool:
        if "split" not in line:
            return line["step"] <= step
        return line["step"] <= evaluated and not str(line.get("weights")).startswith("mean of")

    kept = filter(stays, read_metrics(path))
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                yield parse_json(text)
            except DuplicateKeyError as error:
                raise UserError(f"{path} has {error}; keep one of them") from error
            except json.JSONDecodeError:
                return


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def write(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run named as the directory; its own environment variables hold project and key."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(dir=str(directory), name=directory.name, config=settings, resume="allow")

    def write(self, line: dict[str, Any]) -> None:
        self._run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def close(self) -> None:
        self._run.finish()


_LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB}


def check_loggers() -> list[str]:
    """The names in HEADWAY_LOG; UserError for one that is unknown or not installed."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in _LOGGERS:
            raise UserError(f"{VARIABLE} names {name!r}; {nearest(name, _LOGGERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{VARIABLE} asks for {name}, which is not installed; pip install 'headway[logging]'")
    return names


def open_loggers(directory: Path, settings: dict[str, Any]) -> list[Logger]:
    """The loggers named in HEADWAY_LOG, for a run of these settings."""
    return [_LOGGERS[name](directory, settings) for name in check_loggers()]


FORMAT = 1
_APART = ("checkpoints", "trunk", "data", "tensorboard", "wandb")  # folders that the digests of a run say nothing of
_PACKAGES = ("headway", "torch", "numpy", "safetensors", "tokenizers")


@shows
@dataclass
class Run:
    """A trained model and how it came about: its recipe, its task (None for a run that was opened again), the lines of
    metrics.jsonl as `metrics`, and run.json as `summary`, with the test scores under "scores".
    """

    directory: Path
    recipe: Recipe
    model: nn.Module
    task: Task | None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def card(self) -> Card:
        """What it is, how good it became, and where its page lies."""
        judged = self.summary.get("scores") or {}
        return Card(
            f"Run {self.directory}",
            {
                "recipe": self.recipe.name,
                "parameters": self.summary.get("parameters"),
                "steps": self.summary.get("step"),
                "seconds": self.summary.get("seconds"),
                "judged by": judged.get("split"),
                **figures(judged),
            },
            link=self.summary.get("report"),
        )


class RunDirectory:
    """Where the files of a run lie."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory)
        self.recipe = self.path / "recipe.json"
        self.model = self.path / native.FILE
        self.quantised = self.path / native.QUANTISED
        self.metrics = self.path / "metrics.jsonl"
        self.base = self.path / "base"  # the weights under an adapter
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self.trunk = self.path / "trunk"  # the checkpoint from which a longer run goes on
        self.status = self.path / "run.json"
        self.digests = self.path / DIGESTS  # of a run that has come to rest
        self._lock = self.path / ".lock"
        self._holders = 0

    def exists(self) -> bool:
        """Whether there is a run here."""
        return self.status.exists()

    def create(self) -> None:
        """Make the directory; UserError where that cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made: {error.strerror}; choose another with --run") from error

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep other processes out; UserError where one is at this run. The system ends it when the process dies.

        A folder in which nothing came of it is removed.
        """
        if self._holders:
            yield
            return
        with self._hold():
            self._holders = 1
            try:
                yield
            finally:
                self._holders = 0
                if not self.exists():
                    self._lock.unlink(missing_ok=True)
                    with suppress(OSError):  # something else is there
                        self.path.rmdir()

    def _hold(self) -> IO[str]:
        """The file that is locked as long as it is open."""
        while True:
            self.create()
            try:
                file = self._lock.open("a+")
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written: {error.strerror}; choose another with --run"
                ) from error
            if not _locked(file):
                file.seek(0)
                holder = file.read(20).strip()
                file.close()
                raise UserError(
                    f"{self.path} is being trained by another process ({holder}); wait for its end, or choose another "
                    "directory with --run"
                )
            with suppress(OSError):
                if os.fstat(file.fileno()).st_ino == self._lock.stat().st_ino:  # else its folder was removed meanwhile
                    file.truncate(0)
                    file.write(str(os.getpid()))
                    file.flush()
                    return file
            file.close()

    def claim(self, resume: bool) -> bool:
        """Whether a run is here to go on with. UserError for one that was not asked for, or of another format."""
        if not self.exists():
            if next(self.checkpoints.glob("step-*"), None) is not None:
                raise UserError(
                    f"{self.path} holds checkpoints of a run that has lost its {self.status.name}; restore that, or "
                    "choose another directory with --run"
                )
            return False
        status = self.read_status()
        if not resume:
            raise UserError(
                f"{self.path} already holds a run ({status.get('status')}); "
                "resume it with --resume, or choose another directory with --run"
            )
        return True

    def read_status(self) -> dict[str, Any]:
        """run.json, after a check of its format."""
        status = read_json(self.status)
        found = status.get("format") if isinstance(status, dict) else None
        if found != FORMAT:
            raise UserError(
                f"{self.path} is a run of format {found}, this headway reads {FORMAT}; "
                "use the version that wrote it, or choose another directory"
            )
        return status

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace run.json, and write digests of the run if it is at rest."""
        remove(self.digests)
        write_json(self.status, {"format": FORMAT, **status})
        if status.get("status") != "running":
            write_json(self.digests, digests(self.path, _APART))


def _locked(file: IO[str]) -> bool:
    """Take the lock of a file; True also where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def claim(directory: Path, resume: bool) -> bool:
    """Check a run directory before any work; see RunDirectory.claim. To be called before a task is opened in it."""
    return RunDirectory(directory).claim(resume)


def free_directory(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    directory, count = wanted, 1
    while directory.exists():
        count += 1
        directory = wanted.with_name(f"{wanted.name}-{count}")
    return directory


def open_run(directory: Path, device: torch.device | str = "cpu") -> Run:
    """A run's best model, recipe, metrics and summary; its task, which needs data, is None."""
    from headway.learn.run import read_metrics  # and what writes them

    place = RunDirectory(directory)
    if not place.exists():
        raise UserError(f"{place.path} holds no run (no run.json); give the directory of a `headway train`")
    recipe, summary = open_recipe(directory), place.read_status()
    model = native.load_model(place.path, device)
    return Run(place.path, recipe, model, None, read_metrics(place.metrics), summary)


def open_recipe(directory: Path) -> Recipe:
    """The recipe of a run that has a model. Raises UserError for one that has none yet, or of another format."""
    place = RunDirectory(directory)
    summary = place.read_status()
    if not (place.model.exists() or place.quantised.exists()):
        raise UserError(f"{place.path} has no model yet ({summary.get('status')}); resume it with --resume")
    return read_recipe(place.recipe)


def environment(device: torch.device, world: int) -> dict[str, Any]:
    """What the figures of a run depend on beside its recipe."""
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
