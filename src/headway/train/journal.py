"""What happened at each step, told to metrics.jsonl, to loggers and to the display."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headway.errors import UserError
from headway.train.checkpoint import Progress
from headway.train.display import Display, duration
from headway.train.learner import Update
from headway.train.log import Logger

_LINES = 500  # about as many as a curve can show
_MOST = 20  # steps in a line


class Journal:
    """Collects the updates of a few steps without reading them, then writes their means as one line.

    `progress.seconds` counts training only: evaluations and checkpoints happen inside `paused`.
    """

    def __init__(self, steps: int, progress: Progress, loggers: Sequence[Logger], display: Display) -> None:
        self.interval = _interval(steps)
        self.progress = progress
        self.loggers = loggers
        self.display = display
        self._updates: list[Update] = []
        self._computed = 0
        self._tokens = progress.tokens
        self._loss = math.nan
        self._mark = time.perf_counter()

    def add(self, update: Update, tokens: int, computed: int) -> None:
        """After a step; `tokens` and `computed` are those of all processes, for the display."""
        self._updates.append(update)
        self._computed += computed
        self._tokens += tokens

    def plan(self, steps: int) -> None:
        """From here on the run has so many steps."""
        self.interval = _interval(steps)
        self.display.plan(steps)

    def show(self) -> None:
        """Bring the display up to date."""
        self.display.update(self.progress.step, self._loss, self._tokens, self._computed)

    def flush(self, lr: float) -> None:
        """Write the line of the steps since the last one. A loss that is not finite ends the run with a UserError."""
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
        seconds = self._tick()
        self.progress.tokens += tokens
        self._loss = sum(losses.values())
        line = {"step": self.progress.step, "loss": self._loss, "lr": lr, "tokens": self.progress.tokens}
        line |= {"tokens_per_second": round(tokens / seconds, 1), "grad_norm": norm}
        line |= {"seconds": round(self.progress.seconds, 3)}
        if len(losses) > 1:
            line |= {f"loss_{name}": value for name, value in losses.items()}
        self._updates.clear()
        self._write(line)
        if not (math.isfinite(self._loss) and math.isfinite(norm)):
            raise UserError(
                f"the loss is {self._loss} and the gradient's norm {norm} at step {self.progress.step}; "
                "lower optim.lr, lengthen schedule.warmup, or set train.clip"
            )

    def evaluation(self, metrics: dict[str, float], seconds: float, weights: str, better: bool) -> None:
        """Write an evaluation. `weights` says which were judged: those trained, their moving average, or a mean."""
        line = {"step": self.progress.step, "split": "validation", "weights": weights, **metrics}
        self._write({**line, "seconds": round(self.progress.seconds, 3), "evaluation_seconds": round(seconds, 3)})
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if _is_number(value))
        after = duration(self.progress.seconds)
        best = " (best so far)" if better else ""
        self.display.say(f"step {self.progress.step:,} after {after}: validation {figures}{best}")

    def seconds(self) -> float:
        """Of training so far."""
        return self.progress.seconds + time.perf_counter() - self._mark

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not training."""
        self._tick()
        self.display.pause()
        try:
            yield
        finally:
            self.display.resume()
            self._mark = time.perf_counter()

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()

    def _tick(self) -> float:
        now = time.perf_counter()
        elapsed, self._mark = max(now - self._mark, 1e-9), now
        self.progress.seconds += elapsed
        return elapsed

    def _write(self, line: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.write(line)


def _interval(steps: int) -> int:
    """Steps in a line."""
    return min(_MOST, max(1, steps // _LINES))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
