"""Timeline of a program: when each thread starts and ends each instruction."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir

from headway.engine.interpreter import Opcode, idle, run_all
from headway.engine.machine import compiled, i64, intrinsic, types

_SKIP = int(Opcode.SKIP)


@intrinsic
def _ticks(typing: Any) -> Any:
    """The processor's cycle counter."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", (), kind), [])

    return types.int64(), generate


@compiled
def run_timed(
    table: np.ndarray,
    floats: np.ndarray,
    tokens: int,
    positions: int,
    batch: int,
    scratch: int,
    counter: int,
    thread: int,
    threads: int,
    ticks: int,
) -> None:
    """`interpreter.run_all` that also writes to `ticks`, per thread, the time before each instruction and after the
    last.
    """
    times, number = i64(ticks + 8 * thread * (table.shape[0] + 1)), 0
    while number < table.shape[0]:
        times[number] = _ticks()
        if table[number, 0] == _SKIP:
            skip_count = table[number, 4] if idle(table[number], batch, scratch) else 0
            for skipped in range(number + 1, number + skip_count + 1):
                times[skipped] = times[number]
            number += skip_count + 1
            continue
        part, op_floats = table[number : number + 1], floats[number : number + 1]
        run_all(part, op_floats, tokens, positions, batch, scratch, counter, thread, threads)
        number += 1
    times[number] = _ticks()


class StepTimeline:
    """The timeline of an engine's steps while it is the engine's `timeline`."""

    def __init__(self) -> None:
        self.steps: list[tuple[np.ndarray, np.ndarray, float]] = []  # the table, [threads, N + 1] ticks, and seconds
        self._started = 0.0

    def new_ticks(self, threads: int, table: np.ndarray) -> np.ndarray:
        """A new array for the ticks of the step that starts now."""
        self._started = time.perf_counter()
        return np.zeros((threads, len(table) + 1), np.int64)

    def note(self, table: np.ndarray, ticks: np.ndarray) -> None:
        self.steps.append((table.copy(), ticks, time.perf_counter() - self._started))

    def write(self, path: Path) -> None:
        """Write all steps as a trace for browsers (chrome://tracing, Perfetto): times in microseconds."""
        events, first = [], self.steps[0][1].min()
        span = sum(int(ticks.max() - ticks.min()) for _, ticks, _ in self.steps)
        tick_microseconds = 1e6 * sum(seconds for _, _, seconds in self.steps) / max(1, span)
        for table, ticks, _ in self.steps:
            for thread, times in enumerate(ticks):
                for number, op in enumerate(table):
                    start, end = (tick_microseconds * int(times[index] - first) for index in (number, number + 1))
                    events.append(
                        {
                            "ph": "X",
                            "pid": 0,
                            "tid": thread,
                            "ts": start,
                            "dur": end - start,
                            "name": instruction_name(op),
                        }
                    )
        path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")

    def fastest(self) -> dict[str, tuple[int, float]]:
        """Per kind of instruction, its count in a step and the minimum ticks of all of them together: for each
        instruction the step in which its slowest thread finished soonest.
        """
        times: dict[str, tuple[int, float]] = {}
        table = self.steps[-1][0]
        alike = [ticks for step_table, ticks, _ in self.steps if len(step_table) == len(table)]
        took = np.min([np.diff(ticks).max(0) for ticks in alike], 0)
        for op, ticks in zip(table, took):
            count, total = times.get(instruction_name(op), (0, 0.0))
            times[instruction_name(op)] = count + 1, total + float(ticks)
        return times


def instruction_name(op: np.ndarray) -> str:
    kind = Opcode(int(op[0]))
    return f"multiply {op[13]} x {op[14]}" if kind == Opcode.MULTIPLY else kind.name.lower()
