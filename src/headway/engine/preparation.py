"""Compiles what models need to generate into the cache of machine code, before one is used: `python -m` this module.

It imports the compiler but not torch.
"""

from __future__ import annotations

from headway.engine.interpreter import run_all_step, run_step
from headway.engine.machine import INT, CompiledFunction
from headway.engine.sampling_kernels import find_top_k_share, sample_batch

FUNCTIONS: tuple[CompiledFunction, ...] = (run_step, sample_batch, run_all_step, find_top_k_share)


def prepare() -> None:
    """Compile what is not in the cache yet. All arguments of these functions are addresses and counts."""
    for function in FUNCTIONS:
        function.compile((INT,) * function.function.__code__.co_argcount)


if __name__ == "__main__":
    prepare()
