"""A run: its directory and the schemas of its files, its recipe and the trained model."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, TypedDict

import torch
from torch import nn

from headway.config import Range, from_dict
from headway.errors import ConfigError, UserError
from headway.formats import native
from headway.io.durable import DIGESTS_FILE, compute_digests, decode_json, is_running, read_json, remove, write_json
from headway.io.files import open_file
from headway.io.outputs import check_tree, open_run_file, visible_names
from headway.io.summary_card import SummaryCard, main_scores, summary_repr
from headway.learn.recipe import Recipe, check_model, read_recipe
from headway.learn.task import Task
from headway.nn.kernels import is_deterministic

if TYPE_CHECKING:
    from headway.io.lease import Lease

_MAX_SCORE = 1e100  # maximum score; larger ones are mistakes whose squares overflow
_STRING_FIELDS = ("split", "weights", "remark")  # fields that are strings
_REMEDY = "restore it from a copy"
_NOISE_SAMPLES = 3.5  # accuracies that differ by fewer samples are considered equal
_FRACTION_GOALS = ("accuracy", "f1", "recall_at_1", "mean_recall_at_1", "exact_match")  # goals that are fractions


def check_scores(scores: Mapping[str, Any], path: str) -> None:
    """Check scores by name: numbers or None, [low, high] in NAME_interval, and strings in NAME_signature. Raises
    ConfigError for anything else.
    """
    for name, value in scores.items():
        if value is None:
            continue
        if name in _STRING_FIELDS or name.endswith("_signature"):
            is_valid, expected = isinstance(value, str), "a string"
        elif name.endswith("_interval"):
            is_valid = isinstance(value, list) and len(value) == 2 and all(map(_is_score, value))
            expected = "two numbers"
        else:
            is_valid, expected = _is_score(value), "a number"
        if not is_valid:
            text = repr(value)
            raise ConfigError(f"{path}: {name} is {text[:100]}{'...' * (len(text) > 100)}, not {expected}; {_REMEDY}")


def _is_score(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _MAX_SCORE or not math.isfinite(value)


def _check_interval(values: list[float], path: str) -> None:
    if len(values) != 2:
        raise ConfigError(f"{path} has {len(values)} numbers instead of the two ends of an interval; {_REMEDY}")


Count = Annotated[int, Range(0)]
Seconds = Annotated[float, Range(0, 1e12)]


class PredictedLoss(TypedDict):
    """The final loss predicted from an early evaluation."""

    step: Count
    loss: float
    loss_interval: Annotated[list[float], _check_interval]


class ExpectedResult(TypedDict):
    """The test score that was expected before training, with its 80 % interval, and the expected score of a classical
    tool, if one is known.
    """

    metric: str
    minutes: Seconds
    score: float
    interval: Annotated[list[float], _check_interval]
    tool: str | None
    tool_score: float | None


class MetricsLine(TypedDict):
    """A line in metrics.jsonl: the metrics for a step or, with a "split", the scores from an evaluation. The best
    evaluation so far is also stored as such a line.
    """

    step: Count
    split: NotRequired[str]


def check_line(line: Mapping[str, Any], path: str) -> None:
    """Check a step and scores; raise ConfigError for anything else."""
    from_dict(MetricsLine, line, path)
    check_scores(line, path)


class FinalScores(TypedDict, total=False):
    """Scores on the final split, or on part of it if time was short."""

    split: Required[str]
    judged: Count
    judged_of: Count


class Status(TypedDict, total=False):
    """run.json."""

    format: Required[int]
    status: Required[Literal["running", "interrupted", "finished"]]
    recipe: str
    parameters: Required[Count]
    steps: Required[Count]
    step: Required[Count]
    tokens: Required[Count]
    epochs: Annotated[float, Range(0)] | None
    trained: Count | None
    seconds: Required[Seconds]
    elapsed: Seconds | None
    minutes: Seconds | None
    precision: str
    precision_reason: str
    fresh: list[str]
    goal: str
    unit: str
    best: Annotated[dict[str, Any], check_line] | None
    forecast: PredictedLoss | None
    expected: ExpectedResult | None
    data: dict[str, int | str]
    scores: Annotated[FinalScores, check_scores] | None
    samples: list[dict[str, str]]
    remark: str
    refitted: Count  # training and validation samples that the head was finally refitted to
    extended: str  # what was added to the head after training
    judging_seconds: Seconds
    report: str | None
    packages: dict[str, str]
    python: str
    machine: dict[str, str | int | None]
    device: str
    threads: Count
    deterministic: bool
    processes: Count


@dataclass
class Progress:
    """The progress of a run after `step` updates. state.json contains this and a version.

    There is no random number generator state, because dropout is seeded from (seed, step) and the data order is a
    function of the step. `evaluated` is the last step with an evaluation, `stale` the number of evaluations since the
    best one, and `forecast` the predicted final loss.
    """

    step: Count = 0
    tokens: Count = 0
    seconds: Seconds = 0.0
    evaluated: Count = 0
    stale: Count = 0
    best: Annotated[dict[str, Any], check_line] | None = None
    forecast: PredictedLoss | None = None

    def record(self, metrics: dict[str, Any], goal: str, better: Literal["min", "max"]) -> bool:
        """Record an evaluation; return whether it is the best so far.

        If the goal differs by no more than chance (about three validation samples), the smaller loss is better.
        """
        is_best = math.isfinite(metrics[goal])
        if is_best and self.best is not None:
            gain = (metrics[goal] - self.best[goal]) * (1 if better == "max" else -1)
            sample_count = metrics.get("words") or metrics.get("samples")
            tolerance = _NOISE_SAMPLES / sample_count if goal in _FRACTION_GOALS and sample_count else 0.0
            loss, best_loss = metrics.get("loss", math.inf), self.best.get("loss", math.inf)
            is_best = gain > tolerance or (gain >= -tolerance and loss < best_loss)
        if is_best:
            self.best = {"step": self.step, **metrics}
        self.stale = 0 if is_best else self.stale + 1
        self.evaluated = self.step
        return is_best


def read_progress(path: Path, version: int) -> Progress:
    """Read a checkpoint's state. Raises UserError for another version or a damaged file."""
    data = read_json(path)
    found_version = data.pop("version", None) if isinstance(data, dict) else None
    if found_version != version:
        raise ConfigError(
            f"{path} has version {str(found_version)[:50]}, but this headway reads {version}; use the version that "
            "wrote it"
        )
    missing = [field.name for field in fields(Progress) if field.name not in data]
    if missing:
        raise ConfigError(f"{path} has no {missing[0]!r}; {_REMEDY}")
    progress = from_dict(Progress, data, str(path))
    if f"step-{progress.step:08d}" != path.parent.name:
        raise ConfigError(f"{path} is from step {progress.step:,}, but its folder is {path.parent.name}; {_REMEDY}")
    return progress


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines in a metrics.jsonl. An incomplete last line, left by a killed process, is ignored."""
    if not path.is_file():
        return []
    with open_file(path) as file:
        content = file.read()
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        source = f"{path}, line {number}"
        try:
            line = decode_json(text, source)
        except UserError:
            if text.endswith(b"\n"):
                raise
            break
        check_line(line, source)
        lines.append(line)
    return lines


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 1
PRETRAINING = "pretraining"  # folder in a run with the run that pre-trained it
_WITHOUT_DIGESTS = ("checkpoints", "trunk", "data", PRETRAINING, "tensorboard", "wandb")  # excluded from digests
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
        self._lease: Lease | None = None  # while the run is locked
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
        releases the lock when the process ends. Where its locks do nothing, a lease replaces them.

        Folders created for the run are removed if it wrote nothing.
        """
        if self._lock_depth:
            yield
            return
        from headway.io.lease import Lease  # reading a run does not need it

        created = [path for path in (self.path, *self.path.parents) if not os.path.lexists(path)]
        self._lease = lease = Lease(self.path / ".lease")
        with self._open_lock():
            try:
                holder = lease.take(self._is_lock_exclusive)
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written: {error.strerror}; choose another with --run"
                ) from error
            if holder is not None:
                raise self._in_use(holder)
            self._lock_depth = 1
            try:
                yield
            finally:
                self._lock_depth = 0
                lease.release()
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
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read(_MAX_PID_DIGITS).strip()
                file.close()
                raise self._in_use(holder) from None
            except OSError:  # a file system without locks
                pass
            with suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), os.lstat(self._lock)):  # else it was just removed
                    with suppress(OSError):  # a full disk; the id is only for messages
                        file.truncate(0)
                        os.write(file.fileno(), str(os.getpid()).encode())
                    return file
            file.close()

    def _in_use(self, holder: str) -> UserError:
        return UserError(
            f"{self.path} is being trained by another process ({holder}); wait until it ends, or choose another "
            "directory with --run"
        )

    def _is_lock_exclusive(self) -> bool:
        """Whether the lock that this process holds excludes others: locks of some file systems do nothing."""
        if fcntl is None:
            return False
        try:
            with open_run_file(self._lock, update=True) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def trainer(self) -> int | None:
        """The id of the process of this machine that trains the run now; None if there is none."""
        try:
            with open_file(self._lock) as file:
                process = int(file.read(_MAX_PID_DIGITS))
                if not is_running(process):
                    return None
                if fcntl is not None:  # the id may belong to another process since
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return None
        except BlockingIOError:
            return process  # pyright: ignore[reportPossiblyUnboundVariable]
        except (UserError, OSError, ValueError):  # there is no lock, or it is empty
            return None
        return process

    def check_lock(self) -> None:
        """Raise UserError if another process has taken the run over, because this one was paused for long."""
        taker = self._lease.taker() if self._lock_depth and self._lease is not None else None
        if taker is not None:
            raise UserError(
                f"{self.path} was taken over by {taker}, because this process had been paused; this one stops, and the "
                "run continues there"
            )

    def claim(self, resume: bool, finish: bool = False) -> bool:
        """Whether there is a run to continue. Raises UserError for a run without `resume` or in another format, for
        none to `finish`, for a non-empty folder without a run, and for links in the folder, because files elsewhere
        would be changed through them.
        """
        if not self.exists():
            if finish:
                raise UserError(f"{self.path} has no interrupted run to finish; remove --finish")
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
        self.check_lock()
        remove(self.digests)
        write_json(self.status, {"format": FORMAT, **status})
        if status.get("status") != "running":
            write_json(self.digests, compute_digests(self.path, _WITHOUT_DIGESTS))


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
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            processor = next(names, platform.machine())
    except OSError:
        processor = platform.processor() or platform.machine()
    return {
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processor": processor, "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "deterministic": is_deterministic(),
        "processes": world,
    }
