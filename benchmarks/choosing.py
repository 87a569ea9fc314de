"""What choosing the next symbol costs: microseconds a row, and the share of a step that it takes.

    python benchmarks/choosing.py        # some two minutes

Rows are of 49,152 drawn logits, normal with a deviation of 3; a row is chosen on one thread, one way after the other,
the fastest of each. What the scheduler does in Python for it is counted in. `share_of_step` is what a step of the 135M
shape in int8, which 8 texts of 128 symbols share, takes more where it chooses as well, what Python does for that before
and after it counted in: on all cores, the median of the differences to a step just before that does not choose.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from headway.app.recipes import find_model_config
from headway.engine import Engine, RowChunk, quantise
from headway.engine.pool import pool
from headway.generate import Sampler, Sampling
from headway.generate.compiled_sampling import StepSampling
from headway.generate.sampling import row_keys
from headway.generate.torch_sampling import sample_rows
from headway.nn.models import Transformer, build
from measure import write_of_machine

SHAPE, FORM, ROWS, SYMBOLS = "llama-135m", "int8", 8, 49_152
PROMPT = list(range(100, 228))
KINDS: dict[str, Sampling] = {
    "greedy": Sampling(0.0),
    "temperature": Sampling(0.8, seed=1),
    "top_k 40": Sampling(0.8, top_k=40, seed=1),
    "min_p 0.05": Sampling(0.8, min_p=0.05, seed=1),
    "top_p 0.9": Sampling(0.8, top_p=0.9, seed=1),
    "top_k 40, top_p 0.9": Sampling(0.8, top_k=40, top_p=0.9, seed=1),
    "penalties": Sampling(0.0, repetition_penalty=1.1, frequency_penalty=0.2),
}


class Half:
    """A rule that allows every other symbol."""

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0x55555555

    def take(self, token: int) -> None:
        pass


def choosers(sampling: Sampling, top: int = 0, masked: bool = False) -> list[Sampler]:
    keys = row_keys([PROMPT] * ROWS)
    return [Sampler(sampling, key, PROMPT, Half() if masked else None, top) for key in keys]


def fastest(jobs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The least time of each, in turns."""
    best, end = dict.fromkeys(jobs, float("inf")), time.monotonic() + seconds
    while time.monotonic() < end:
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def microseconds(seconds: float) -> dict[str, float]:
    """Of a row on one thread."""
    logits = 3 * torch.randn(ROWS, SYMBOLS, generator=torch.Generator().manual_seed(0))
    ways = {name: choosers(sampling) for name, sampling in KINDS.items()}
    ways["the 5 likeliest"] = choosers(KINDS["greedy"], top=5)
    ways["mask"] = choosers(KINDS["greedy"], masked=True)
    jobs = {name: lambda made=made: sample_rows(logits, range(ROWS), made, pool(1)) for name, made in ways.items()}
    return {name: round(1e6 * least / ROWS, 1) for name, least in fastest(jobs, seconds).items()}


def shares(seconds: float) -> dict[str, Any]:
    """Of a step, for each way to choose."""
    engine = Engine(quantise(cast(Transformer, build(find_model_config(SHAPE), 0)), FORM))
    rows = engine.open(count=ROWS).rows
    engine.compute([RowChunk(row, 0, [(n + 7 * symbol) % SYMBOLS for symbol in PROMPT]) for n, row in enumerate(rows)])
    step = [RowChunk(row, len(PROMPT), [n]) for n, row in enumerate(rows)]
    ways = {name: choosers(sampling) for name, sampling in KINDS.items()}
    plain: list[float] = []
    more: dict[str, list[float]] = {name: [] for name in ways}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, made in ways.items():
            begun = time.perf_counter()
            engine.compute(step)
            between = time.perf_counter()
            choice = StepSampling(made, range(ROWS), SYMBOLS)
            engine.compute(step, choice.batch)
            choice.events()
            plain.append(between - begun)
            more[name].append(time.perf_counter() - between - plain[-1])
    whole = median(plain)
    return {
        "step_milliseconds": round(1e3 * whole, 2),
        "threads": engine.pool.threads,
        "share_of_step": {name: round(median(each) / whole, 4) for name, each in more.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="for each of the two parts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = microseconds(args.seconds)
    torch.set_num_threads(os.cpu_count() or 1)
    step = shares(args.seconds)
    write_of_machine(
        "choosing",
        {"symbols": SYMBOLS, "rows": ROWS, "microseconds_a_row": found, "shape": SHAPE, "form": FORM, **step},
    )


if __name__ == "__main__":
    main()
