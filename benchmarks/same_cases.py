"""Small cases of every recipe and verb, for `same.py`: trained, judged and used by the headway that is on the path.

    python benchmarks/same_cases.py FOLDER            # make each case in FOLDER, and its facts in FOLDER/facts.json
    python benchmarks/same_cases.py FOLDER OLD        # open, judge, use and resume the runs that another revision left

A fact is a name and a digest of bits: of each weight after its steps, each loss, each score, each answer. Only what
users call is called, so that any revision runs it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

import headway as hw
from samples import bars, chord, drawn, write_sound

STEPS, STOPPED = 4, 2  # steps of a run, and where a copy of it looks as if it had been killed
BASE = {
    "train.steps": STEPS,
    "train.precision": "fp32",
    "train.evaluate_every": STEPS,
    "train.checkpoint_every": STOPPED,
}
SMALL = {"model.width": 32, "model.depth": 1, "model.heads": 2}
TEXT = {**SMALL, "task.size": 300}
CARRIED = {"task.carry_state": True, "model.context": None}
PAIRS = {**SMALL, "task.size": 300}
ACTING = {**SMALL, "task.episodes": 0}
SAMPLES = 240
LINE = "the first words of a text"


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe with data of a kind that `samples.py` draws (its own data where that is None) and settings."""

    recipe: str
    data: str | None
    settings: Mapping[str, Any]
    start: str | None = None  # the case that it begins from
    teacher: str | None = None  # the case that it is taught by
    lora: int | None = None
    samples: int = SAMPLES


CASES = {
    "text": Case("text", "text", TEXT),
    "text-lstm": Case("text", "text", {**TEXT, **CARRIED, "model.mixer": "lstm"}),
    "text-gru": Case("text", "text", {**TEXT, "model.mixer": "gru"}),
    "text-delta": Case("text", "text", {**TEXT, **CARRIED, "model.mixer": "delta"}),
    "text-lora": Case("text", "text", {}, start="text", lora=4),
    "text-accumulated": Case("text", "text", {**TEXT, "train.accumulate": 2}),
    "shakespeare": Case("shakespeare", "text", {**SMALL}),
    "masked": Case("masked", "masked", TEXT),
    "instruct": Case("instruct", "instruct", TEXT),
    "preference": Case("preference", "preference", TEXT),
    "preference-from": Case("preference", "preference", {}, start="instruct"),
    "translation": Case("translation", "translation", PAIRS),
    "translation-lstm": Case("translation", "translation", {**PAIRS, "model.mixer": "lstm"}),
    "pronounce": Case("pronounce", "translation", SMALL),
    "multi30k-en-de": Case("multi30k-en-de", "translation", PAIRS),
    "multi30k-en-de-small": Case("multi30k-en-de-small", "translation", PAIRS),
    "tatoeba": Case("tatoeba", "translation", PAIRS),
    "transformer-base-wmt": Case("transformer-base-wmt", "translation", PAIRS),
    "classification": Case("classification", "classification", TEXT),
    "classification-from": Case("classification", "classification", {}, start="masked"),
    "pairs": Case("pairs", "pairs", TEXT),
    "tagging": Case("tagging", "tagging", TEXT),
    "embedding": Case("embedding", "embedding", TEXT),
    "banking77": Case("banking77", "classification", {**TEXT, "task.label": "label"}),
    "vision": Case("vision", "vision", SMALL),
    "vision-taught": Case("vision", "vision", SMALL, teacher="vision"),
    "fashion-mnist": Case("fashion-mnist", "vision", {**SMALL, "task.names": [str(place) for place in range(16)]}),
    "digits": Case("digits", None, SMALL),
    "audio": Case("audio", "audio", SMALL),
    "spoken-digits": Case("spoken-digits", None, SMALL),
    "spoken-sequences": Case("spoken-sequences", None, SMALL),
    "transcription": Case("transcription", "transcription", {**SMALL, "task.beam": 1}, samples=60),
    "image-text": Case("image-text", "image-text", {"train.batch_size": 32}),
    "emoji-clip": Case("emoji-clip", None, {}),
    "caption": Case("caption", "caption", {}),
    "emoji-caption": Case("emoji-caption", None, {}),
    "scenes": Case("scenes", None, {}),
    "trajectories": Case("trajectories", "trajectories", ACTING, samples=3000),
    "cartpole": Case("cartpole", None, {**SMALL, "task.episodes": 2}),
    "pendulum": Case("pendulum", None, {**SMALL, "task.episodes": 1}),
    "hopper": Case("hopper", "trajectories", ACTING, samples=3000),
    "robotics": Case("robotics", "robotics", {**ACTING, "task.split.validation": 0.2}, samples=3000),
    "metaworld": Case("metaworld", "robotics", {**ACTING, "task.split.validation": 0.2}, samples=3000),
    "chess": Case("chess", "chess", SMALL),
    "chess-searchless": Case("chess-searchless", "chess", {**SMALL, "task.target": "behaviour"}),
}


