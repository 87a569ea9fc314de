"""Decoding alone and beside a program that takes half of a core, and what a plain read of as many bytes takes.

    python benchmarks/neighbour.py                             # about 2 minutes
    python benchmarks/neighbour.py --beside BIN MODEL.gguf     # and llama-bench, which is in that folder

The other program works for 5 ms and sleeps for 5 ms, on the last core or wherever the system puts it. All that is
compared is measured in one process, by short turns, and the other program is stopped while it is not its turn.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from headway.app.recipes import find_model_config
from headway.bench.benchmark import without_dropout
from headway.bench.measurement import time_call
from headway.engine import Engine, PackedTensor, quantise
from headway.engine.pool import pool
from headway.generate.prompts import make_prompt
from headway.generate.torch_sampling import argmax
from headway.nn.models import build
from measure import child, report, spread, write_of_machine

SHAPE, PROMPT, STEPS, TURNS = "llama-135m", 64, 20, 12
CASES = [("int8", rows, threads) for rows in (1, 8) for threads in (1, 2)] + [("fp32", 1, 2), ("int4", 1, 2)]
PLACES = ("alone", "pinned", "anywhere")
_HALF = """
import os, sys, time
if len(sys.argv) > 1:
    os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    end = time.perf_counter() + 0.005
    while time.perf_counter() < end:
        pass
    time.sleep(0.005)
"""


@contextmanager
def neighbours() -> Iterator[dict[str, subprocess.Popen[bytes] | None]]:
    """The other program of each place, stopped."""
    cores = {"pinned": [str(max(os.sched_getaffinity(0)))], "anywhere": []}
    started = {place: subprocess.Popen([sys.executable, "-c", _HALF, *core]) for place, core in cores.items()}
    try:
        time.sleep(0.5)
        for process in started.values():
            process.send_signal(signal.SIGSTOP)
        yield {"alone": None, **started}
    finally:
        for process in started.values():
            process.kill()
            process.wait()


@contextmanager
def going(process: subprocess.Popen[bytes] | None) -> Iterator[None]:
    if process is None:
        yield
        return
    process.send_signal(signal.SIGCONT)
    yield
    process.send_signal(signal.SIGSTOP)


@torch.inference_mode()
def part(form: str, rows: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(1)  # a sum is that of one thread
    config: Any = without_dropout(find_model_config(SHAPE))
    model: Any = build(config, 0).eval().requires_grad_(False)
    quantise(model, form)  # type: ignore[arg-type]
    engine, draw = Engine(model, threads=threads), random.Random(0)
    prompts = [[draw.randrange(config.vocab_size) for _ in range(PROMPT)] for _ in range(rows)]
    logits, start = engine.start(make_prompt(prompts, None, torch.device("cpu")), PROMPT + STEPS)
    weights = {id(weight): weight for weight in model.parameters()}.values()
    size = sum(w.packed.bytes if isinstance(w, PackedTensor) else w.nbytes for w in weights)
    numbers = torch.ones(size // 4).chunk(threads)

    def read_share(thread: int) -> None:
        numbers[thread].sum()

    def steps() -> list[float]:
        said, decoding, took = logits, start, []
        for _ in range(STEPS):
            began = time.perf_counter()
            said, decoding = engine.step(argmax(said), decoding)
            took.append(time.perf_counter() - began)
        return took

    rates: dict[str, list[float]] = {place: [] for place in PLACES}
    alone, read = [], []
    with neighbours() as others:
        for _ in range(TURNS):
            read.append(time_call(lambda: pool(threads).run(read_share)))
            for place in PLACES:
                with going(others[place]):
                    took = steps()
                rates[place].append(round(rows * STEPS / sum(took), 1))
                alone += took if place == "alone" else []
    middle = {place: statistics.median(values) for place, values in rates.items()}
    return {
        "tokens_per_second": {place: spread(values) for place, values in rates.items()},
        "beside_over_alone": {place: round(middle[place] / middle["alone"], 3) for place in PLACES[1:]},
        "weight_bytes": size,
        "least_ms": {"step": round(1e3 * min(alone), 3), "plain_read": round(1e3 * min(read), 3)},
    }


def peer(programs: str, model: str) -> dict[str, Any]:
    """llama.cpp with two threads, one row."""
    words = [str(Path(programs) / "llama-bench"), "-m", model, "-p", "0", "-n", str(STEPS * 3), "-t", "2", "-o", "json"]
    rates: dict[str, list[float]] = {place: [] for place in PLACES}
    with neighbours() as others:
        for _ in range(3):
            for place in PLACES:
                with going(others[place]):
                    told = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                rates[place] += [round(each, 1) for each in json.loads(told)[0]["samples_ts"]]
    middle = {place: statistics.median(values) for place, values in rates.items()}
    return {
        "tokens_per_second": {place: spread(values) for place, values in rates.items()},
        "beside_over_alone": {place: round(middle[place] / middle["alone"], 3) for place in PLACES[1:]},
    }


def main() -> None:
    result = {}
    if sys.argv[1:2] == ["--beside"]:
        result["llama.cpp, 1 rows, 2 threads"] = peer(*sys.argv[2:])
        print(result, file=sys.stderr)
    for form, rows, threads in CASES:
        name = f"{form}, {rows} rows, {threads} threads"
        result[name] = child("neighbour.py", form, str(rows), str(threads))
        print(name, result[name]["beside_over_alone"], result[name]["least_ms"], file=sys.stderr)
    what = f"decoding of {SHAPE} alone and beside a program that takes half a core"
    write_of_machine("neighbour", {"what": what, **result})


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] != "--beside":
        report(part(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
