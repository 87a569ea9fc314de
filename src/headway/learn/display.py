"""Progress displays of a training run: in a terminal, in a notebook, as plain lines, or none."""

from __future__ import annotations

import math
import sys
import time
from html import escape
from importlib import import_module
from typing import Any

from headway.errors import printable
from headway.learn.formatting import format_duration

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


class Display:
    """The progress of a run (step, loss, speed, FLOP/s, remaining time), and permanent lines. Subclasses show both."""

    interval = 0.0  # seconds between updates

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str = "token") -> None:
        self.steps = steps  # the run's number of steps
        self._flop_per_token, self._unit = flop_per_token, unit
        self._peak_flops = next((peak * 1e12 for name, peak in _PEAK_TFLOPS.items() if name in device), None)
        self.speed = SpeedAverage()
        self._next = 0.0

    def print_line(self, text: str) -> None:
        """Print a permanent line."""

    def show(self, step: int, text: str) -> None:
        """Show the progress text after a step."""

    def set_steps(self, steps: int) -> None:
        """Set the run's number of steps."""
        self.steps = steps

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        """Called after a step, with the last known loss, and the target and computed tokens since the display
        started.
        """
        now = time.perf_counter()
        if now < self._next and step < self.steps:
            return
        self.speed.update({"step": step, "tokens": tokens, "computed": computed})
        self._next = now + (self.interval if self.speed.values else min(1.0, self.interval))
        parts = [f"step {step:,}/{self.steps:,}"]
        if not math.isnan(loss):  # not yet known in the first steps
            parts.append(f"loss {loss:.4f}")
        if self.speed.values:
            parts.append(f"{self.speed.values['tokens']:,.0f} {self._unit}s/s")
            flops, steps_per_second = self.speed.values["computed"] * self._flop_per_token, self.speed.values["step"]
            if self._peak_flops:
                parts.append(f"MFU {flops / self._peak_flops:.0%}")
            else:
                parts.append(f"{flops / 1e9:,.0f} GFLOP/s" if flops >= 1e10 else f"{flops / 1e9:.2g} GFLOP/s")
            if steps_per_second > 0:
                parts.append(f"{format_duration((self.steps - step) / steps_per_second)} left")
        self.show(step, " · ".join(parts))

    def close(self) -> None:
        pass


class SilentDisplay(Display):
    """Shows nothing."""

    def update(self, step: int, loss: float, tokens: int, computed: int) -> None:
        pass


class PlainDisplay(Display):
    """Prints a line at most every ten seconds, and one at the end."""

    interval = 10.0

    def print_line(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def show(self, step: int, text: str) -> None:
        self.print_line(text)


class LiveDisplay(Display):
    """A line with a progress bar that is redrawn."""

    interval = 0.2

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str = "token") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(steps, flop_per_token, device, unit)
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self._task: Any = self._progress.add_task("starting", total=steps)
        self._progress.start()

    def print_line(self, text: str) -> None:
        self._progress.console.print(printable(text), markup=False, highlight=False)

    def set_steps(self, steps: int) -> None:
        self.steps = steps
        self._progress.update(self._task, total=steps)

    def show(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, description=text, refresh=True)

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


class NotebookDisplay(Display):
    """One block of a cell's output, updated in place; it remains as text after the run."""

    interval = 1.0  # each update goes to the browser

    def __init__(self, steps: int, flop_per_token: float, device: str, unit: str = "token") -> None:
        super().__init__(steps, flop_per_token, device, unit)
        self._lines: list[str] = []
        self._line, self._done = "starting", 0
        self._handle = import_module("IPython.display").display(self._block(), display_id=True)

    def _block(self) -> _CellOutput:
        return _CellOutput(self._lines, self._line, self._done, self.steps)

    def print_line(self, text: str) -> None:
        self._lines.append(text)
        self._handle.update(self._block())

    def show(self, step: int, text: str) -> None:
        self._line, self._done = text, step
        self._handle.update(self._block())

    def close(self) -> None:
        """Keep the last progress line, because it shows how far an interrupted run got."""
        if self._done:
            self._lines.append(self._line)
        self._line = ""
        self._handle.update(self._block())


def open_display(visible: bool, steps: int, flop_per_token: float, device: str, unit: str = "token") -> Display:
    """The display for a terminal, a notebook or a plain stderr. `flop_per_token` is the training cost per computed
    token; `unit` is what the task counts.
    """
    kind = SilentDisplay
    if visible:
        from rich.console import Console

        is_notebook = Console(stderr=True).is_jupyter  # a Jupyter, Colab or Databricks kernel
        kind = NotebookDisplay if is_notebook else LiveDisplay if sys.stderr.isatty() else PlainDisplay
    return kind(steps, flop_per_token, device, unit)
