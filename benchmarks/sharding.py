"""Models that processes share: what they learn without exact sums, their memory, and graph breaks of compiled blocks.

    python benchmarks/sharding.py                  # all parts
    python benchmarks/sharding.py learned          # 20 steps, compared with one process, in float64 and fp32
    python benchmarks/sharding.py memory           # peak memory of a process above that of an idle one
    python benchmarks/sharding.py breaks [MIXER]   # graph breaks of a block, per mixer

Each process has one thread. Memory is the peak of resident memory during a step, above what the process had after it
trained a small model, next to what `headway plan --gpus` computes for fp32 and to what PyTorch's MemTracker counts in
another run of the step. The C library returns freed memory at once, so the peak is that of memory in use. Graph breaks
are counted by torch's `explain`, and their numbers may only shrink.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from headway.app.recipes import load_recipe
from headway.config import override
from headway.config_kinds import kinds
from headway.errors import ConfigError
from headway.layout import Layout
from headway.learn import Recipe, Task
from headway.learn.examples import FULL_SHARD, Batch, Examples, Shard
from headway.learn.fine_tuning import initial_rows
from headway.learn.learner import Learner
from headway.learn.objective import Objective
from headway.learn.parallel.processes import Processes
from headway.learn.plan.ranks import measure_demand, rank_memory
from headway.nn.mixers import MixerConfig
from headway.nn.models import BlockConfig, Loss, Stack, StackConfig, build
from headway.nn.models.presets import gpt
from measure import RESULTS, write

for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
    os.environ[name] = "131072"  # bytes
_FORKING = get_context("forkserver")
STEPS, ACCUMULATE, SYMBOLS = 20, 4, 8192
TOLERANCES = {"float64": 1e-9, "float32": 1e-5}
PLANS = {"1": (1, 1), "1 x 2": (1, 2), "1 x 4": (1, 4), "2 x 2": (2, 2)}  # replicas and shards
SMALL, LARGE = (32, 2, 2, 64, 32), (512, 8, 8, 2 * SYMBOLS, 256)  # width, depth, heads, symbols, context


class Ids(Examples):
    """Random ids, as many rows as `rows`."""

    def __init__(self, symbols: int, context: int, rows: int) -> None:
        self.shape, self.symbols = (rows, context + 1), symbols

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        return map(self.batch, shard.indices(start))

    def batch(self, k: int) -> Batch:
        ids = torch.randint(self.symbols, self.shape, generator=torch.Generator().manual_seed(k))
        return Batch((ids[:, :-1],), ids[:, 1:], ids[:, 1:].numel(), ids[:, 1:].numel())


class NextId(Objective[Ids]):
    def loss(self, model: Any, batch: Batch) -> dict[str, Loss]:
        return {"loss": model.heads["vocabulary"].loss(model(*batch.inputs).x, batch.targets)}


def memory_bytes(name: str) -> int:
    """A number of this process in /proc/self/status: VmRSS, or VmHWM, its peak since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def tracked_bytes(tracker: MemTracker) -> int:
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def open_run(task: dict[str, Any], large: bool) -> tuple[Recipe, Task]:
    """The recipe of a plan, and its task."""
    replicas, shards = PLANS[task["plan"]]
    width, depth, heads, symbols, context = LARGE if large else SMALL
    settings = {"train.accumulate": ACCUMULATE, "train.recompute": task["recompute"], "parallel.exact": False}
    settings |= {"parallel.replicas": replicas, "parallel.shard": shards, "optim.kind": task["optim"]}
    model_config = gpt(width, depth, heads, symbols, context, dropout=0.0)
    recipe = replace(override(load_recipe("text"), settings), model=model_config)
    return recipe, Task(Ids(symbols, context, 2), NextId())


def train(
    processes: Processes, task: dict[str, Any], large: bool, tracker: MemTracker | None = None
) -> tuple[Learner, list[float]]:
    """Train a model for a few steps as one process of a plan; return its losses. The tracker sees a large model's."""
    recipe, opened = open_run(task, large)
    examples = cast(Ids, opened.examples)
    with initial_rows(recipe, processes):
        model = build(recipe.model, 1)
    learner = Learner(model.to(getattr(torch, task["dtype"])), recipe, opened, processes)
    count, losses = processes.local_micro_batches(ACCUMULATE), []
    for step in range(1 if large else STEPS):
        first = step * ACCUMULATE + processes.rank
        batches = [examples.batch(first + index * processes.world) for index in range(count)]
        if tracker is not None:
            known = [value for value in gc.get_objects() if type(value) in (torch.Tensor, nn.Parameter)]
            tracker.track_external(learner.model, *known)
        with tracker or nullcontext():
            total, number = learner.update(step, batches).losses()["loss"]
        losses.append(total / number)
    return learner, losses


