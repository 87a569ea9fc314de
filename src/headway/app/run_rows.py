"""A run in the list of runs: its row, read from its files and from the job that trains it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from headway.app.jobs import Job
from headway.app.run_points import count, finite, position_at_tail, read_points, short
from headway.errors import UserError
from headway.io.durable import read_json
from headway.io.lease import holder
from headway.learn.metric_names import LOWER_IS_BETTER, format_metric, title
from headway.learn.run import FORMAT, RunDirectory

RunState = Literal["starting", "running", "stopped", "finished", "broken"]
Stage = Literal["reading", "continuing", "training", "checking", "stopping"]
_FILES = ("run.json", "recipe.json", ".lease", "metrics.jsonl", "report.html", "model.safetensors")
_STOPPED = re.compile(r"stopped at step [\d,]+ of ")  # the last line of a run that was asked to stop
FileState = tuple[int, int, int, int] | None


@dataclass(frozen=True)
class RunRow:
    """A run in a list. `reason` explains in one line who trains it, or why it stopped or is broken.

    name: of its folder; FOLDER/NAME for a run in a folder of several, such as those of `headway compare`.
    stage: what the process of a run that is being trained does now: it reads the data, continues after `step`, trains,
        evaluates the finished model, or stops.
    value: of the metric `goal`: of the best model in the final evaluation, of `value_samples` samples that it was not
        trained on; before the end, in the last evaluation. `goal_title` and `value_text` are both for people, such as
        accuracy and 98.1 %.
    share: of the planned minutes that have passed, or without a plan of the steps, from 0 to 1.
    minutes: of training so far; minutes_left: until its planned end.
    modified, started: in seconds since 1970; started is when the job that trains the run now started.
    can_stop: whether a process of this machine trains it.
    can_extend: whether it can train for more minutes after it has finished.
    export: the state of its last export; export_message: the last line of its output; export_path: where it is.
    """

    name: str
    state: RunState
    modified: float
    stage: Stage | None = None
    started: float | None = None
    reason: str = ""
    recipe: str = ""
    goal: str = "loss"
    goal_title: str = "loss"
    better: Literal["lower", "higher"] = "lower"
    value: float | None = None
    value_text: str = ""
    value_samples: int | None = None
    loss: float | None = None
    step: int | None = None
    steps: int | None = None
    share: float | None = None
    minutes: float | None = None
    minutes_left: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    unit: str = "token"
    parameters: int | None = None
    device: str = ""
    has_model: bool = False
    can_extend: bool = False
    has_report: bool = False
    can_stop: bool = False
    export: str | None = None
    export_message: str = ""
    export_path: str | None = None


class RunEntry:
    """What is known about a run: its row, the version in which it changed, the states of its files when they were read,
    and how far its metrics.jsonl was read.
    """

    def __init__(self) -> None:
        self.row: RunRow | None = None
        self.version = 0
        self.states: tuple[Any, ...] = ()
        self.position = ""
        self.training: dict[str, Any] = {}  # last line of a training step
        self.evaluation: dict[str, Any] = {}  # last line of an evaluation


def read_run(path: Path, name: str, entry: RunEntry, job: Job | None) -> RunRow | None:
    """A run's row; None for a folder without a run."""
    if path.is_symlink():
        return RunRow(name, "broken", 0.0, reason="it is a link to another folder; pass that folder to headway board")
    states = {name: file_state(path / name) for name in _FILES}
    modified = max([state[3] for state in states.values() if state is not None], default=0) / 1e9
    trainer = holder(path / ".lease") if states[".lease"] else None
    is_starting = job is not None and job.state == "running"
    row = RunRow(
        name,
        "starting",
        modified or (job.started if job is not None else 0.0),
        stage="reading",
        started=job.started if job is not None and is_starting else None,
        has_model=states["model.safetensors"] is not None,
        can_extend=(path / "trunk").is_dir(),  # the checkpoint from before the learning rate fell
        has_report=states["report.html"] is not None,
        can_stop=is_starting or (trainer is not None and trainer.began is not None),
    )
    if states["run.json"] is None:
        if trainer is not None or is_starting:
            return replace(row, reason=job.message if job is not None else trainer.description if trainer else "")
        if job is not None and job.state in ("failed", "ended"):
            return replace(row, state="broken", stage=None, modified=job.started, reason=job.message)
        is_run = states["recipe.json"] or states["metrics.jsonl"] or (path / "checkpoints").is_dir()
        reason = "it has no run.json of its own: it was never started completely, or the file was removed"
        return replace(row, state="broken", stage=None, reason=reason) if is_run else None
    try:
        summary = _read_summary(path)
    except UserError as error:
        reason = f"it is damaged or half written: {error}".replace(f"{path}{os.sep}", "")
        with suppress(UserError, AttributeError):
            version = read_json(path / "run.json").get("format")
            if isinstance(version, int) and version > FORMAT:
                reason = (
                    f"a newer headway wrote it (format {version}; this one reads {FORMAT}); update headway to open it"
                )
        return replace(row, state="broken", stage=None, reason=reason)
    row = _with_summary(row, summary)
    if trainer is None and not is_starting and summary["status"] == "finished":
        return replace(_with_final_value(row, summary), state="finished", stage=None, share=1.0)
    _follow(path / "metrics.jsonl", entry)
    command = job.command if job is not None and is_starting else ()
    has_plan = "--resume" not in command or "--minutes" in command  # a run that continues keeps its number of steps
    row = _with_progress(row, entry, path, summary, has_plan)
    row = replace(row, stage=_stage(summary["status"], states, row.started))
    if row.stage != "training":
        row = replace(row, minutes_left=None, tokens_per_second=None)
    if trainer is not None:
        return replace(row, state="running", reason=trainer.description)
    row = replace(row, minutes_left=None, tokens_per_second=None)
    if is_starting:
        return replace(row, reason=job.message if job else "")
    row = replace(row, stage=None)
    reason = "it can continue from its last saved state"
    if job is not None and job.state == "failed" and job.message and not _STOPPED.match(job.message):
        reason = job.message.partition("; resume ")[0]
    elif summary["status"] == "running":
        reason = "its process ended without a message (it was killed, or the machine stopped); it can continue"
    return replace(row, state="stopped", reason=reason)


