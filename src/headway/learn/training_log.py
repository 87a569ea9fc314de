"""The log of a training run: metrics.jsonl and other loggers, and the lines that the trainer writes to them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from headway.errors import UserError, nearest
from headway.io.durable import write_text
from headway.io.outputs import open_run_file
from headway.learn.anomalies import LossWatch
from headway.learn.display import Display
from headway.learn.formatting import format_duration
from headway.learn.learner import Update
from headway.learn.recipe import Recipe
from headway.learn.run import Progress, read_metrics

# Names additional loggers: HEADWAY_LOG=tensorboard,wandb
LOG_VARIABLE = "HEADWAY_LOG"
_DIVERGENCE_FACTOR = 3.0  # a diverging loss exceeds the first one by at least 3 and by 3 times its size
_DIVERGENCE_SPAN = 20  # steps, and fraction of the run (1 / 20), that the loss must stay that high before a warning
_REMEDY = "lower optim.lr, lengthen schedule.warmup, or set train.clip"
_LINES_PER_RUN = 500  # log lines per run; a curve cannot show many more points
_MAX_STEPS_PER_LINE = 20  # maximum steps per line


class Logger(Protocol):
    """Writes lines of metrics; each line has a `step`."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: one JSON object per line, for each logged step or evaluation. Non-finite numbers become null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_run_file(path)  # line-buffered, for programs that follow it

    def write(self, line: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(finite, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} could not be written: {error.strerror}; free space, then resume") from error

    def sync(self) -> None:
        """Flush all lines to disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # a full disk was reported at the write
            self._file.close()


def truncate_metrics(path: Path, step: int, evaluated: int) -> None:
    """Remove lines that will be written again: steps after `step`, evaluations after `evaluated`, and the evaluation of
    averaged checkpoints.
    """

    def stays(line: dict[str, Any]) -> bool:
        if "split" not in line:
            return line["step"] <= step
        return line["step"] <= evaluated and not str(line.get("weights")).startswith("mean of")

    remaining = filter(stays, read_metrics(path))
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in remaining))


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
    """A Weights & Biases run named after the directory; wandb's environment variables set the project and key."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(dir=str(directory), name=directory.name, config=settings, resume="allow")

    def write(self, line: dict[str, Any]) -> None:
        self._run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def close(self) -> None:
        self._run.finish()


_LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB}


