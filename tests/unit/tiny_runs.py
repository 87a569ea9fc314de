"""Runs of a second on real text, for tests of what begins from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

import headway as hw
from headway.codecs import train_codec
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.text.recipes import modern_decoder
from headway.formats import native
from headway.formats.published import save_published
from headway.learn import Recipe, Run
from headway.nn.models import build
from headway.nn.models.presets import preset

SETTINGS = {
    "train.steps": 6,
    "train.keep_checkpoints": 9,
    "train.batch_tokens": 128,
    "task.context": 16,
    "train.precision": "fp32",
    "optim.lr": 0.001,
}


def play_file(data_dir: Path, folder: Path) -> Path:
    """The first 20,000 characters of Shakespeare's plays."""
    path = folder / "play.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text()[:20_000])
    return path


def small() -> Recipe:
    return replace(
        find_recipe("shakespeare"), model=modern_decoder(width=32, depth=2, heads=2, window=16, vocab_size=1)
    )


def train(run: Path, data: Path, recipe: Recipe | str | None = None, **given: Any) -> Run:
    """Without samples, which take longer than these few steps."""
    settings = {**SETTINGS, **given.pop("set", {})}
    return hw.train(recipe or small(), data=data, set=settings, run=run, progress=False, samples=0, **given)


def weights(directory: Path) -> dict[str, Tensor]:
    return native.read_model(directory / native.FILE)[0]


def cut_back(run: Path, copy: Path, step: int) -> Path:
    """A copy of a finished run as if it had been stopped after `step`."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    status = (copy / "run.json").read_text()
    (copy / "run.json").write_text(status.replace('"finished"', '"interrupted"').replace('"scores"', '"before"'))
    return copy


def publish(play: Path, folder: Path, name: str, **settings: Any) -> Path:
    """A tiny model of a preset as it is published, its table longer than its tokenizer."""
    codec = train_codec("byte", iter([play.read_text()]))
    sizes = {"width": 32, "depth": 2, "heads": 2, "context": 64, "symbols": codec.vocab_size + 7, **settings}
    config = override(preset(name), sizes)
    save_published(build(config), config, folder)
    codec.save(folder)
    return folder