def _stage(status: str, states: Mapping[str, FileState], started: float | None) -> Stage:
    """What the process of a run does, by the times of its files and of the start of its job."""
    written, measured = ((state[3] / 1e9 if (state := states[name]) else 0.0) for name in ("run.json", "metrics.jsonl"))
    if started is not None and max(written, measured) < started:
        return "continuing"
    if status == "running" or measured > written:
        return "training"
    if status == "finished":
        return "checking"
    return "continuing" if started is None else "stopping"  # another process may continue an interrupted run


def _read_summary(path: Path) -> dict[str, Any]:
    """A run's run.json. What the board uses is checked here, which takes a tenth of the time of a complete check."""
    summary = read_json(path / "run.json")
    with suppress(LookupError, TypeError, AttributeError):
        is_valid = summary["format"] == FORMAT and summary["status"] in ("running", "interrupted", "finished")
        counts = all(count(summary[name]) >= 0 for name in ("parameters", "steps", "step", "tokens"))
        strings = all(isinstance(summary.get(name, ""), str) for name in ("recipe", "goal", "unit", "device"))
        objects = all(isinstance(summary.get(name) or {}, dict) for name in ("best", "scores"))
        seconds = all(finite(summary.get(name) or 0.0) is not None for name in ("seconds", "elapsed"))
        if is_valid and counts and strings and objects and seconds:
            return summary
    return RunDirectory(path).read_status()


def _with_summary(row: RunRow, summary: Mapping[str, Any]) -> RunRow:
    best, goal = summary.get("best") or {}, summary.get("goal", "loss")
    return replace(
        row,
        recipe=short(str(summary.get("recipe", ""))),
        goal=short(goal),
        goal_title=short(title(goal)),
        better="lower" if goal in LOWER_IS_BETTER else "higher",
        value=finite(best.get(goal)),
        value_text=_value_text(goal, finite(best.get(goal))),
        loss=finite(best.get("loss")),
        step=summary["step"],
        steps=summary["steps"],
        share=_share(summary["step"], summary["steps"]),
        minutes=round((summary.get("elapsed") or summary["seconds"]) / 60, 2),
        tokens=summary["tokens"],
        unit=short(summary.get("unit", "token")),
        parameters=summary["parameters"],
        device=short(summary.get("device", "")),
    )


