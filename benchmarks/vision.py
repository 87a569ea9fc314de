"""Models of images: Fashion-MNIST in 45 minutes, and the speed of training and use beside transformers.

    python benchmarks/vision.py fashion --threads 2 [--minutes 45] [--steps N] [--run DIR]     # resumable
    python benchmarks/vision.py speed --threads 2               # a few minutes; wants a quiet machine

`fashion` trains the recipe: settings were chosen by a part of the training images, the test images are read once, at
the end. `core_seconds` are those of all threads. `speed` measures both programs on the same drawn pixels, in
processes of their own, in turn: images a second of a training step (forward, backward, clipping, AdamW) and of the
logits of a batch, and the most memory that the process had. The shapes are vit-ti16 at 224 x 224, and the width and
depth of the recipe fashion-mnist with a linear stem and a class token, which transformers has.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import child, report, since_start, spread, timeline, write

REPEATS = 3  # processes of each program and shape
SHAPES = {"vit-ti16": (16, 32), "fashion": (128, 128)}  # images of a training step, of a batch in use
PRECISIONS = ("fp32", "bf16")


def fashion(args: argparse.Namespace) -> dict[str, Any]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        place = Path(args.run or f"{folder}/run")
        settings = {"train.steps": args.steps} if args.steps else {}
        minutes = None if args.steps else args.minutes
        run = hw.train(
            "fashion-mnist",
            run=place,
            set=settings,
            minutes=minutes,
            seed=args.seed,
            threads=args.threads,
            resume=True,
            spent=since_start(),
        )
        before, evaluations = timeline(run)
        return {
            "minutes_asked": minutes,
            "settings": settings,
            "seed": args.seed,
            "threads": run.summary["threads"],
            "parameters": run.summary["parameters"],
            "precision": run.summary["precision_reason"],
            "steps": run.summary["steps"],
            "images": run.summary["tokens"],
            "core_seconds": round(time.process_time(), 1),
            "seconds_in_all": round(since_start(), 1),
            "peak_bytes": peak(),
            "curve": [
                {"seconds": round(before + e["seconds"], 1), "step": e["step"], "accuracy": e["accuracy"]}
                for e in evaluations
            ],
            "test": run.summary["scores"],
        }


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def config(shape: str) -> Any:
    from headway.nn.models.presets import preset, vit

    if shape == "vit-ti16":
        return preset("vit-ti16")
    small = vit(128, 6, 4, 4, classes=10, size=28)
    return replace(small, embed=replace(small.embed, channels=1))


def drawn(shape: str, count: int) -> tuple[Any, Any]:
    import torch

    found = config(shape)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, found.embed.channels, *found.embed.size, generator=generator)
    return images, torch.randint(found.heads["classes"].outputs, (count,), generator=generator)


def ours(shape: str, precision: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A training step and a batch in use, of headway."""
    import torch

    from headway.domains import recipe as find_recipe
    from headway.learn import AdamWConfig
    from headway.learn.examples import Batch
    from headway.learn.learner import Learner
    from headway.learn.objectives.classes import Classification
    from headway.learn.parallel.processes import Processes
    from headway.learn.precision import products
    from headway.nn.models import build

    many, use = SHAPES[shape]
    model: Any = build(config(shape))
    recipe = replace(find_recipe("vision"), optim=AdamWConfig(lr=1e-4))
    task: Any = Classification("image")
    cpu = torch.device("cpu")
    learner = Learner(model, recipe, task, Processes(cpu), precision)
    pixels, labels = drawn(shape, many)
    batch, images = Batch((pixels,), labels, many, many), drawn(shape, use)[0]

    def logits() -> Any:
        with learner.evaluating(), torch.inference_mode(), products(precision, cpu):
            return model.output("classes", images)

    return lambda: learner.update(0, [batch]), logits


def theirs(shape: str, precision: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of transformers' ViTForImageClassification."""
    import torch
    import torch.nn.functional as F
    from transformers import ViTConfig, ViTForImageClassification

    own = config(shape)
    settings = ViTConfig(
        hidden_size=own.width,
        num_hidden_layers=len(own.stack.blocks),
        num_attention_heads=own.stack.blocks[0].mixer.heads,
        intermediate_size=4 * own.width,
        image_size=own.embed.size[0],
        patch_size=own.embed.patch[0],
        num_channels=own.embed.channels,
        num_labels=own.heads["classes"].outputs,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    many, use = SHAPES[shape]
    model = ViTForImageClassification(settings)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    (batch, labels), images = drawn(shape, many), drawn(shape, use)[0]
    rough = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        model.train()
        with rough:
            loss = F.cross_entropy(model(batch).logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    def logits() -> Any:
        model.eval()
        with torch.inference_mode(), rough:
            return model(images).logits

    return step, logits


def measured(program: str, shape: str, precision: str, threads: int | None) -> dict[str, Any]:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    step, logits = (ours if program == "headway" else theirs)(shape, precision)
    many, use = SHAPES[shape]
    use_time = timed(logits)
    use_peak = peak()
    return {
        "training_images_a_second": round(many / timed(step), 1),
        "images_a_second": round(use / use_time, 1),
        "use_peak_bytes": use_peak,
        "training_peak_bytes": peak(),
        "threads": torch.get_num_threads(),
    }


def timed(work: Callable[[], Any], seconds: float = 8.0) -> float:
    """The median time of a call, of so many as take about `seconds`, after two."""
    work(), work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speed(args: argparse.Namespace) -> dict[str, Any]:
    options = [] if args.threads is None else ["--threads", str(args.threads)]
    programs = ("headway", "transformers")
    found: dict[str, Any] = {}
    for shape in SHAPES:
        for precision in PRECISIONS:
            runs: dict[str, list[dict[str, Any]]] = {program: [] for program in programs}
            for _ in range(REPEATS):
                for program in programs:
                    part = ("--program", program, "--shape", shape, "--precision", precision)
                    runs[program].append(child("vision.py", "measured", *part, *options))
            for program, each in runs.items():
                told = {name: spread([one[name] for one in each]) for name in each[0]}
                found.setdefault(shape, {}).setdefault(precision, {})[program] = told
    return {"images_a_step_and_a_batch": SHAPES, "shapes": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("fashion", "train-fashion", "speed", "measured"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--steps", type=int, help="instead of the minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", help="directory that keeps the run and lets it go on")
    parser.add_argument("--program", default="headway")
    parser.add_argument("--shape", default="fashion")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    if args.part == "train-fashion":
        report(fashion(args))
    elif args.part == "measured":
        report(measured(args.program, args.shape, args.precision, args.threads))
    elif args.part == "speed":
        write("vision-speed", speed(args))
    else:
        names = ("threads", "minutes", "steps", "seed", "run")
        given = [f"--{name}={value}" for name in names if (value := getattr(args, name)) is not None]
        write("fashion-mnist", child("vision.py", "train-fashion", *given))


if __name__ == "__main__":
    main()
