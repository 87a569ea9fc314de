"""This machine's limits: the speed of reading memory and of fp32 matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from headway.bench.benchmark import BenchJob, run_job

_NUM_FLOATS = 1 << 27  # half a gigabyte, far more than the caches
_SIZE = 2048
_REPEATS = 8


def measure(job: BenchJob) -> dict[str, float]:
    """For memory-bound work, bytes per second in a plain sum; otherwise FLOP per second in matrix products."""
    torch.set_num_threads(job.threads)
    if job.kind == "decode":
        floats = torch.ones(_NUM_FLOATS)
        return {"read_bytes_per_second": 4 * _NUM_FLOATS / _fastest(floats.sum)}
    left, right, out = torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE), torch.empty(_SIZE, _SIZE)
    return {"flop_per_second": 2 * _SIZE**3 / _fastest(lambda: torch.mm(left, right, out=out))}


def _fastest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    run_job(measure)
