"""Training on a CPU: tokens a second of a step, ours beside transformers' GPT-2 of the same shape, both in fp32.

    python benchmarks/training.py               # about 5 minutes on 2 cores
    python benchmarks/training.py --shapes small --repeats 1 --threads 1    # a trial that writes nothing

A step draws a batch, runs forward and backward, clips the gradient at 1 and updates by AdamW. Ours is what
`headway train` does at each step (Learner), with the log's figures read every 20 steps; the peer is a plain loop with
torch's fused AdamW. Both are the same function with as many parameters, without dropout. `headway-passive` is ours with
threads that sleep while they wait (OMP_WAIT_POLICY=PASSIVE), `headway-bf16` with factors of products rounded to bf16,
as the trainer does where that is faster; neither is compared. Each program has a process of its own, the programs in
turn. Work is counted as 6 flop a parameter and token; `product_gigaflops` is what torch's product of two large matrices
gives in fp32 with the same threads.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from measure import child, report, spread, write

# rows and context of a step; `small` is nanoGPT's size for a CPU: width 128, 4 layers, 4 heads
SHAPES = {"small": (12, 64), "gpt-10m": (8, 256), "gpt-30m": (8, 256)}
PROGRAMS = ("headway", "transformers")
BESIDE = {"small": ("headway-passive", "headway-bf16")}
SECONDS, WARM, LEAST, REPEATS, READ_EVERY = 7.0, 2, 3, 3, 20
TEXT = 1 << 20  # symbols that batches are drawn from
LARGE = 2048


def shape_config(shape: str) -> Any:
    from headway.config import override
    from headway.models.presets import gpt, preset

    config = gpt(128, 4, 4, symbols=65, context=64) if shape == "small" else preset(shape)
    return override(config, {"dropout": 0.0})


def headway(shape: str, precision: str) -> tuple[int, Callable[[int], None]]:
    """Parameters, and a function that trains step k."""
    import numpy as np
    import torch

    from headway.data import Crops, Spans
    from headway.domains.text.batches import Rows, TextBatch
    from headway.domains.text.task import LanguageConfig
    from headway.models import Loss, build
    from headway.train import AdamWConfig, Recipe, TrainConfig
    from headway.train.distributed import Processes
    from headway.train.learner import Learner, Update
    from headway.train.task import WHOLE

    rows, context = SHAPES[shape]
    config = shape_config(shape)
    ids = np.random.default_rng(0).integers(0, config.symbols, TEXT, dtype=np.uint16)
    crops = Crops(ids, Spans(np.zeros(1, np.int64), np.full(1, TEXT)), context)

    class Drawn:
        def loss(self, model: Any, batch: TextBatch) -> dict[str, Loss]:
            return {"loss": model.heads["vocabulary"].loss(model(batch.inputs, batch.layout).x, batch.labels)}

    train = TrainConfig(steps=100_000, batch_size=rows)
    recipe = Recipe("training", "text", "", (), config, LanguageConfig(), AdamWConfig(), train=train)
    alone = Processes(torch.device("cpu"))
    learner = Learner(build(config, 0), recipe, Drawn(), alone, precision)  # type: ignore[arg-type]
    stream = Rows(crops).endless(rows, 0, WHOLE, 0)
    updates: list[Update] = []

    def step(number: int) -> None:
        updates.append(learner.update(number, [next(stream)]))
        if len(updates) == READ_EVERY:
            sum(update.losses()["loss"][0] + update.norm.item() for update in updates)
            updates.clear()

    return learner.trained, step


def transformers(shape: str) -> tuple[int, Callable[[int], None]]:
    """As `headway`."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    rows, context = SHAPES[shape]
    config = shape_config(shape)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.symbols, TEXT))
    torch.manual_seed(0)
    attention = config.stack.blocks[0].mixer.heads
    dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.symbols,
            n_positions=context,
            n_embd=config.width,
            n_layer=len(config.stack.blocks),
            n_head=attention,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            **dropped,
        )
    )
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    random, offsets = np.random.default_rng(1), torch.arange(context)

    def step(number: int) -> None:
        starts = torch.from_numpy(random.integers(0, TEXT - context - 1, rows))
        x, y = (ids[starts[:, None] + offsets + shift] for shift in (0, 1))
        logits = model(x).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % READ_EVERY == 0:
            loss.item()

    return sum(p.numel() for p in model.parameters()), step


