"""Each form of the engine's integer products: what it reads a second for one row, and computes a second for many.

    python benchmarks/forms.py        # about a minute

Each form has a process of its own, on one thread, which makes believe that the processor has no better one. A matrix of
2,048 x 2,048 is multiplied with 1, 8 and 128 rows of numbers, which are rounded already; the fastest of 30 products
counts.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from measure import child, report, write

FORMS: dict[str, dict[str, bool]] = {
    "portable": {},
    "avx2": {"avx2": True},
    "vnni, 32 bytes": {"avx2": True, "avxvnni": True},
    "vnni, 64 bytes": {"avx2": True, "avx512vnni": True, "avx512vl": True},
    "matrix unit": {"avx2": True, "avx512vnni": True, "avx512vl": True, "amx-tile": True, "amx-int8": True},
}
SIZE, ROWS, REPEATS = 2048, (1, 8, 128), 30


def pretend(features: dict[str, bool]) -> bool:
    """Whether the processor has these; it seems to have no others from now on."""
    from llvmlite import binding

    own = binding.get_host_cpu_features()

    class Found(dict[str, bool]):
        def flatten(self) -> str:
            return own.flatten()

    binding.get_host_cpu_features = lambda: Found(features)
    return all(own.get(name) for name in features)


def part(form: str) -> None:
    if not pretend(FORMS[form]):
        report({"skipped": "this processor has no such instructions"})
        return
    import numpy as np
    import torch

    from headway.engine.packed_weights import pack
    from headway.engine.products import SCRATCH_BYTES, multiply, quantise
    from headway.engine.tiles import GROUP

    found: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    groups, room = SIZE // GROUP, np.zeros(SCRATCH_BYTES, np.uint8)
    for weights in ("int8", "int4"):
        packed = pack(torch.randn(SIZE, SIZE, generator=generator), weights)
        assert packed.scales is not None
        for rows in ROWS:
            x, y = torch.randn(rows, SIZE, generator=generator), torch.empty(rows, SIZE)
            q, scales = np.zeros((rows, SIZE), np.int8), np.zeros((rows, groups), np.float32)
            sums = np.zeros((rows, groups), np.int32)
            places = (q.ctypes.data, scales.ctypes.data, sums.ctypes.data)
            quantise(packed.kind, x.data_ptr(), 4 * SIZE, SIZE, *places, 0, rows)
            seconds = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                multiply(
                    packed.kind, packed.weights.data_ptr(), packed.scales.data_ptr(), 0, *places, SIZE, y.data_ptr(),
                    4 * SIZE, 0, 0, 0, 0, SIZE, SIZE, SIZE, rows, 0, 0, np.float32(0), np.float32(1), room.ctypes.data,
                    0, 0, 1,
                )  # fmt: skip
                seconds.append(time.perf_counter() - started)
            best = min(seconds)
            found[f"{weights}, rows {rows}"] = {
                "gigabytes_a_second": packed.bytes / best / 1e9,
                "gigaoperations_a_second": 2 * rows * SIZE * SIZE / best / 1e9,
            }
    report(found)


def main() -> None:
    write("forms", {"size": SIZE, "threads": 1, "forms": {form: child("forms.py", "part", form) for form in FORMS}})


if __name__ == "__main__":
    if sys.argv[1:2] == ["part"]:
        part(sys.argv[2])
    else:
        main()