def _value_text(goal: str, value: float | None) -> str:
    return "" if value is None else format_metric(goal, value)


def _with_final_value(row: RunRow, summary: Mapping[str, Any]) -> RunRow:
    """The row of a finished run with its final score, if it has one, instead of the best during training."""
    final = summary.get("scores") or {}
    if (value := finite(final.get(row.goal))) is None:
        return row
    samples = count(final.get("samples"))
    return replace(
        row, value=value, value_text=_value_text(row.goal, value), value_samples=samples if samples > 0 else None
    )


def _share(done: float, total: float) -> float | None:
    return round(min(1.0, done / total), 4) if total > 0 else None


def _with_progress(row: RunRow, entry: RunEntry, path: Path, summary: Mapping[str, Any], has_plan: bool) -> RunRow:
    """The row of a run that is not finished: its metrics are newer than its run.json. With `has_plan`, planned minutes
    decide when it ends; otherwise, or when they have passed, its steps do.
    """
    line, steps = entry.training, row.steps or 0
    with suppress(UserError, LookupError, TypeError):  # the plan may have changed since run.json was written
        planned = read_json(path / "recipe.json")["train"]["steps"]
        steps = planned if isinstance(planned, int) else steps
    step, seconds = max(count(line.get("step")), 0), finite(line.get("seconds")) or 0.0
    if not step:
        return replace(row, steps=steps, share=_share(row.step or 0, steps))
    value = entry.evaluation.get(row.goal)
    value = row.value if value is None else finite(value)
    earlier = (summary.get("elapsed") or 0.0) - (summary.get("seconds") or 0.0)
    minutes, planned_minutes = (seconds + max(0.0, earlier)) / 60, finite(summary.get("minutes")) or 0.0
    is_planned = has_plan and planned_minutes > minutes and step < steps
    left = planned_minutes - minutes if is_planned else max(0, steps - step) * seconds / step / 60
    return replace(
        row,
        step=step,
        steps=steps,
        loss=finite(line.get("loss")),
        value=value,
        value_text=_value_text(row.goal, value),
        share=_share(minutes, planned_minutes) if is_planned else _resumed_share(summary, planned_minutes, step, steps),
        minutes=round(minutes, 2),
        minutes_left=round(left, 2),
        tokens=count(line.get("tokens")),
        tokens_per_second=finite(line.get("tokens_per_second")),
    )


def _resumed_share(summary: Mapping[str, Any], planned_minutes: float, step: int, steps: int) -> float | None:
    """The share of a run that continues: its other steps follow the share of the minutes at which it had stopped."""
    if not planned_minutes:
        return _share(step, steps)
    start, before = summary["step"], min(0.99, (summary.get("elapsed") or 0.0) / 60 / planned_minutes)
    return _share(before + (1 - before) * max(0, step - start) / max(1, steps - start), 1.0)


def _follow(path: Path, entry: RunEntry) -> None:
    """Read what was added to a metrics.jsonl, at first only its end, for its last lines."""
    if not entry.position:
        with suppress(OSError):
            entry.position = position_at_tail(path)
    with suppress(UserError):
        while True:
            points = read_points(path, entry.position)
            if points.is_restart:
                entry.training, entry.evaluation = {}, {}
            entry.position = points.after
            for line in points.lines:
                setattr(entry, "evaluation" if "split" in line else "training", line)
            if not points.has_more:
                break


def file_state(path: Path) -> FileState:
    """The state of a file or folder; None for a missing one, and for a link, which could lead anywhere."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return (
        None
        if stat.S_ISLNK(status.st_mode)
        else (status.st_ino, status.st_size, status.st_ctime_ns, status.st_mtime_ns)
    )
