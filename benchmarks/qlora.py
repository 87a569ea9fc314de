"""Adapters on frozen weights in fp32, int8 and int4: memory and speed at 1.1 billion parameters, and loss curves.

    python benchmarks/qlora.py                     # both parts; the second writes next to the first
    python benchmarks/qlora.py large               # steps of the shape of TinyLlama 1.1B, 1 x 512 tokens
    python benchmarks/qlora.py curves              # five seeds of a small model of headway on another text

`large` runs each format in a process of its own. Weights are random and made matrix by matrix, as a model is loaded, so
that the peak of the resident memory (VmHWM) covers loading and training. `curves` trains a model on Shakespeare, then
rank-8 adapters on WikiText with each format and seed; seeds choose the order of the data and the adapters' weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from headway.app.recipes import configure_recipe
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.layout import Layout
from headway.learn import Recipe, Run, Task, Trainer
from headway.learn.adapters import LoRAConfig, frozen_formats
from headway.learn.examples import Batch
from headway.learn.fine_tuning import open_new_task, prepare_for_training
from headway.learn.frozen_base import quantise_matrices
from headway.learn.learner import Learner
from headway.learn.memory import training_bytes
from headway.learn.objectives.sequences import Likelihood
from headway.learn.parallel.processes import Processes
from headway.learn.precision import choose_precision
from headway.nn.models import build, outline
from headway.nn.models.presets import decoder
from measure import RESULTS, child, data_folder, report, spread, write

FORMATS = ("fp32", "int8", "int4")
TOKENS, STEPS, RANK = 512, 1, 8
SEEDS, START_STEPS, CURVE_STEPS, CURVE_PERIOD = 5, 150, 40, 10
CURVE: dict[str, Any] = {"train.batch_tokens": 512, "task.context": 64, "train.evaluate_limit": 64}


def adapted(model: Any, dtype: str, seed: int = 1) -> Recipe:
    """The recipe `text` with this model, adapters and a format of the frozen weights."""
    settings = {"train.seed": seed, "train.batch_tokens": TOKENS, "task.context": TOKENS}
    recipe = replace(find_recipe("text"), model=model, adapter=LoRAConfig(RANK, base=dtype))  # type: ignore[arg-type]
    return override(recipe, settings)


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def large(dtype: str, precision: str) -> dict[str, Any]:
    """Peak memory and seconds of steps. Every step has a forward and a backward pass and an update of the adapters."""
    config = decoder(2048, 22, 32, kv_heads=4, hidden=5632, vocab_size=32000, context=TOKENS, tie=False)
    imported, start = resident("VmHWM"), time.perf_counter()
    recipe, whole, generator = adapted(config, dtype), outline(config), torch.Generator().manual_seed(1)
    formats, model = frozen_formats(whole, recipe.adapter), build(config, seed=None)
    for name, parameter in list(model.named_parameters()):
        if parameter.dim() == 2:
            values = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
            if name in formats:
                quantise_matrices(model, {name: (values, formats[name])})
            else:
                parameter.data.copy_(values)
    estimate = training_bytes(recipe, whole)
    task = Task(None, Likelihood())  # type: ignore[arg-type]
    model = prepare_for_training(model, recipe, ())
    learner = Learner(model, recipe, task, Processes(torch.device("cpu")), precision)
    built, ids = time.perf_counter() - start, torch.randint(config.vocab_size, (1, TOKENS + 1), generator=generator)
    batch = Batch((ids[:, :-1], Layout.full(1, TOKENS)), ids[:, 1:].clone(), TOKENS, TOKENS)
    seconds, processor_seconds, losses, loaded = [], [], [], resident("VmHWM")
    for step in range(STEPS):
        start, processor_start = time.perf_counter(), time.process_time()
        update = learner.update(step, [batch])
        losses.append(next(iter(update.losses().values()))[0] / TOKENS)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    return {
        "parameters": sum(parameter.numel() for parameter in outline(config).parameters()),
        "trained": learner.trained,
        "precision": learner.precision,
        "threads": torch.get_num_threads(),
        "estimated_bytes": sum(estimate.values()),
        "imported_bytes": imported,
        "built_bytes": loaded,
        "peak_bytes": resident("VmHWM"),
        "build_seconds": round(built, 1),
        "step_seconds": [round(each, 2) for each in seconds],
        "processor_seconds": [round(each, 2) for each in processor_seconds],
        "tokens_per_core_second": round(TOKENS / min(processor_seconds), 1),
        "load_average": os.getloadavg()[0],
        "losses": [round(each, 4) for each in losses],
    }


def curves() -> dict[str, Any]:
    """Validation losses of each format and seed, and differences from fp32 with the same seed. Formats run at the same
    time, each in a process.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(data_folder() / "lm" / "wikitext-2-raw-valid-test.tar.xz") as archive:
            members = [member for member in archive.getmembers() if member.isfile() and "valid" in member.name]
            (folder / "wikitext.txt").write_bytes(archive.extractfile(members[0]).read()[:300_000])  # type: ignore[union-attr]
        small = decoder(width=128, depth=3, heads=4, kv_heads=4, hidden=None, vocab_size=1, context=64)
        settings = {**CURVE, "train.steps": START_STEPS, "train.evaluate_every": START_STEPS, "task.size": 512}
        plays = data_folder() / "lm" / "tinyshakespeare.txt"
        recipe = configure_recipe(replace(find_recipe("text"), model=small), plays, settings, seed=1)
        first = train(recipe, folder / "first")
        found["start"] = {"parameters": first.summary["parameters"], "loss": first.summary["best"]["loss"]}
        with get_context("spawn").Pool(len(FORMATS)) as processes:
            lines = dict(zip(FORMATS, processes.starmap(curves_of, [(folder, dtype) for dtype in FORMATS])))
    for dtype, losses in lines.items():
        finals = [line[-1] for line in losses]
        differences = [final - plain[-1] for final, plain in zip(finals, lines["fp32"])]
        found[dtype] = {
            "losses": losses,
            "final": spread(finals),
            "deviation": statistics.stdev(finals),
            "differences": differences,
            "mean_difference": statistics.mean(differences),
        }
    return found