def check_loggers() -> list[str]:
    """The names in HEADWAY_LOG; raises UserError for one that is unknown or not installed."""
    names = [name.strip() for name in os.environ.get(LOG_VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if name not in _LOGGERS:
            raise UserError(f"{LOG_VARIABLE} names {name!r}; {nearest(name, _LOGGERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{LOG_VARIABLE} names {name}, which is not installed; run pip install 'headway[logging]'")
    return names


def open_loggers(directory: Path, settings: dict[str, Any]) -> list[Logger]:
    """The loggers named in HEADWAY_LOG, for a run with these settings."""
    return [_LOGGERS[name](directory, settings) for name in check_loggers()]


class TrainingLog:
    """Collects updates for a few steps without reading their tensors, then writes their means as one line.

    The run's `progress.seconds` counts only training, because evaluations and checkpoints happen inside `paused`.
    """

    def __init__(
        self,
        recipe: Recipe,
        progress: Progress,
        loggers: Sequence[Logger],
        display: Display,
        describe_step: Callable[[int], str] = "step {}".format,
    ) -> None:
        """`describe_step` names the samples of a step."""
        self.progress, self.loggers, self.display = progress, loggers, display
        self._describe_step, self._watch = describe_step, LossWatch()
        self._updates: list[Update] = []
        self._computed = 0
        self._tokens = progress.tokens
        self._loss = math.nan
        self._first_loss = math.nan  # the loss of the first step
        self._last_normal_step: int | None = progress.step  # last step with a normal loss; None after the warning
        self._tick_time = time.perf_counter()
        self.set_recipe(recipe)

    def add(self, update: Update, tokens: int, computed: int) -> None:
        """Add a step; `tokens` and `computed` are estimated totals over all processes, for the display."""
        self._updates.append(update)
        self._computed += computed
        self._tokens += tokens

    def set_recipe(self, recipe: Recipe) -> None:
        """Set the run's recipe, which may have a new number of steps."""
        self.recipe, steps = recipe, recipe.train.steps
        self.interval = min(_MAX_STEPS_PER_LINE, max(1, steps // _LINES_PER_RUN))  # steps per line
        self.display.set_steps(steps)

    def show(self) -> None:
        """Update the display."""
        self.display.update(self.progress.step, self._loss, self._tokens, self._computed)

    def flush(self) -> None:
        """Write a line for the steps since the last one. A non-finite loss ends the run with a UserError."""
        if not self._updates:
            return
        totals: defaultdict[str, float] = defaultdict(float)
        counts: defaultdict[str, float] = defaultdict(float)
        for update in self._updates:
            for name, (total, count) in update.losses().items():
                totals[name] += total
                counts[name] += count
        losses = {name: totals[name] / max(1, counts[name]) for name in totals}
        tokens = sum(update.tokens() for update in self._updates)
        norm = sum(update.norm.item() for update in self._updates) / len(self._updates)
        seconds = self._update_seconds()
        progress, steps = self.progress, self.recipe.train.steps
        progress.tokens += tokens
        self._loss = sum(losses.values())
        if math.isnan(self._first_loss):
            self._first_loss = sum(total / max(1, count) for total, count in self._updates[0].losses().values())
        rate = self.recipe.optim.lr * self.recipe.schedule.factor(progress.step - 1, steps)  # of the last step
        line = {"step": progress.step, "loss": self._loss, "lr": rate, "tokens": progress.tokens}
        line |= {"tokens_per_second": round(tokens / seconds, 1), "grad_norm": norm}
        line |= {"seconds": round(progress.seconds, 3)}
        if len(losses) > 1:
            line |= {f"loss_{name}": value for name, value in losses.items()}
        updates, self._updates = self._updates, []
        self._write(line)
        self._check_steps(updates)
        if self._last_normal_step is None:
            return
        step = progress.step  # warn once if the loss stays far above the first step's loss
        if self._loss <= self._first_loss + max(_DIVERGENCE_FACTOR * abs(self._first_loss), _DIVERGENCE_FACTOR):
            self._last_normal_step = step
        elif step - self._last_normal_step >= max(_DIVERGENCE_SPAN, steps // _DIVERGENCE_SPAN):
            self.display.print_line(
                f"warning: training diverges: the loss is {self._loss:.4g} at step {step:,}, started at "
                f"{self._first_loss:.4g}, and has been far above that since step {self._last_normal_step + 1:,}; "
                f"{_REMEDY}"
            )
            self._last_normal_step = None

    def _check_steps(self, updates: Sequence[Update]) -> None:
        """Raise UserError for the first of the last steps that is not finite; print a line for one that jumps."""
        for step, update in enumerate(updates, self.progress.step - len(updates) + 1):
            loss, norm = sum(total / max(1, count) for total, count in update.losses().values()), update.norm.item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(
                    f"the loss is {loss:.4g} and the gradient norm {norm:.4g} at step {step:,} "
                    f"({self._describe_step(step)}); check these samples, or {_REMEDY}"
                )
            jump = self._watch.jump(step, loss)
            if jump is not None:
                self.display.print_line(
                    f"warning: the loss jumps to {jump.loss:.4g} at step {jump.step:,}, from a median of "
                    f"{jump.median:.4g}, and stays high ({self._describe_step(jump.step)}); check these samples, or "
                    f"{_REMEDY}"
                )

    def evaluation(self, metrics: dict[str, float], seconds: float, weights: str, is_best: bool) -> None:
        """Write an evaluation. `weights` names the weights that were evaluated: trained, moving average, or mean of
        checkpoints.
        """
        progress = self.progress
        line = {"step": progress.step, "split": "validation", "weights": weights, **metrics}
        self._write({**line, "seconds": round(progress.seconds, 3), "evaluation_seconds": round(seconds, 3)})
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        metrics_text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        elapsed = format_duration(progress.seconds)
        suffix = " (best so far)" if is_best else ""
        self.display.print_line(f"step {progress.step:,} after {elapsed}: validation {metrics_text}{suffix}")

    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.progress.seconds + time.perf_counter() - self._tick_time

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the context from the training time."""
        self._update_seconds()
        self.display.speed.pause()
        try:
            yield
        finally:
            self.display.speed.resume()
            self._tick_time = time.perf_counter()

    def _update_seconds(self) -> float:
        now = time.perf_counter()
        elapsed, self._tick_time = max(now - self._tick_time, 1e-9), now
        self.progress.seconds += elapsed
        return elapsed

    def _write(self, line: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.write(line)
