"""Small cases of every recipe, verb and program for `same.py`, with the headway of PYTHONPATH.

    python benchmarks/same_cases.py create FOLDER [CASE ...]    # run cases in FOLDER; writes FOLDER/create.json
    python benchmarks/same_cases.py reopen FOLDER [CASE ...]    # use what another revision left in FOLDER; reopen.json

A fact is a name and a digest of bits: of each weight after its steps, each loss, each score, each answer. The cases use
only the public Python API, the command line and HTTP, so any revision can run them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

import headway as hw
import same_programs as programs
from same_facts import Facts, digest, file_facts, run_facts, weight_facts, without_volatile
from same_verbs import model_facts
from samples import drawn

STEPS, STOPPED = 4, 2  # steps of a run, and of its copy that looks as if it had been killed
BASE = {
    "train.steps": STEPS,
    "train.precision": "fp32",
    "train.evaluate_every": STEPS,
    "train.checkpoint_every": STOPPED,
}
SMALL = {"model.width": 32, "model.depth": 1, "model.heads": 2}
TEXT = {**SMALL, "task.size": 300}
CARRIED = {"task.carry_state": True, "model.context": None}
OFFLINE = {**SMALL, "task.episodes": 0}  # no episodes in an environment
ONLINE = {
    "model.width": 32, "model.depth": 1, "train.batch_size": 16,
    "task.num_envs": 2, "task.steps": 16, "task.epochs": 2, "task.episodes": 2,
}  # fmt: skip
FEW = {"train.batch_size": 8, "train.evaluate_limit": 8}  # samples, for models of images
SAMPLES = 240
EVALUATED = 16  # samples of an evaluation


class Case(Protocol):
    """`needs` names the cases whose runs this one uses. `create` runs it, and `reopen` uses what another revision's
    `create` left; None if that leaves nothing of its own. Both get the folder of all cases and return facts, and
    `reopen` those of `create` again.
    """

    needs: Sequence[str]

    def create(self, folder: Path) -> Facts: ...

    def reopen(self, folder: Path) -> Facts | None: ...


@dataclasses.dataclass(frozen=True)
class Training:
    """A run of a recipe on samples of a kind that `samples.py` draws (None: the recipe's own data), with settings."""

    recipe: str
    data: str | None
    settings: Mapping[str, Any]
    start: str | None = None  # the case that it fine-tunes
    teacher: str | None = None  # the case that teaches it
    lora: int | None = None
    samples: int = SAMPLES
    formats: bool = False  # whether its weights are also quantised and exported, and its model runs on torch
    name: str = ""  # its key in CASES

    @property
    def needs(self) -> Sequence[str]:
        return [name for name in (self.start, self.teacher) if name is not None]

    def create(self, folder: Path) -> Facts:
        settings: dict[str, Any] = {**BASE, **self.settings}
        if self.teacher is not None:
            settings["task.teacher"] = str(folder / self.teacher / "run")
        data = folder / "data" / f"{self.data}-{self.samples}"
        paths = None if self.data is None else drawn(self.data, self.samples, data)
        start = None if self.start is None else folder / self.start / "run"
        case = folder / self.name
        hw.train(self.recipe, paths, settings, run=case / "run", start=start, lora=self.lora, threads=1, progress=False)
        stop(case / "run", case / "stopped")
        if self.formats:
            for weights in ("int8", "int4"):
                hw.quantize(case / "run", case / weights, weights=weights)
            hw.export(case / "run", case / "exported")
        return {**run_facts(case / "run"), **self.use(case)}

    def reopen(self, folder: Path) -> Facts:
        case = folder / self.name
        facts = self.use(case)
        hw.train(case / "stopped" / "recipe.json", run=case / "stopped", resume=True, threads=1, progress=False)
        return {**run_facts(case / "stopped"), **facts}

    def use(self, case: Path) -> Facts:
        """What the run's model returns, and its scores."""
        model = hw.load(case / "run")
        facts: Facts = {"verbs": model_facts(self.recipe, case / "run", case)}
        facts["evaluation"] = digest(without_volatile(model.evaluate(limit=EVALUATED)))
        if self.formats:
            facts["torch"] = model_facts(self.recipe, case / "run", case, backend="torch")
            facts["int8 cache"] = model_facts(self.recipe, case / "run", case, cache="int8")
            for weights in ("int8", "int4"):
                facts[weights] = model_facts(self.recipe, case / weights, case)
            facts["exported"] = weight_facts(next((case / "exported").glob("*.safetensors")))
            facts["exported verbs"] = model_facts(self.recipe, case / "exported", case)
        return facts


def stop(run: Path, copy: Path) -> None:
    """Copy a run as a process leaves it that is killed after its first checkpoint."""
    shutil.copytree(run, copy)
    status = json.loads((copy / "run.json").read_text())
    for name in ("scores", "samples", "best", "report"):
        status.pop(name, None)
    (copy / "run.json").write_text(json.dumps({**status, "status": "running", "step": STOPPED}))
    (copy / "digests.json").unlink()
    state = json.loads((copy / "checkpoints" / f"step-{STOPPED:08}" / "state.json").read_text())
    if state["best"] is None:  # otherwise the model was there already; a better one replaces it
        (copy / "model.safetensors").unlink()
    if (forecast := copy / "forecast.json").exists():  # the mixture is chosen at the end
        forecast.write_text(json.dumps({**json.loads(forecast.read_text()), "mixture": None}))
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != f"step-{STOPPED:08}":
            shutil.rmtree(checkpoint)


@dataclasses.dataclass(frozen=True)
class Program:
    """A case that uses runs of other cases, or programs. Without its own `reopened`, it uses another revision's runs
    as it uses its own.
    """

    created: Callable[[Path], Facts]
    needs: Sequence[str] = ()
    reopened: Callable[[Path], Facts | None] | None = None

    def create(self, folder: Path) -> Facts:
        return self.created(folder)

    def reopen(self, folder: Path) -> Facts | None:
        return self.created(folder) if self.reopened is None else self.reopened(folder)


def cache_facts(folder: Path) -> Facts:
    """The entries of the cache after all other cases; reopened runs must find all they need and add none."""
    return {entry.name: digest(file_facts(entry)) for entry in sorted((folder / "cache").iterdir()) if entry.is_dir()}


TRAININGS = {
    "text": Training("text", "text", TEXT, formats=True),
    "text-lstm": Training("text", "text", {**TEXT, **CARRIED, "model.mixer": "lstm"}),
    "text-gru": Training("text", "text", {**TEXT, "model.mixer": "gru"}),
    "text-delta": Training("text", "text", {**TEXT, **CARRIED, "model.mixer": "delta"}),
    "text-lora": Training("text", "text", {}, start="text", lora=4),
    "text-accumulated": Training("text", "text", {**TEXT, "train.accumulate": 2}),
    "shakespeare": Training("shakespeare", "text", SMALL),
    "masked": Training("masked", "masked", TEXT),
    "instruct": Training("instruct", "instruct", TEXT),
    "preference": Training("preference", "preference", TEXT),
    "preference-from": Training("preference", "preference", {}, start="instruct"),
    "translation": Training("translation", "translation", TEXT),
    "translation-lstm": Training("translation", "translation", {**TEXT, "model.mixer": "lstm"}),
    "pronounce": Training("pronounce", "translation", SMALL),
    "multi30k-en-de": Training("multi30k-en-de", "translation", TEXT),
    "multi30k-en-de-small": Training("multi30k-en-de-small", "translation", TEXT),
    "tatoeba": Training("tatoeba", "translation", TEXT),
    "transformer-base-wmt": Training("transformer-base-wmt", "translation", TEXT),
    "classification": Training("classification", "classification", TEXT),
    # Its last step is its best one: the head of the model that `stop` would have to restore is refitted at the end.
    "classification-from": Training("classification", "classification", {"optim.lr": 0.01}, start="masked"),
    "pairs": Training("pairs", "pairs", TEXT),
    "tagging": Training("tagging", "tagging", TEXT),
    "embedding": Training("embedding", "embedding", TEXT),
    "banking77": Training("banking77", "classification", {**TEXT, "task.label": "label"}),
    "vision": Training("vision", "vision", SMALL),
    "vision-taught": Training("vision", "vision", SMALL, teacher="vision"),
    "fashion-mnist": Training("fashion-mnist", "vision", {**SMALL, "task.names": [str(n) for n in range(16)]}),
    "digits": Training("digits", None, SMALL),
    "audio": Training("audio", "audio", SMALL),
    "spoken-digits": Training("spoken-digits", None, SMALL),
    "spoken-sequences": Training("spoken-sequences", None, SMALL),
    "transcription": Training("transcription", "transcription", {**SMALL, "task.beam": 1}, samples=60),
    "image-text": Training("image-text", "image-text", {"train.batch_size": 16}),
    "emoji-clip": Training("emoji-clip", None, FEW),
    "caption": Training("caption", "caption", FEW),
    "emoji-caption": Training("emoji-caption", None, FEW),
    "scenes": Training("scenes", None, {**FEW, "task.train": 40, "task.validation": 8, "task.test": 8}),
    "trajectories": Training("trajectories", "trajectories", OFFLINE, samples=3000),
    "cartpole": Training("cartpole", None, {**SMALL, "task.episodes": 2}),
    "pendulum": Training("pendulum", None, {**SMALL, "task.episodes": 1}),
    "hopper": Training("hopper", "trajectories", OFFLINE, samples=3000),
    "ppo": Training("ppo", None, {**ONLINE, "task.env": "CartPole-v1"}),
    "ppo-continuous": Training(
        "ppo", None, {**ONLINE, "task.env": "Pendulum-v1", "task.context": 4, "task.horizon": 40}
    ),
    "robotics": Training("robotics", "robotics", {**OFFLINE, "task.split.validation": 0.2}, samples=3000),
    "metaworld": Training("metaworld", "robotics", {**OFFLINE, "task.split.validation": 0.2}, samples=3000),
    "forecast": Training("forecast", "forecast", {}, samples=600),
    "chess": Training("chess", "chess", SMALL),
    "chess-searchless": Training("chess-searchless", "chess", {**SMALL, "task.target": "behaviour"}),
}
CASES: dict[str, Case] = {
    **{name: dataclasses.replace(training, name=name) for name, training in TRAININGS.items()},
    "beams": Program(programs.beam_facts, ("translation", "translation-lstm", "caption", "transcription")),
    "speculation": Program(programs.draft_facts, ("text", "text-accumulated", "instruct", "preference-from")),
    "served": Program(programs.served_facts, programs.SERVED),
    "chess-games": Program(programs.chess_facts, ("chess",), programs.reopened_chess_facts),
    "lerobot": Program(programs.robot_facts, (), programs.learned_policy_facts),
    "lerobot-policies": Program(programs.published_policy_facts, (), programs.reopened_policy_facts),
    "comparison": Program(programs.comparison_facts, (), programs.continued_comparison_facts),
    "two-processes": Program(
        partial(programs.two_process_facts, settings={**BASE, **TEXT, "train.accumulate": 2}), (), lambda folder: None
    ),
    # The last: it lists what the others left. Alone, it needs a case of each kind of cache.
    "caches": Program(cache_facts, ("text", "masked", "translation", "vision", "audio", "transcription")),
}


def with_needs(names: Sequence[str]) -> list[str]:
    """The names of cases and of all that they need, in the order of CASES; without names, all cases."""
    chosen: set[str] = set()

    def add(name: str) -> None:
        chosen.add(name)
        for needed in CASES[name].needs:
            add(needed)

    for name in names or CASES:
        add(name)
    return [name for name in CASES if name in chosen]


def core_seconds() -> float:
    """The processor time of this process and of those that it started and waited for."""
    return sum(os.times()[:4])


def main(verb: str, folder: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["HEADWAY_CACHE"] = str(folder / "cache")
    results: Facts = {}
    seconds: dict[str, float] = {}
    for name in with_needs(names):
        print(f"{verb} {name}", file=sys.stderr, flush=True)
        started = core_seconds()
        try:
            facts = getattr(CASES[name], verb)(folder)
        except Exception as error:
            traceback.print_exc()
            facts = {"error": f"{type(error).__name__}: {error}"}
        if facts is not None:
            results[name] = facts
        seconds[name] = round(core_seconds() - started, 1)
        print(f"{verb} {name}: {seconds[name]} core seconds", file=sys.stderr, flush=True)
    (folder / f"{verb}.json").write_text(
        json.dumps({"package": hw.__file__, "facts": results, "seconds": seconds}, indent=1)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("create", "reopen"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"from {', '.join(CASES)} (default: all)")
    args = parser.parse_args()
    if unknown := [name for name in args.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; choose from {', '.join(CASES)}")
    main(args.verb, args.folder.resolve(), args.cases)