def curves_of(folder: Path, dtype: str) -> list[list[float]]:
    """The validation losses of each seed with a format."""
    settings = {**CURVE, "train.steps": CURVE_STEPS, "train.evaluate_every": CURVE_PERIOD, "adapter.base": dtype}
    lines = []
    for seed in range(1, SEEDS + 1):
        recipe = configure_recipe("text", folder / "wikitext.txt", settings, seed, folder / "first", RANK)
        run = train(recipe, folder / f"{dtype}-{seed}")
        lines.append([line["loss"] for line in run.metrics if line.get("split") == "validation"])
        print(dtype, seed, lines[-1], file=sys.stderr, flush=True)
    return lines


def train(recipe: Recipe, directory: Path) -> Run:
    """A run without its report."""
    return Trainer(recipe, open_new_task(recipe, directory), directory, progress=False).fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("large", "curves"))
    parser.add_argument("--format", choices=FORMATS, help="run this format here and print the result")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of products (default: as training chooses)")
    args = parser.parse_args()
    default = choose_precision("auto", outline(decoder(64, 1, 1, 1, None, 64, 64)), torch.device("cpu")).name
    if args.format:
        report(large(args.format, args.precision or default))
        return
    if args.part in (None, "large"):
        precision = args.precision or default
        for dtype in FORMATS:
            part = child("qlora.py", "--format", dtype, "--precision", precision)
            large_parts = stored().get("large", {})
            large_parts.setdefault(precision, {})[dtype] = part
            write("qlora", {**stored(), "large": large_parts})
    if args.part in (None, "curves"):
        losses = curves()
        write("qlora", {**stored(), "curves": losses})


def stored() -> dict[str, Any]:
    """The results so far; both parts may run at the same time."""
    path = RESULTS / "qlora.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: part for name, part in result.items() if name not in ("benchmark", "date", "machine")}


if __name__ == "__main__":
    main()
