"""This machine's limits: the speed of reading memory and of matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch

from headway.bench.measurement import BenchJob, run_job, time_call

_NUM_FLOATS = 1 << 27  # half a gigabyte, far more than the caches
_SIZE, _GPU_SIZE = 2048, 8192  # rows and columns of the matrices
_REPEATS = 8


def measure(job: BenchJob) -> dict[str, float]:
    """For memory-bound work, bytes per second in a plain sum; otherwise FLOP per second in matrix products, in fp32 and
    on a GPU also in bf16.
    """
    torch.set_num_threads(job.threads)
    if job.kind == "decode":
        floats = torch.ones(_NUM_FLOATS, device=job.device)
        return {"read_bytes_per_second": 4 * _NUM_FLOATS / _fastest(floats.sum, job.device)}
    if job.device == "cpu":
        return {"flop_per_second": _products(_SIZE, torch.float32, job.device)}
    return {
        "flop_per_second": _products(_GPU_SIZE, torch.float32, job.device),
        "bf16_flop_per_second": _products(_GPU_SIZE, torch.bfloat16, job.device),
    }


def _products(size: int, dtype: torch.dtype, device: str) -> float:
    left, right, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    return 2 * size**3 / _fastest(lambda: torch.mm(left, right, out=out), device)


def _fastest(work: Callable[[], object], device: str) -> float:
    return min(time_call(work, device) for _ in range(_REPEATS))


if __name__ == "__main__":
    run_job(measure)