def digest(value: Any) -> str:
    """The same for the same bits: of tensors, arrays, numbers, texts, and of what holds them."""
    found = hashlib.sha256()
    for piece in pieces(value):
        found.update(piece)
        found.update(b"\0")
    return found.hexdigest()[:16]


def pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, torch.Tensor):
        value = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, float):
        yield value.hex().encode()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key).encode()
            yield from pieces(inner)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from pieces(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from pieces(inner)
    else:
        yield repr(value).encode()


def weights(path: Path) -> dict[str, str]:
    """The digest of each tensor of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: digest(file.get_tensor(name)) for name in sorted(file.keys())}


def facts_of(run: Path) -> dict[str, Any]:
    """Weights by name, the losses of each step and the scores of a finished run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {f"{line.get('split', 'train')} {line['step']}": digest(untimed(line)) for line in lines}
    scores = json.loads((run / "run.json").read_text())["scores"]
    return {"weights": weights(run / "model.safetensors"), "metrics": told, "scores": digest(untimed(scores))}


def untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not key.endswith(("seconds", "per_second"))}


def images(folder: Path) -> list[str]:
    from PIL import Image

    found = []
    for number, image in enumerate(bars(3, seed=5)[0]):
        path = folder / f"look-{number}.png"
        Image.fromarray(image).save(path)
        found.append(str(path))
    return found


def sound(folder: Path) -> str:
    random = np.random.default_rng(3)
    write_sound(folder / "hear.wav", np.concatenate([chord(one, random) for one in (1, 4)]))
    return str(folder / "hear.wav")


