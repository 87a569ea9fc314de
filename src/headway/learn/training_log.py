"""The log of a training run: metrics.jsonl, loggers, and progress displays."""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any, Protocol

from headway.errors import UserError, printable
from headway.learn.learner import Update
from headway.learn.run import Logger
from headway.learn.run_state import RunState

_PLAIN_INTERVAL = 10.0  # seconds between plain lines
_LIVE_INTERVAL = 0.2  # seconds between refreshes of a live line
_NOTEBOOK_INTERVAL = 1.0  # seconds between refreshes of a notebook's output, because each goes to the browser

# Peak dense bf16 TFLOP/s from the vendors' data sheets.
_PEAK_TFLOPS = {
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "V100": 125,
    "4090": 165,
    "3090": 71,
    "T4": 65,
}


class Display(Protocol):
    def print_line(self, text: str) -> None:
        """Print a permanent line."""
        ...

    def set_steps(self, steps: int) -> None:
        """Set the run's number of steps."""
        ...

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        """Called after a step, with the last known loss, and the target and computed tokens since the display
        started.
        """
        ...

    def pause(self) -> None:
        """Exclude the time until `resume` is called from the speed."""
        ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class SilentDisplay:
    """Shows nothing."""

    def print_line(self, text: str) -> None:
        pass

    def set_steps(self, steps: int) -> None:
        pass

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass


class SpeedAverage:
    """Exponentially averaged rates per second over about the last `window` seconds, without pauses."""

    def __init__(self, window: float = 5.0) -> None:
        self.window = window
        self.values: dict[str, float] = {}
        self._paused = 0.0
        self._time = time.perf_counter()
        self._counts: dict[str, float] | None = None

    def pause(self) -> None:
        self._paused = time.perf_counter()

    def resume(self) -> None:
        self._time += time.perf_counter() - self._paused

    def update(self, counts: dict[str, float]) -> None:
        now = time.perf_counter()
        if self._counts is not None and now > self._time:
            elapsed = now - self._time
            weight = math.exp(-elapsed / self.window)
            for name, count in counts.items():
                value = (count - self._counts[name]) / elapsed
                self.values[name] = weight * self.values.get(name, value) + (1 - weight) * value
        self._time, self._counts = now, counts


class _ProgressMeter:
    """The progress text of the displays: step, loss, speed, FLOP/s, remaining time."""

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str) -> None:
        self.steps = steps
        self.unit = unit
        self.flop_per_token = flop_per_token
        self.peak_flops = next((peak * 1e12 for name, peak in _PEAK_TFLOPS.items() if name in device), None)
        self.speed = SpeedAverage()

    def text(self, step: int, loss: float) -> str:
        parts = [f"step {step:,}/{self.steps:,}"]
        if not math.isnan(loss):  # not yet known in the first steps
            parts.append(f"loss {loss:.4f}")
        if self.speed.values:
            parts.append(f"{self.speed.values['tokens']:,.0f} {self.unit}s/s")
            parts.append(self._utilisation(self.speed.values["computed"] * self.flop_per_token))
            steps_per_second = self.speed.values["step"]
            if steps_per_second > 0:
                parts.append(f"{format_duration((self.steps - step) / steps_per_second)} left")
        return " · ".join(parts)

    def _utilisation(self, flops: float) -> str:
        if self.peak_flops:
            return f"MFU {flops / self.peak_flops:.0%}"
        billions = flops / 1e9
        return f"{billions:,.0f} GFLOP/s" if billions >= 10 else f"{billions:.2g} GFLOP/s"


class PlainDisplay:
    """Prints a line at most every ten seconds, and one at the end."""

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str = "token") -> None:
        self._meter = _ProgressMeter(steps, flop_per_token, device, unit)
        self._next = 0.0

    def print_line(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def set_steps(self, steps: int) -> None:
        self._meter.steps = steps

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        now = time.perf_counter()
        if now >= self._next or step == self._meter.steps:
            self._meter.speed.update({"step": step, "tokens": tokens, "computed": computed})
            self.print_line(self._meter.text(step, loss))
            self._next = now + (_PLAIN_INTERVAL if self._meter.speed.values else 1.0)

    def pause(self) -> None:
        self._meter.speed.pause()

    def resume(self) -> None:
        self._meter.speed.resume()

    def close(self) -> None:
        pass


class LiveDisplay:
    """A line with a progress bar that is redrawn."""

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str = "token") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._meter = _ProgressMeter(steps, flop_per_token, device, unit)
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self._task: Any = self._progress.add_task("starting", total=steps)
        self._progress.start()
        self._next = 0.0

    def print_line(self, text: str) -> None:
        self._progress.console.print(printable(text), markup=False, highlight=False)

    def set_steps(self, steps: int) -> None:
        self._meter.steps = steps
        self._progress.update(self._task, total=steps)

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        now = time.perf_counter()
        if now < self._next and step < self._meter.steps:
            return
        self._next = now + _LIVE_INTERVAL
        self._meter.speed.update({"step": step, "tokens": tokens, "computed": computed})
        self._progress.update(self._task, completed=step, description=self._meter.text(step, loss), refresh=True)

    def pause(self) -> None:
        self._meter.speed.pause()

    def resume(self) -> None:
        self._meter.speed.resume()

    def close(self) -> None:
        self._progress.stop()


