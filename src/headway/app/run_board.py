"""The board of runs: the runs of a folder with their states, curves and settings. Only changed files are read again."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from headway.app.jobs import FOLDER as JOBS_FOLDER
from headway.app.jobs import Job, is_name, read_job, signal_process, start_job, stop_job
from headway.app.run_points import RunPoints, read_points, short
from headway.app.run_rows import FileState, RunEntry, RunRow, RunState, file_state, read_run
from headway.errors import UserError
from headway.io.durable import remove
from headway.io.lease import exclusive_lock, holder
from headway.io.outputs import check_folder
from headway.learn.run import RunDirectory

EXPORTS = "exports"  # folder of exported models, next to the runs
TRASH = ".trash"
TRASH_SECONDS = 86_400  # seconds for which a deleted run can be restored
_SCAN_SECONDS = 10.0  # seconds between two looks at a few runs that nobody trains,
_MANY_RUNS = 300  # and twice as many for this number of runs: a look at 1,000 takes 20 ms
_EMPTY_SECONDS = 3600.0  # seconds between two looks at the trash
_MAX_INNER = 1000  # entries of a folder of runs in the folder of runs that are looked at
_MAX_EXPORT_NAME = 200  # bytes of a run's name in the name of its export
_MAX_REASON = 500  # characters
_HEADWAY = (sys.executable, "-m", "headway")
EXPORT_SUFFIX = " (export)"  # end of the names of jobs that export


@dataclass(frozen=True)
class DeletedRun:
    """A run in the trash, deleted at `time`, in seconds since 1970."""

    name: str
    time: float


class RunChanges(NamedTuple):
    """The runs that changed since a version, or all of them. `version` is that of this list."""

    version: str
    is_complete: bool
    runs: list[RunRow]
    removed: list[str]
    deleted: list[DeletedRun]


class UnknownRunError(UserError):
    """There is no run of this name."""


class RunBoard:
    """The runs in a folder. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, RunEntry] = {}
        self._removed: dict[str, int] = {}  # version in which a run vanished
        self._stopping: set[str] = set()  # runs that were asked to stop and have not stopped yet
        self._jobs: dict[str, tuple[Any, Job | None]] = {}  # by file name, with the states of their files
        self._version, self._epoch = 0, f"{time.time_ns():x}"
        self._next_scan = self._next_emptying = 0.0
        self._folder_states: tuple[FileState, ...] = ()
        self._deleted: list[DeletedRun] = []
        self._lock = threading.Lock()

    def changes(self, since: str = "") -> RunChanges:
        """The runs that changed since a version that was returned before; all of them for "" or another server's."""
        with self._lock:
            self._refresh()
            epoch, _, number = since.partition("-")
            is_known = epoch == self._epoch and number.isdecimal() and len(number) < 20
            start = int(number) if is_known else -1
            rows = [entry.row for entry in self._entries.values() if entry.row is not None and entry.version > start]
            removed = [name for name, version in self._removed.items() if is_known and version > start]
            version = f"{self._epoch}-{self._version}"
            return RunChanges(version, not is_known, rows, removed, self._deleted)

    def row(self, name: str) -> RunRow:
        """A run as it is now. UserError for an unknown name."""
        with self._lock:
            if name not in self._entries:
                self._next_scan = 0.0
                self._refresh()
            entry = self._entries.get(name)
            if entry is not None:
                self._refresh_run(name, self._refresh_jobs(False), is_exact=True)
            if entry is None or entry.row is None:
                raise UnknownRunError(f"there is no run {short(name)!r}; it may have been deleted or renamed")
            return entry.row

    def path(self, name: str) -> Path:
        """The folder of a run. UserError for an unknown name, and so for a path."""
        self.row(name)
        return self.folder / name

    def points(self, name: str, after: str = "") -> RunPoints:
        """The lines of a run's metrics.jsonl after a position that was returned before."""
        return read_points(self.path(name) / "metrics.jsonl", after)

    def stop(self, name: str) -> RunState:
        """Ask the process that trains a run to stop after its step, with a checkpoint; return the run's previous state.
        UserError if no process trains it.
        """
        row = self.row(name)
        if row.state not in ("running", "starting"):
            raise UserError(f"{short(name)} is not being trained")
        trainer = holder(self.folder / name / ".lease")
        if trainer is None:
            stop_job(self.folder, _job_names(name)[0])
        elif trainer.began is None or not signal_process(trainer.process, trainer.began):
            raise UserError(f"{short(name)} is trained by {trainer.description}; stop it there")
        with self._lock:
            self._stopping.add(name)
        return row.state

    def resume(self, name: str, minutes: float | None = None, finish: bool = False) -> None:
        """Continue a run in a process of its own: to its planned end, for more `minutes`, or to an early `finish`."""
        path = self._idle_path(name)
        summary = RunDirectory(path).read_status()
        words = [*_HEADWAY, "train", str(path / "recipe.json"), "--run", str(path), "--resume"]
        words += ["--finish"] if finish else [] if minutes is None else ["--minutes", f"{minutes:g}"]
        words += ["--deterministic"] if summary.get("deterministic") else []
        words += ["--device", "cpu"] if summary.get("device") == "cpu" else []
        threads, processes = summary.get("threads"), summary.get("processes") or 1
        words += ["--threads", str(threads)] if threads and threads <= (os.cpu_count() or 1) else []
        words += ["--processes", str(processes)] if processes > 1 else []
        start_job(self.folder, _job_names(name)[0], words)
        with self._lock:
            self._refresh_jobs(True)

    def export(self, name: str, target_format: Literal["hf", "gguf", "onnx"]) -> Path:
        """Start the conversion of a run's model in a process of its own; return the path of the output."""
        path, exports = self._idle_path(name), self.folder / EXPORTS
        check_folder(exports)
        suffix = "" if target_format == "hf" else f".{target_format}"
        start = name.replace("/", "-").encode()[:_MAX_EXPORT_NAME].decode(errors="ignore")
        names = (f"{start}{number}{suffix}" for number in ("", *(f"-{count}" for count in range(2, 1000))))
        target = exports / next(name for name in names if not os.path.lexists(exports / name))
        command = [*_HEADWAY, "export", str(path), str(target), "--format", target_format]
        start_job(self.folder, _job_names(name)[1], command)
        return target

    def _idle_path(self, name: str) -> Path:
        """The folder of a run that nobody trains; UserError for any other."""
        row = self.row(name)
        if row.state not in ("stopped", "finished"):
            state = "being trained; stop it first" if row.state != "broken" else f"broken: {row.reason}"
            raise UserError(f"{short(name)} is {state}")
        return self.folder / name

    def delete(self, name: str) -> bool:
        """Move a run to the trash, and remove what its jobs left; return whether it can be restored: of a link only the
        link is removed, and a start that failed has no folder. UserError while it is being trained or exported.
        """
        row, path, trash, jobs = self.row(name), self.folder / name, self.folder / TRASH, self.folder / JOBS_FOLDER
        training, export = (read_job(jobs / f"{job}.json") for job in _job_names(name))
        if row.state in ("running", "starting") or (training is not None and training.state == "running"):
            raise UserError(f"{short(name)} is being trained; stop it first")
        if export is not None and export.state == "running":
            raise UserError(f"{short(name)} is being exported; delete it when the export has ended")
        moments = itertools.count(int(time.time()))  # two runs of one name may be deleted in a second
        targets = (trash / _trash_name(moment, name) for moment in moments)
        target = next(path for path in targets if not os.path.lexists(path))
        try:
            check_folder(trash)
            trash.mkdir(exist_ok=True)
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                # The lock keeps a training from starting now; a folder without run.json cannot be locked.
                with RunDirectory(path).locked() if (path / "run.json").exists() else nullcontext():
                    os.rename(path, target)
                (target / ".lease").unlink(missing_ok=True)
            for job, end in itertools.product(_job_names(name), (".json", ".log", ".lock")):
                (jobs / f"{job}{end}").unlink(missing_ok=True)
                with self._lock:
                    self._jobs.pop(f"{job}{end}", None)
        except OSError as error:
            raise UserError(f"{short(name)} cannot be deleted: {error.strerror}; try again") from error
        return target.is_dir()

    def restore(self, name: str) -> None:
        """Take the run of this name that was deleted last out of the trash."""
        with self._trash() as entries:
            found = max((entry for entry in entries if entry[1] == name), default=None)
            if found is None:
                raise UserError(f"{short(name)!r} is not in the trash; runs are kept there for a day")
            if os.path.lexists(self.folder / name):
                raise UserError(f"there is another run {short(name)!r} now; delete or rename it first")
            try:
                (self.folder / name).parent.mkdir(exist_ok=True)  # the last run of a folder of runs was deleted
                os.rename(self.folder / TRASH / _trash_name(*found), self.folder / name)
            except OSError as error:
                raise UserError(f"{short(name)} cannot be restored: {error.strerror}; try again") from error

    def empty_trash(self) -> None:
        """Remove the runs that were deleted more than a day ago, unless a run is being trained or another program does
        this now.
        """
        rows = [entry.row for entry in list(self._entries.values()) if entry.row is not None]
        if not any(row.state in ("running", "starting") for row in rows):
            with suppress(UserError, OSError), self._trash() as entries:
                for moment, name in entries:
                    if time.time() - moment > TRASH_SECONDS:
                        remove(self.folder / TRASH / _trash_name(moment, name))

    @contextmanager
    def _trash(self) -> Iterator[list[tuple[int, str]]]:
        """The times and names of deleted runs, while no other program changes them."""
        trash = self.folder / TRASH
        check_folder(trash)
        if not trash.is_dir():
            yield []
            return
        with exclusive_lock(trash / ".lock", "the trash is being emptied; try again in a minute"):
            yield _trash_entries(trash)

    def _refresh(self) -> None:
        now = time.monotonic()
        states = tuple(file_state(self.folder / name) for name in ("", JOBS_FOLDER, TRASH))
        is_scan = now >= self._next_scan or states != self._folder_states
        if is_scan:
            self._next_scan = now + _SCAN_SECONDS * (1 + len(self._entries) / _MANY_RUNS)
            self._folder_states = states
            self._deleted = [DeletedRun(name, float(moment)) for moment, name in _trash_entries(self.folder / TRASH)]
        jobs = self._refresh_jobs(is_scan)
        names = self._names(jobs) if is_scan else ()
        for name in self._entries.keys() - dict.fromkeys(names) if is_scan else ():
            entry = self._entries.pop(name)
            if entry.row is not None:
                self._version += 1
                self._removed[name] = self._version
        for name in names if is_scan else self._followed():
            self._refresh_run(name, jobs)
        if now >= self._next_emptying:
            self._next_emptying = now + _EMPTY_SECONDS
            threading.Thread(target=self.empty_trash, daemon=True, name="trash").start()

    def _followed(self) -> list[str]:
        """The runs that may have changed since the last scan: those that train, and those whose jobs have changed."""
        rows, changed = [(name, entry.row) for name, entry in self._entries.items()], self._changed_jobs
        return [
            name
            for name, row in rows
            if row is None
            or row.state in ("running", "starting")
            or (changed and not changed.isdisjoint(_job_names(name)))
        ]

    def _names(self, jobs: Mapping[str, Job]) -> list[str]:
        """The folders in the folder of runs, the runs in folders without a run of their own, and the trainings that
        have no folder yet or failed before.
        """
        names = []
        for job in jobs.values():
            words = itertools.dropwhile(lambda word: word != "--run", job.command)
            name = Path(next(itertools.islice(words, 1, None), job.name)).name
            if "train" in job.command and _job_names(name)[0] == job.name:  # others are runs in folders of runs
                names.append(name)
        try:
            with os.scandir(self.folder) as entries:
                folders = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
            names += [entry.name for entry in folders]
            for entry in folders:
                if entry.name != EXPORTS and not entry.is_symlink():
                    names += _inner_runs(Path(entry.path))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"the folder of runs cannot be read ({error.strerror}); correct its permissions") from error
        return [name for name in dict.fromkeys(names) if name == name.encode(errors="replace").decode()]

    def _refresh_jobs(self, is_scan: bool) -> dict[str, Job]:
        """The jobs by name; those whose files have changed are read again."""
        folder, self._changed_jobs = self.folder / JOBS_FOLDER, set[str]()
        names = [name for name, (_, job) in self._jobs.items() if job is not None and job.state == "running"]
        if is_scan:
            with suppress(OSError):
                names = [name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith(".")]
            for name in self._jobs.keys() - dict.fromkeys(names):
                del self._jobs[name]
        for name in names:
            states = file_state(folder / name), file_state(folder / f"{name[:-5]}.log")
            known = self._jobs.get(name)
            if known is None or known[0] != states or (known[1] is not None and known[1].state == "running"):
                job = read_job(folder / name)
                self._jobs[name] = states, job
                if known is None or known[1] != job:
                    self._changed_jobs.add(name[:-5])
        return {job.name: job for _, job in self._jobs.values() if job is not None}

    def _without_folder(self, message: str) -> str:
        return message.replace(f"{self.folder}{os.sep}", "")[:_MAX_REASON]

    def _refresh_run(self, name: str, jobs: Mapping[str, Job], is_exact: bool = False) -> None:
        path, (job, export) = self.folder / name, map(jobs.get, _job_names(name))
        entry = self._entries.setdefault(name, RunEntry())
        # A run's files are replaced, which changes its folder. While it trains, metrics.jsonl grows. A lease may stay
        # when its process is killed.
        key = (file_state(path), file_state(path / "run.json") if is_exact else None, job, export)
        is_live = entry.row is not None and entry.row.state in ("running", "starting")
        if key == entry.states and not is_live:
            return
        entry.states = key
        row = read_run(path, name, entry, job)
        if row is not None:
            row = replace(row, reason=self._without_folder(row.reason))
        if row is None or row.state not in ("running", "starting"):
            self._stopping.discard(name)
        elif name in self._stopping:
            row = replace(row, stage="stopping")
        if row is not None and export is not None:
            target = next((word for word in export.command if Path(word).parent == self.folder / EXPORTS), None)
            message = self._without_folder(export.message)
            row = replace(row, export=export.state, export_message=message, export_path=target)
        if row != entry.row:
            self._version += 1
            if row is None:
                self._removed[name] = self._version
            else:
                self._removed.pop(name, None)
            entry.row, entry.version = row, self._version


