"""Timeline of a program: when each thread starts and ends each instruction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from headway.engine.codegen import I64, Int, call, kernel
from headway.engine.instructions import SIZE, WORDS, Opcode
from headway.engine.interpreter import execute_all
from headway.engine.machine import compiled, i64


@kernel
def _ticks() -> Int:
    """The processor's cycle counter."""
    return call("readcyclecounter", I64)


@compiled
def run_timed(
    program: int, count: int, tokens: int, positions: int, batch: int, scratch: int, counter: int, thread: int,
    threads: int, ticks: int,
) -> None:  # fmt: skip
    """`interpreter.run_all_step` without sampling that also writes to `ticks`, per thread, the time before each
    instruction and after the last.
    """
    times, number, rows = i64(ticks + 8 * thread * (count + 1)), 0, batch
    while number < count:
        now, row = _ticks(), program + SIZE * number
        skipped, rows = execute_all(row, tokens, positions, batch, rows, scratch, counter, thread, threads)
        for _ in range(1 + skipped):
            times[number] = now
            number += 1
    times[number] = _ticks()


class StepTimeline:
    """The timeline of an engine's steps while it is the engine's `timeline`."""

    def __init__(self) -> None:
        self.steps: list[tuple[np.ndarray, np.ndarray, float]] = []  # the table, [threads, N + 1] ticks, and seconds

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
    if kind != Opcode.MULTIPLY:
        return kind.name.lower()
    return f"multiply {op[WORDS[kind]['total_rows']]} x {op[WORDS[kind]['columns']]}"