class _CellOutput:
    """The output of a notebook cell: permanent lines and, during a run, a progress bar with a line."""

    def __init__(self, lines: list[str], line: str, done: int, steps: int) -> None:
        self.lines, self.line, self.done, self.steps = list(lines), line, done, steps

    def __repr__(self) -> str:
        return "\n".join([*self.lines, self.line] if self.line else self.lines)

    def _repr_html_(self) -> str:
        lines_html = f'<pre style="margin: 0">{escape(chr(10).join(self.lines))}</pre>' if self.lines else ""
        if not self.line:
            return lines_html
        bar = f'<progress value="{self.done}" max="{max(self.steps, 1)}" style="vertical-align: middle"></progress>'
        return f"{lines_html}<div>{bar} <code>{escape(self.line)}</code></div>"


class NotebookDisplay:
    """One block of a cell's output, updated in place; it remains as text after the run."""

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str = "token") -> None:
        self._meter = _ProgressMeter(steps, flop_per_token, device, unit)
        self._lines: list[str] = []
        self._line, self._done = "starting", 0
        self._next = 0.0
        self._handle = import_module("IPython.display").display(self._block(), display_id=True)

    def _block(self) -> _CellOutput:
        return _CellOutput(self._lines, self._line, self._done, self._meter.steps)

    def print_line(self, text: str) -> None:
        self._lines.append(text)
        self._handle.update(self._block())

    def set_steps(self, steps: int) -> None:
        self._meter.steps = steps

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        now = time.perf_counter()
        if now < self._next and step < self._meter.steps:
            return
        self._next = now + _NOTEBOOK_INTERVAL
        self._meter.speed.update({"step": step, "tokens": tokens, "computed": computed})
        self._line, self._done = self._meter.text(step, loss), step
        self._handle.update(self._block())

    def pause(self) -> None:
        self._meter.speed.pause()

    def resume(self) -> None:
        self._meter.speed.resume()

    def close(self) -> None:
        """Keep the last progress line, because it shows how far an interrupted run got."""
        if self._done:
            self._lines.append(self._line)
        self._line = ""
        self._handle.update(self._block())


def _in_notebook() -> bool:
    """Whether this is a Jupyter, Colab or Databricks kernel, as rich detects it."""
    from rich.console import Console

    return Console(stderr=True).is_jupyter


def open_display(visible: bool, steps: int, flop_per_token: float, device: str, unit: str = "token") -> Display:
    """The display for a terminal, a notebook or a plain stderr. `flop_per_token` is the training cost per computed
    token; `unit` is what the task counts.
    """
    if not visible:
        return SilentDisplay()
    kind = NotebookDisplay if _in_notebook() else LiveDisplay if sys.stderr.isatty() else PlainDisplay
    return kind(steps, flop_per_token, device, unit)