@lru_cache(maxsize=4096)
def _job_names(name: str) -> tuple[str, str]:
    """The names of the jobs that train and export a run: its own name, or its start and a hash where a job may not have
    the name.
    """
    start = re.sub(r"[^\w.-]", "-", name)[:40]
    short_name = f"{start}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
    training, export = (name if is_name(name + end) else short_name for end in ("", EXPORT_SUFFIX))
    return training, export + EXPORT_SUFFIX


def _inner_runs(folder: Path) -> list[str]:
    """The names of runs in a folder that is not a run itself, such as that of a comparison. OSError if it cannot be
    read.
    """
    if any(file_state(folder / name) is not None for name in ("run.json", "recipe.json")):
        return []
    with suppress(PermissionError, FileNotFoundError), os.scandir(folder) as entries:
        inner = [entry for entry in itertools.islice(entries, _MAX_INNER) if not entry.name.startswith(".")]
        return [
            f"{folder.name}/{entry.name}" for entry in inner if file_state(Path(entry.path, "run.json")) is not None
        ]
    return []


def settings(recipe: Any) -> dict[str, str]:
    """The settings of a recipe.json by their paths, such as model.width; equal blocks of a model are stated once."""
    flat: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                visit(item, f"{path}.{short(str(name))}" if path else short(str(name)))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            is_same = all(item == value[0] for item in value)
            flat[f"{path}.count"] = str(len(value))
            for number, item in enumerate(value[:1] if is_same else value):
                visit(item, path if is_same else f"{path}.{number}")
        else:
            flat[path] = short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    visit({name: value for name, value in recipe.items() if name != "reasons"} if isinstance(recipe, dict) else {}, "")
    return flat


def _trash_entries(trash: Path) -> list[tuple[int, str]]:
    found = []
    with suppress(OSError):
        for entry in sorted(os.listdir(trash)):
            moment, _, name = entry.partition("-")
            if moment.isdecimal() and len(moment) < 12 and name:
                found.append((int(moment), name.replace("%2F", "/").replace("%25", "%")))
    return found


def _trash_name(moment: int, name: str) -> str:
    """The name in the trash of a run that was deleted at this moment, in seconds since 1970."""
    return f"{moment}-{name.replace('%', '%25').replace('/', '%2F')}"