def one(shape: str, program: str, threads: int, seconds: float) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    from headway.train.heap import kept_heap

    if program == "transformers":
        parameters, step = transformers(shape)
    else:
        parameters, step = headway(shape, "bf16" if program.endswith("bf16") else "fp32")
    with nullcontext() if program == "transformers" else kept_heap():  # as the trainer does
        times = timed(step, seconds)
    rows, context = SHAPES[shape]
    return {
        "tokens_a_second": rows * context / statistics.median(times),
        "parameters": parameters,
        "steps": len(times),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def timed(step: Callable[[int], None], seconds: float) -> list[float]:
    """Seconds of each step after the first few."""
    times: list[float] = []
    begun = time.perf_counter()
    for number in range(10**9):
        started = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - started)
        if len(times) >= WARM + LEAST and time.perf_counter() - begun > seconds:
            break
    return times[WARM:]


def product(threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    one, other = torch.rand(LARGE, LARGE), torch.rand(LARGE, LARGE)
    best = float("inf")
    for _ in range(12):
        started = time.perf_counter()
        one @ other
        best = min(best, time.perf_counter() - started)
    return {"product_gigaflops": 2 * LARGE**3 / best / 1e9}


@contextmanager
def policy(wait: str | None) -> Iterator[None]:
    """OMP_WAIT_POLICY for the processes started within."""
    before = os.environ.pop("OMP_WAIT_POLICY", None)
    os.environ.update({} if wait is None else {"OMP_WAIT_POLICY": wait})
    try:
        yield
    finally:
        os.environ.pop("OMP_WAIT_POLICY", None)
        os.environ.update({} if before is None else {"OMP_WAIT_POLICY": before})


def summary(runs: dict[str, list[dict[str, Any]]], peak: float) -> Iterator[tuple[str, dict[str, Any]]]:
    for program, found in runs.items():
        speed = spread([round(run["tokens_a_second"], 1) for run in found])
        work = 6 * found[0]["parameters"] * speed["median"] / 1e9
        yield (
            program,
            {
                "tokens_a_second": speed,
                "gigaflops": round(work, 1),
                "share_of_product": round(work / peak, 3),
                "parameters": found[0]["parameters"],
                "peak_bytes": max(run["peak_bytes"] for run in found),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    common = ["--threads", str(args.threads), "--seconds", str(args.seconds)]
    if args.one:
        shape, program = args.one
        report(product(args.threads) if program == "product" else one(shape, program, args.threads, args.seconds))
        return
    peak = child("training.py", *common, "--one", "large", "product")["product_gigaflops"]
    result: dict[str, Any] = {
        "what": "tokens a second of training steps in fp32, and 6 flop a parameter and token",
        "threads": args.threads,
        "product_gigaflops": round(peak, 1),
        "shapes": {},
    }
    for shape in args.shapes:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*PROGRAMS, *BESIDE.get(shape, ()))}
        for _ in range(args.repeats):
            for program, found in runs.items():
                with policy("PASSIVE" if program == "headway-passive" else None):
                    found.append(child("training.py", *common, "--one", shape, program))
        programs = dict(summary(runs, peak))
        ours, theirs = (programs[program]["tokens_a_second"]["median"] for program in PROGRAMS)
        rows, context = SHAPES[shape]
        result["shapes"][shape] = {"rows": rows, "context": context, "ratio": round(ours / theirs, 3), **programs}
    if args.repeats == REPEATS and args.shapes == list(SHAPES):
        write("training", result)
    else:
        report(result)


if __name__ == "__main__":
    main()