def work(rank: int, port: int, task: dict[str, Any], folder: str) -> None:
    """Train as process `rank`, and write what was learned or the peak of memory."""
    replicas, shards = PLANS[task["plan"]]
    world = {"WORLD_SIZE": str(replicas * shards), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ.update(world, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with Processes(torch.device("cpu")) as processes:
        learner, losses = train(processes, task, large=False)
        with learner.evaluating() as trained:
            found: dict[str, Any] = {"losses": losses, "weights": dict(trained.state_dict())} if rank == 0 else {}
            if rank == 0 and not task["large"]:
                torch.save(found, Path(folder) / "found")
        if task["large"]:
            del learner
            idle = memory_bytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # start a new peak
            tracker = MemTracker() if task["tracked"] and rank == 0 else None
            train(processes, task, large=True, tracker=tracker)
            if rank == 0:
                peak = memory_bytes("VmHWM") - idle if tracker is None else tracked_bytes(tracker)
                torch.save({"peak": peak, "idle": idle}, Path(folder) / "found")


def run(
    folder: str,
    plan: str,
    dtype: str = "float32",
    optim: str = "adamw",
    large: bool = False,
    recompute: int = 0,
    tracked: bool = False,
) -> dict[str, Any]:
    """What the main process of a plan found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    task = {"plan": plan, "dtype": dtype, "optim": optim, "large": large, "recompute": recompute, "tracked": tracked}
    world = PLANS[plan][0] * PLANS[plan][1]
    started = [_FORKING.Process(target=work, args=(rank, port, task, folder)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        sys.exit(f"a process of {plan} failed")
    return torch.load(Path(folder) / "found", weights_only=True)


def learned(folder: str) -> dict[str, Any]:
    """The largest differences from one process of losses and weights."""
    result: dict[str, Any] = {}
    for optim in ("adamw", "muon"):
        for dtype, tolerance in TOLERANCES.items():
            alone = run(folder, "1", dtype, optim)
            for plan in list(PLANS)[1:]:
                found = run(folder, plan, dtype, optim)
                losses = max(abs(a - b) for a, b in zip(found["losses"], alone["losses"]))
                weights = max(float((found["weights"][key] - w).abs().max()) for key, w in alone["weights"].items())
                row = {"losses": losses, "weights": weights, "within": max(losses, weights) <= tolerance}
                result[f"{optim} {dtype} {plan}"] = row
                print(optim, dtype, plan, row, file=sys.stderr, flush=True)
    return result


def memory(folder: str) -> dict[str, Any]:
    """Peak bytes of a process above an idle one."""
    result = {}
    for plan in ("1", "1 x 4"):
        for recompute in (0, 1):
            found = run(folder, plan, large=True, recompute=recompute)
            demand = measure_demand(*open_run({"plan": plan, "recompute": recompute, "optim": "adamw"}, True), 4)
            parts = rank_memory(demand, PLANS[plan][1])
            row = {"peak_above_idle": found["peak"], "planned": sum(parts.values()), "planned_parts": parts}
            one_batch = PLANS[plan][1] == ACCUMULATE  # the tracker takes no second one
            if one_batch:
                row["tracked"] = run(folder, plan, large=True, recompute=recompute, tracked=True)["peak"]
            result[f"{plan}, recompute {recompute}"] = {**row, "idle": found["idle"]}
            print(plan, recompute, row, file=sys.stderr, flush=True)
    return result


def breaks(names: list[str]) -> dict[str, Any]:
    """Graph breaks of a block per mixer, in its forward pass over whole documents."""
    result: dict[str, Any] = {}
    for name, kind in kinds(MixerConfig).items():
        if names and name not in names:
            continue
        torch._dynamo.reset()
        layout = Layout.full(2, 8)
        try:
            block: Any = Stack(StackConfig(blocks=(BlockConfig(kind()),)), 16).blocks[0]
            for parameter in block.parameters():
                nn.init.normal_(parameter, std=0.1)
            explained = torch._dynamo.explain(lambda x, block=block, layout=layout: block(x, layout).x)(
                torch.randn(2, 8, 16, requires_grad=True)
            )
        except ConfigError as error:  # a mixer that has settings without defaults, or needs an encoder
            result[name] = str(error)
            continue
        contexts = [str(reason.reason).partition("Developer debug context: ")[2] for reason in explained.break_reasons]
        reasons = {context.split("\n")[0] for context in contexts}
        result[name] = {"breaks": explained.graph_break_count, "reasons": sorted(reasons)}
        print(name, result[name]["breaks"], file=sys.stderr, flush=True)
    return result


def main(part: str | None, names: list[str]) -> None:
    path = RESULTS / "sharding.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    result = {name: before[name] for name in ("learned", "memory", "breaks") if name in before}
    with TemporaryDirectory() as folder:
        if part in (None, "learned"):
            result["learned"] = learned(folder)
        if part in (None, "memory"):
            result["memory"] = memory(folder)
        if part in (None, "breaks"):
            result["breaks"] = {**result.get("breaks", {}), **breaks(names)}
    write("sharding", {"steps": STEPS, "tolerances": TOLERANCES, **result})
    old = {name: row["breaks"] for name, row in before.get("breaks", {}).items() if isinstance(row, dict)}
    new = {name: row["breaks"] for name, row in result.get("breaks", {}).items() if isinstance(row, dict)}
    more = [name for name in old if new.get(name, 0) > old[name]]
    far = [name for name, row in result.get("learned", {}).items() if not row["within"]]
    if more or far:
        sys.exit(f"more graph breaks: {more}; too far from one process: {far}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("learned", "memory", "breaks"))
    parser.add_argument("mixers", nargs="*", metavar="MIXER", help="mixers to count graph breaks of (default: all)")
    args = parser.parse_args()
    main(args.part, args.mixers)