def text_verbs(model: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    ids = [[1, 2, 3, 4], [4, 3, 2, 1]]
    return {
        "logits": lambda: model.logits(torch.tensor(ids)),
        "score": lambda: model.score([LINE, "the"]),
        "generate": lambda: model.generate(["the", "a "], max_new_tokens=6, temperature=0.0),
        "sample": lambda: model.generate("the", max_new_tokens=6, temperature=1.0, seed=3),
        "ids": lambda: model.generate_ids([1, 2, 3], max_new_tokens=5, temperature=0.0, ignore_end=True),
        "stream": lambda: list(model.stream("the", max_new_tokens=6, temperature=0.7, seed=1)),
    }


def chat_verbs(model: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    said = [{"role": "user", "content": "hello"}]
    return {**text_verbs(model, folder), "chat": lambda: model.chat(said, max_new_tokens=5, temperature=0.0)}


def pair_verbs(model: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    lines = ["ba be", "the first", "x"]
    return {
        "beam": lambda: model.translate(lines, beam=4),
        "greedy": lambda: model.translate(lines, beam=1),
        "best": lambda: model.translate("ba be", beam=3, n_best=2),
        "score": lambda: model.score(["eb ab"], ["ba be"]),
        "attention": lambda: model.attention("ba be").maps,
    }


VERBS: dict[str, Callable[[Any, Path], dict[str, Callable[[], Any]]]] = {
    "text": text_verbs,
    "shakespeare": text_verbs,
    "instruct": chat_verbs,
    "preference": chat_verbs,
    "masked": lambda model, folder: {"fill": lambda: model.fill("ba [MASK] be", top=3)},
    "translation": pair_verbs,
    "pronounce": pair_verbs,
    "multi30k": pair_verbs,
    "tatoeba": pair_verbs,
    "transformer": pair_verbs,
    "classification": lambda model, folder: {"classify": lambda: model.classify([LINE, "ba be"])},
    "banking77": lambda model, folder: {"classify": lambda: model.classify([LINE, "ba be"])},
    "pairs": lambda model, folder: {"classify": lambda: model.classify([(LINE, "ba be")])},
    "tagging": lambda model, folder: {"tag": lambda: model.tag([LINE])},
    "embedding": lambda model, folder: {"embed": lambda: model.embed([LINE, "ba"])},
    "vision": lambda model, folder: {
        "classify": lambda: model.classify(images(folder)),
        "embed": lambda: model.embed(images(folder)),
        "look": lambda: model.look(images(folder)),
    },
    "fashion": lambda model, folder: {"classify": lambda: model.classify(images(folder))},
    "digits": lambda model, folder: {"classify": lambda: model.classify(images(folder))},
    "audio": lambda model, folder: {"classify": lambda: model.classify([sound(folder)], truncate=True)},
    "spoken-digits": lambda model, folder: {"classify": lambda: model.classify([sound(folder)], truncate=True)},
    "spoken-sequences": lambda model, folder: {"transcribe": lambda: model.transcribe(sound(folder))},
    "transcription": lambda model, folder: {"transcribe": lambda: model.transcribe(sound(folder))},
    "image": lambda model, folder: {
        "match": lambda: model.match(images(folder), ["one", "two"]),
        "embed": lambda: model.embed(images(folder)),
    },
    "emoji-clip": lambda model, folder: {"match": lambda: model.match(images(folder), ["one", "two"])},
    "caption": lambda model, folder: {"caption": lambda: model.caption(images(folder))},
    "emoji-caption": lambda model, folder: {"caption": lambda: model.caption(images(folder))},
    "scenes": lambda model, folder: {"caption": lambda: model.caption(images(folder))},
    "cartpole": lambda model, folder: {"rollout": lambda: model.rollout(episodes=2)},
    "pendulum": lambda model, folder: {"rollout": lambda: model.rollout(episodes=1)},
}


def used(name: str, path: Path, scratch: Path, **options: Any) -> dict[str, str]:
    """What each verb of the model gives; an error is what it gives as well."""
    given = next((VERBS[kind] for kind in sorted(VERBS, key=len, reverse=True) if name.startswith(kind)), None)
    found = {}
    model = hw.load(path, **options)
    for verb, call in (given(model, scratch) if given else {}).items():
        try:
            found[verb] = digest(call())
        except Exception as error:
            found[verb] = f"{type(error).__name__}: {error}".replace(str(path), "RUN")
    return found


def made(name: str, case: Case, folder: Path) -> dict[str, Any]:
    """Train a case, and say all there is to say of it."""
    settings: dict[str, Any] = {**BASE, **case.settings}
    if case.teacher is not None:
        settings["task.teacher"] = str(folder / case.teacher / "run")
    where, beside = folder / name, folder / "data" / f"{case.data}-{case.samples}"
    data = None if case.data is None else drawn(case.data, case.samples, beside)
    start = None if case.start is None else folder / case.start / "run"
    given = {"set": settings, "start": start, "lora": case.lora, "threads": 1, "progress": False}
    hw.train(case.recipe, data, run=where / "run", **given)
    killed(where / "run", where / "stopped")
    found = {**facts_of(where / "run"), "verbs": used(name, where / "run", where)}
    if name in ("text", "translation", "text-gru"):
        for kind in ("int8", "int4"):
            hw.quantize(where / "run", where / kind, weights=kind)
            found[kind] = used(name, where / kind, where)
        found["torch"] = used(name, where / "run", where, backend="torch")
    if name in ("text", "masked"):
        hw.export(where / "run", where / "published")
        found["published"] = weights(next((where / "published").glob("*.safetensors")))
    return found


def killed(run: Path, copy: Path) -> None:
    """A copy of a run as a process leaves it that is killed after its first checkpoint."""
    shutil.copytree(run, copy)
    (copy / "run.json").unlink()
    (copy / "model.safetensors").unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name != f"step-{STOPPED:08}":
            shutil.rmtree(checkpoint)


def opened(name: str, old: Path, folder: Path) -> dict[str, Any]:
    """What a run of another revision gives here: used, and gone on with for as many steps again."""
    where = folder / "old" / name
    shutil.copytree(old / name, where)
    found: dict[str, Any] = {"verbs": used(name, where / "run", where)}
    hw.train(where / "stopped" / "recipe.json", run=where / "stopped", resume=True, threads=1, progress=False)
    found |= facts_of(where / "stopped")
    for kind in ("int8", "int4"):
        if (where / kind).is_dir():
            found[kind] = used(name, where / kind, where)
    return found


def two_processes(folder: Path) -> dict[str, Any]:
    """The text case trained by two processes on this machine."""
    data = drawn("text", SAMPLES, folder / "data" / f"text-{SAMPLES}")
    where = folder / "two-processes" / "run"
    told = [f"{key}={json.dumps(value)}" for key, value in {**BASE, **TEXT, "train.accumulate": 2}.items()]
    command = [sys.executable, "-m", "headway", "train", "text", "--data", *data, "--run", str(where), "--set", *told]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    ended = [process.wait(timeout=300) for process in running]
    if any(ended):
        raise RuntimeError("one of two processes failed")
    return facts_of(where)


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts, or the error in their place."""
    print(name, file=sys.stderr, flush=True)
    try:
        return make()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main(folder: Path, old: Path | None, names: list[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names or [*CASES, "two-processes"]:
        if old is not None:
            if (old / name / "run" / "run.json").exists() and name != "two-processes":
                found[name] = kept(name, lambda name=name: opened(name, old, folder))
        elif name == "two-processes":
            found[name] = kept(name, lambda: two_processes(folder))
        else:
            found[name] = kept(name, lambda name=name: made(name, CASES[name], folder))
        (folder / ("old.json" if old else "facts.json")).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    other = sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] != "-" else None
    main(Path(sys.argv[1]).resolve(), None if other is None else Path(other).resolve(), sys.argv[3:])
