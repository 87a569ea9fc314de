"""Runs of a few steps in every domain, and the commands that read them."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import headway as hw
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.text.recipes import modern_decoder
from headway.learn import Recipe
from headway.learn.recipe import write_recipe

UNIT = Path(__file__).parents[1] / "unit"  # whose small data and recipes are used here
WORDS = ("the", "a", "old", "red", "cat", "dog", "bird", "saw", "heard", "then", "house", "tree", "ran", "sang")
FEW: dict[str, Any] = {
    "train.steps": 4,
    "train.keep_checkpoints": 2,
    "train.evaluate_every": 2,
    "train.evaluate_limit": 4,
    "train.precision": "fp32",
}
SMALL: dict[str, Any] = {"model.width": 16, "model.depth": 1, "train.batch_tokens": 128}
HALVES: dict[str, Any] = {"task.split": {"validation": 0.2, "test": 0.2}}
Command = tuple[str, ...]
EVERY: tuple[Command, ...] = (
    ("show", "{run}"),
    ("verify", "{run}"),
    ("serve", "{run}"),  # what the server does before it listens, and when a model is asked for
    ("open", "{run}"),  # as a Run in Python, shown and with its page
    ("evaluate", "{run}", "--limit", "2"),
    ("train", "{recipe}", "--run", "{run}", "--resume"),
    ("train", "{recipe}", "--run", "{run}", "--resume"),
    ("train", "{recipe}", "--run", "{run}", "--resume", "--finish"),
    ("train", "{recipe}", "--data", "{data}", "--from", "{run}", "--run", "{out}", "--set", "train.steps=1"),
    ("export", "{run}", "{out}"),
    ("import", "{run}", "{out}"),
    ("quantize", "{run}", "{out}", "--weights", "int8"),
)


class RunKind(NamedTuple):
    """`make(folder)` trains a run `folder/run` and returns its data; `commands` use the run next to those of EVERY,
    which a comparison of runs has not.
    """

    make: Callable[[Path], list[Path]]
    commands: tuple[Command, ...]
    every: tuple[Command, ...] = EVERY


def train(folder: Path, recipe: Recipe | str, data: list[Path], settings: Mapping[str, Any], **more: Any) -> list[Path]:
    hw.train(recipe, data=data, set={**FEW, **settings}, run=folder / "run", progress=False, samples=1, **more)
    return data


def lines(count: int = 120, longest: int = 9) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(longest // 2, longest))) for _ in range(count)]


def rows(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def text(folder: Path) -> list[Path]:
    path = folder / "text.txt"
    path.write_text("\n\n".join(lines(200)), encoding="utf-8")
    recipe = replace(find_recipe("text"), model=modern_decoder(width=16, depth=1, heads=2, window=16, vocab_size=1))
    return train(folder, recipe, [path], {"train.batch_tokens": 64, "task.context": 16, "task.size": 280})


def adapter(folder: Path) -> list[Path]:
    """A low-rank adapter of the run above, which the run holds with the weights that it is added to."""
    (folder / "start").mkdir()
    data = text(folder / "start")
    few = {"train.batch_tokens": 64, "task.context": 16}
    return train(folder, "text", data, few, start=folder / "start" / "run", lora=2)


def instruct(folder: Path) -> list[Path]:
    chats = [
        {"messages": [{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}]}
        for line in lines()
    ]
    model = modern_decoder(width=16, depth=1, heads=2, window=64, vocab_size=1)
    sizes = {"train.batch_tokens": 256, "task.context": 64, "task.size": 300}
    recipe = replace(find_recipe("instruct"), model=model)
    return train(folder, recipe, [rows(folder / "chats.jsonl", chats)], {**sizes, **HALVES})


def translation(folder: Path) -> list[Path]:
    paths = [folder / "pairs.en", folder / "pairs.de"]
    for path, turned in zip(paths, (1, -1)):
        path.write_text("\n".join(line[::turned] for line in lines(longest=3)) + "\n", encoding="utf-8")
    return train(folder, "translation", paths, {**SMALL, **HALVES, "task.size": 280, "task.beam": 1})


def masked(folder: Path) -> list[Path]:
    data = rows(folder / "data.jsonl", [{"text": line} for line in lines()])
    return train(folder, "masked", [data], {**SMALL, **HALVES, "task.size": 270})


def classification(folder: Path) -> list[Path]:
    found = [{"text": line, "label": "cat" if "cat" in line else "none"} for line in lines()]
    return train(folder, "classification", [rows(folder / "data.jsonl", found)], {**SMALL, **HALVES, "task.size": 270})


def tagging(folder: Path) -> list[Path]:
    path = folder / "tags.conll"
    tagged = ("\n".join(f"{word}\t{'B-ANIMAL' if word == 'cat' else 'O'}" for word in line.split()) for line in lines())
    path.write_text("\n\n".join(tagged) + "\n", encoding="utf-8")
    return train(folder, "tagging", [path], {**SMALL, **HALVES, "task.size": 270})


def vision(folder: Path) -> list[Path]:
    from vision_data import colours, tiny

    return train(folder, tiny(), [colours(_made(folder / "colours"))], {})


def audio(folder: Path) -> list[Path]:
    from sound_files import classes

    sizes = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.batch_size": 4}
    return train(folder, "audio", [classes(folder / "sounds")], {**sizes, **HALVES})


def image_text(folder: Path) -> list[Path]:
    from image_text_data import TINY, draw

    draw(folder / "pictures")
    few = {"train.batch_size": 2, "task.split.validation": 0.2, "task.split.test": 0.2}
    return train(folder, "image-text", [folder / "pictures"], {**TINY, "model.width": 16, "model.shared": 8, **few})


def trajectories(folder: Path) -> list[Path]:
    from trajectory_data import saved, tiny

    return train(folder, tiny(), [saved(folder)], {"train.batch_size": 8})


def robotics(folder: Path) -> list[Path]:
    """Its demonstrations are made in memory, whatever files are named."""
    from robot_data import made, tiny

    from headway.domains.robotics import task

    task.read_demonstrations = lambda *_: made()  # type: ignore[assignment]
    path = folder / "any.npz"
    path.touch()
    return train(folder, tiny(), [path], {"train.batch_size": 8, "task.episodes": 1, "task.final": 1})


def chess(folder: Path) -> list[Path]:
    from chess_data import games_file, recipe

    (folder / "suite.epd").write_text('6k1/5ppp/8/8/8/8/5PPP/R5K1 w - - bm Ra8#; id "a";\n', encoding="utf-8")
    return train(folder, recipe(), [games_file(folder)], {**HALVES, "train.batch_size": 8})


def forecast(folder: Path) -> list[Path]:
    path = folder / "daily.csv"
    days = (f"{date(2023, 1, 1) + timedelta(n)},{10 + n % 7 + n / 50}" for n in range(200))
    path.write_text("date,sales\n" + "\n".join(days) + "\n", encoding="utf-8")
    sizes = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.batch_size": 8}
    return train(folder, "forecast", [path], sizes)


def comparison(folder: Path) -> list[Path]:
    """Two variants of two steps each."""
    path = folder / "text.txt"
    path.write_text("\n\n".join(lines(200)), encoding="utf-8")
    recipe = replace(find_recipe("text"), model=modern_decoder(width=16, depth=1, heads=2, window=16, vocab_size=1))
    recipe = override(recipe, {**FEW, "train.batch_tokens": 64, "task.context": 16, "task.size": 280})
    write_recipe(replace(recipe, data=(str(path),)), folder / "recipe.json")
    hw.compare(folder / "recipe.json", {"train.steps": [2, 3]}, run=folder / "run")
    return [path]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


_PROMPT = ("generate", "{run}", "--prompt", "the cat", "--max-new-tokens", "3")
KINDS: dict[str, RunKind] = {
    "text": RunKind(text, (_PROMPT, ("embed", "{run}"))),
    "adapter": RunKind(adapter, (_PROMPT,)),
    "instruct": RunKind(instruct, (_PROMPT, ("chat", "{run}"))),
    "translation": RunKind(translation, (("translate", "{run}"),)),
    "masked": RunKind(masked, (("fill", "{run}", "the [MASK] sang"), ("embed", "{run}"))),
    "classification": RunKind(classification, (("classify", "{run}", "the cat sang"),)),
    "tagging": RunKind(tagging, (("tag", "{run}"),)),
    "vision": RunKind(vision, (("classify", "{run}", "{data}/red/0.png"),)),
    "audio": RunKind(audio, (("classify", "{run}", "{data}/low/0.wav"),)),
    "image-text": RunKind(
        image_text, (("match", "{run}", "--image", "{data}/dark-red.png", "--text", "a dark red picture"),)
    ),
    "trajectories": RunKind(trajectories, (("rollout", "{run}", "--episodes", "1"),)),
    "robotics": RunKind(robotics, (("rollout", "{run}", "--episodes", "1"),)),
    "chess": RunKind(chess, (("chess suite", "{run}", "{folder}/suite.epd"),)),
    "comparison": RunKind(
        comparison,
        (("compare", "{folder}/recipe.json", "--set", "train.steps=2,3", "--run", "{run}", "--resume"),),
        every=(),
    ),
    "forecast": RunKind(forecast, (("forecast", "{run}", "--data", "{data}", "--steps", "3"),)),
}
sys.path.append(str(UNIT))
