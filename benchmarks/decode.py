"""Decoding on a CPU: tokens a second of the compiled engine in fp32, int8 and int4, beside torch and transformers.

    python benchmarks/decode.py                      # about 5 minutes on 2 cores
    python benchmarks/decode.py --shape llama-1.1b --programs headway-int8 headway-int4

Each program has a process of its own, the programs in turn, so many times as there are repeats. Weights are drawn; a
prompt of 128 symbols is read, then 128 more are written greedily, of which the first 16 warm up. Peak memory is that of
the process at its end. `read_gigabytes_a_second` is what a plain sum over an array larger than the caches reads with
the same threads: no program can be faster than that divided by the bytes of its weights.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, report, spread, write

PROGRAMS = ("headway-fp32", "headway-int8", "headway-int4", "torch", "transformers")
PROMPT, NEW, WARM, REPEATS = 128, 128, 16, 3


def ours(shape: str, program: str, rows: int) -> list[float]:
    """Seconds of each step."""
    import torch

    from headway.engine import Engine, quantise
    from headway.layout import Layout
    from headway.models import Prompt, build
    from headway.models.presets import preset

    model = build(preset(shape)).eval().requires_grad_(False)
    if program != "torch":
        form = program.removeprefix("headway-")
        model = Engine(quantise(model, form))
    seconds = []
    with torch.inference_mode():
        ids = torch.randint(0, model.config.symbols, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
        logits, decoding = model.start(Prompt(ids, Layout.full(rows, PROMPT)), PROMPT + NEW)
        for _ in range(NEW):
            started = time.perf_counter()
            logits, decoding = model.step(logits.argmax(-1), decoding)
            seconds.append(time.perf_counter() - started)
    return seconds


def theirs(shape: str, rows: int) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    from headway.checkpoints.published import save_published
    from headway.models import build
    from headway.models.presets import preset

    config = preset(shape)
    with tempfile.TemporaryDirectory() as folder:
        save_published(build(config), config, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seconds = []
    with torch.inference_mode():
        ids = torch.randint(0, config.symbols, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
        out = model(ids, use_cache=True)
        for _ in range(NEW):
            started = time.perf_counter()
            chosen = out.logits[:, -1:].argmax(-1)
            out = model(chosen, past_key_values=out.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - started)
    return seconds


def one(shape: str, program: str, threads: int, rows: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    seconds = theirs(shape, rows) if program == "transformers" else ours(shape, program, rows)
    return {
        "tokens_a_second": rows / statistics.median(seconds[WARM:]),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def reading(threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    numbers = torch.ones(1 << 28)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return {"read_gigabytes_a_second": numbers.numel() * 4 / best / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-135m")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    common = ["--shape", args.shape, "--rows", str(args.rows), "--threads", str(args.threads)]
    if args.one:
        found = reading(args.threads) if args.one == "read" else one(args.shape, args.one, args.threads, args.rows)
        report(found)
        return
    runs: dict[str, list[dict[str, Any]]] = {program: [] for program in args.programs}
    for _ in range(REPEATS):
        for program in args.programs:
            runs[program].append(child("decode.py", *common, "--one", program))
    result: dict[str, Any] = {
        "what": "tokens a second of greedy decoding after a prompt of 128, by program",
        "shape": args.shape,
        "rows": args.rows,
        "threads": args.threads,
        **child("decode.py", *common, "--one", "read"),
        "programs": {
            program: {
                "tokens_a_second": spread([run["tokens_a_second"] for run in found]),
                "peak_bytes": max(run["peak_bytes"] for run in found),
            }
            for program, found in runs.items()
        },
    }
    write(f"decode-{args.shape}-{args.rows}", result)


if __name__ == "__main__":
    main()
