"""Threads that wait for the next region spinning, briefly or not at all: training alone, and beside a busy program.

    python benchmarks/waiting.py                # about 7 minutes

The steps are those of `headway bench train`, in fp32 on as many threads as there are cores, each run in a process of
its own, the settings in turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from headway.bench.benchmark import BenchRequest, run
from measure import spread, write

SHAPES, REPEATS = ("gpt-1m", "gpt-10m"), 3
# What the environment says: nothing; spin about a thousand times, then sleep (libgomp, which torch brings); sleep.
POLICIES = {"default": {}, "brief": {"GOMP_SPINCOUNT": "1000"}, "asleep": {"OMP_WAIT_POLICY": "PASSIVE"}}


@contextmanager
def neighbour() -> Iterator[None]:
    """A program that takes a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def speed(shape: str, policy: str, beside: bool) -> float:
    """Tokens a second."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    os.environ.update(POLICIES[policy])
    with neighbour() if beside else nullcontext():
        found = run(BenchRequest("train", shape, ("fp32",), threads=os.cpu_count(), repeats=1))
    return found["programs"]["headway fp32"]["tokens_per_second"]["median"]


def main() -> None:
    names = [(policy, beside) for beside in (False, True) for policy in POLICIES]
    result = {}
    for shape in SHAPES:
        found: dict[tuple[str, bool], list[float]] = {name: [] for name in names}
        for _ in range(REPEATS):
            for (policy, beside), values in found.items():
                values.append(round(speed(shape, policy, beside), 1))
        told = {
            where: {policy: spread(found[policy, beside]) for policy in POLICIES}
            for where, beside in (("alone", False), ("beside_another", True))
        }
        ratios = {
            where: {name: round(v["median"] / values["default"]["median"], 3) for name, v in values.items()}
            for where, values in told.items()
        }
        result[shape] = {"over_default": ratios, **told}
    write("waiting", {"what": "tokens a second of training by the policy of waiting threads", "shapes": result})


if __name__ == "__main__":
    main()
