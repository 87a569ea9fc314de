"""Decoding far into a context on a CPU: tokens a second by weights, cache and position.

    python benchmarks/context.py                     # about 5 minutes on 2 cores, and 6 GB of memory

Each form of the weights has a process of its own. Weights are drawn, and so are the keys and values of the positions
before, which torch need not compute then. `cache_bytes` are those of the blocks that are held, `of_the_first` is the
part of the rate at the first position that is left.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from measure import child, report, spread, write_of_machine

FORMS = ("fp32", "int8")
CACHES = ("fp32", "fp16", "int8")
POSITIONS = (128, 1024, 2048, 4096, 8192, 16384, 32768)
REPEATS, STEPS, WARM = 3, 12, 4


def speeds(shape: str, form: str, threads: int) -> dict[str, Any]:
    """Of one form of the weights, by cache and position."""
    import torch

    from headway.engine import Engine, quantise
    from headway.layout import Layout
    from headway.nn.models import Prompt, build
    from headway.nn.models.presets import preset

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = quantise(build(preset(shape)).eval().requires_grad_(False), form)  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    with torch.inference_mode():
        one = Prompt(torch.ones(1, 1, dtype=torch.int64), Layout.full(1, 1))
        _, drawn = model.start(one, POSITIONS[-1] + 1)  # type: ignore[operator]
        for state in drawn.states:
            for part in state:
                part.normal_()
        for cache in CACHES:
            engine = Engine(model, threads, cache=cache)  # type: ignore[arg-type]
            found[cache] = {}
            for position in POSITIONS:
                kept = engine.adopt(drawn.at(torch.tensor([position])))
                size = engine.cache_bytes
                rates = [rate(engine, kept) for _ in range(REPEATS)]
                found[cache][str(position)] = {"tokens_a_second": spread(rates), "cache_bytes": size}
                del kept
            first = found[cache][str(POSITIONS[0])]["tokens_a_second"]["max"]
            for measured in found[cache].values():
                measured["of_the_first"] = measured["tokens_a_second"]["max"] / first
    return found


def rate(engine: Any, kept: Any) -> float:
    """Steps a second, by the median."""
    import torch

    taken, symbol = [], torch.tensor([1])
    for _ in range(WARM + STEPS):
        started = time.perf_counter()
        logits, kept = engine.step(symbol, kept)
        symbol = logits.argmax(-1)
        taken.append(time.perf_counter() - started)
    return 1 / statistics.median(taken[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        report(speeds(args.shape, args.one, args.threads))
        return
    common = ["--shape", args.shape, "--threads", str(args.threads)]
    weights = {form: child("context.py", *common, "--one", form) for form in FORMS}
    write_of_machine(
        "context",
        {
            "what": "tokens a second of decoding one sequence at a position, by weights, cache and position",
            "shape": args.shape,
            "threads": args.threads,
            "weights": weights,
        },
    )


if __name__ == "__main__":
    main()