def format_duration(seconds: float) -> str:
    """Seconds as 42 s, 3:05 or 1:02:03."""
    total_seconds = max(0, round(seconds))
    hours, remainder = divmod(total_seconds, 3600)
    minutes, remainder = divmod(remainder, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{remainder:02d}"
    return f"{minutes}:{remainder:02d}" if minutes else f"{remainder} s"


def format_epochs(epochs: float) -> str:
    """Epochs as 0.4 epochs, 3.1 epochs or 1,200 epochs."""
    return f"{epochs:,.0f} epochs" if epochs >= 10 else f"{epochs:.1f} epochs"


_DIVERGENCE_FACTOR = 3.0  # a diverging loss exceeds the first one by at least 3 and by 3 times its size
_DIVERGENCE_SPAN = 20  # steps, and fraction of the run (1 / 20), that the loss must stay that high before a warning
_REMEDY = "lower optim.lr, lengthen schedule.warmup, or set train.clip"
_LINES_PER_RUN = 500  # log lines per run; a curve cannot show many more points
_MAX_STEPS_PER_LINE = 20  # maximum steps per line


class TrainingLog:
    """Collects updates for a few steps without reading their tensors, then writes their means as one line.

    The run's `progress.seconds` counts only training, because evaluations and checkpoints happen inside `paused`.
    """

    def __init__(self, run: RunState, loggers: Sequence[Logger], display: Display) -> None:
        self.interval = _interval(run.recipe.train.steps)
        self.run = run
        self.loggers = loggers
        self.display = display
        self._updates: list[Update] = []
        self._computed = 0
        self._tokens = run.progress.tokens
        self._loss = math.nan
        self._first_loss = math.nan  # the loss of the first step
        self._last_normal_step: int | None = run.progress.step  # last step with a normal loss; None after the warning
        self._tick_time = time.perf_counter()

    def add(self, update: Update, tokens: int, computed: int) -> None:
        """Add a step; `tokens` and `computed` are totals over all processes, for the display."""
        self._updates.append(update)
        self._computed += computed
        self._tokens += tokens

    def set_steps(self, steps: int) -> None:
        """Set a new number of steps for the run."""
        self.steps = steps
        self.interval = _interval(steps)
        self.display.set_steps(steps)

    def show(self) -> None:
        """Update the display."""
        self.display.update(self.run.progress.step, self._loss, self._tokens, self._computed)

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
        progress = self.run.progress
        progress.tokens += tokens
        self._loss = sum(losses.values())
        if math.isnan(self._first_loss):
            self._first_loss = sum(total / max(1, count) for total, count in self._updates[0].losses().values())
        line = {"step": progress.step, "loss": self._loss, "lr": self.run.learning_rate(), "tokens": progress.tokens}
        line |= {"tokens_per_second": round(tokens / seconds, 1), "grad_norm": norm}
        line |= {"seconds": round(progress.seconds, 3)}
        if len(losses) > 1:
            line |= {f"loss_{name}": value for name, value in losses.items()}
        self._updates.clear()
        self._write(line)
        if not (math.isfinite(self._loss) and math.isfinite(norm)):
            raise UserError(f"the loss is {self._loss} and the gradient norm {norm} at step {progress.step}; {_REMEDY}")
        self._warn_divergence()

    def _warn_divergence(self) -> None:
        """Warn once if the loss stays far above the first step's loss."""
        if self._last_normal_step is None:
            return
        step = self.run.progress.step
        if self._loss <= self._first_loss + max(_DIVERGENCE_FACTOR * abs(self._first_loss), _DIVERGENCE_FACTOR):
            self._last_normal_step = step
        elif step - self._last_normal_step >= max(_DIVERGENCE_SPAN, self.run.recipe.train.steps // _DIVERGENCE_SPAN):
            self.display.print_line(
                f"warning: training diverges: the loss is {self._loss:.4g} at step {step:,}, started at "
                f"{self._first_loss:.4g}, and has been far above that since step {self._last_normal_step + 1:,}; "
                f"{_REMEDY}"
            )
            self._last_normal_step = None

    def evaluation(self, metrics: dict[str, float], seconds: float, weights: str, is_best: bool) -> None:
        """Write an evaluation. `weights` names the weights that were evaluated: trained, moving average, or mean of
        checkpoints.
        """
        progress = self.run.progress
        line = {"step": progress.step, "split": "validation", "weights": weights, **metrics}
        self._write({**line, "seconds": round(progress.seconds, 3), "evaluation_seconds": round(seconds, 3)})
        metrics_text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if _is_number(value))
        elapsed = format_duration(progress.seconds)
        suffix = " (best so far)" if is_best else ""
        self.display.print_line(f"step {progress.step:,} after {elapsed}: validation {metrics_text}{suffix}")

    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.run.progress.seconds + time.perf_counter() - self._tick_time

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the context from the training time."""
        self._update_seconds()
        self.display.pause()
        try:
            yield
        finally:
            self.display.resume()
            self._tick_time = time.perf_counter()

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()

    def _update_seconds(self) -> float:
        now = time.perf_counter()
        elapsed, self._tick_time = max(now - self._tick_time, 1e-9), now
        self.run.progress.seconds += elapsed
        return elapsed

    def _write(self, line: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.write(line)


def _interval(steps: int) -> int:
    """Steps per log line."""
    return min(_MAX_STEPS_PER_LINE, max(1, steps // _LINES_PER_RUN))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
