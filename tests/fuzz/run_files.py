"""Runs of which one JSON file, or the JSON header of one file of tensors, was composed anew, given to a command."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from grammar_models import composed_object, varied
from mutate import VALUES, damaged_json, draw_of, half_mild
from run import SECONDS, TooSlow, limited
from run_makers import KINDS, Command

import headway as hw
from headway.app.cli import main as cli
from headway.errors import UserError
from headway.io.durable import remove, seal

_TRAINED = 4  # seconds of training, after which Ctrl-C ends it, and again: a file may well ask for a million steps
_WAITED = 1200  # seconds of the clock, after which a command counts as hanging
_COMPILED = 900  # seconds of the first command of a machine, which compiles the engine
_RESEALED = 0.8  # of the runs have digests that fit what was changed
_INPUT = "the cat sang\n"  # standard input, of commands that read it
_HEADERS = ".safetensors"


@dataclass
class Trial:
    """A run in `folder`, with its data, and copies of it that are damaged."""

    name: str
    folder: Path
    data: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        kind = KINDS[self.name]
        self.data = kind.make(self.folder)
        self.recipe = ""
        if kind.every:
            self.recipe = json.loads((self.folder / "run" / "recipe.json").read_text(encoding="utf-8"))["name"]
            self._stop(self.folder / "stopped")
        self.commands = (*kind.every, *kind.commands * 3)
        for command in kind.commands:  # what is not damaged is read, or the fuzzer would test nothing
            remove(self.folder / "damaged")
            shutil.copytree(self.folder / "run", self.folder / "damaged")
            code, said = ran(self._filled(command, self.folder / "damaged"), seconds=_COMPILED)
            if code != cli.DONE:
                raise RuntimeError(f"{' '.join(command)}: {code} {said}")

    def _stop(self, copy: Path) -> None:
        """A copy as if it had been stopped at its first checkpoint."""
        shutil.copytree(self.folder / "run", copy)
        *_, newest = sorted((copy / "checkpoints").iterdir())
        shutil.rmtree(newest)
        status = json.loads((copy / "run.json").read_text(encoding="utf-8"))
        status = {key: value for key, value in status.items() if key not in ("scores", "samples", "report")}
        (copy / "run.json").write_text(json.dumps({**status, "status": "interrupted"}), encoding="utf-8")
        (copy / "digests.json").unlink()

    def damaged(self, draw: random.Random) -> tuple[Path, Command, Path]:
        """A damaged copy, the command to give it to, and the file that was changed."""
        command = draw.choice(self.commands)
        stopped = command[0] == "train" and command[-1] in ("--resume", "--finish") and draw.random() < 0.9
        run = self.folder / "damaged"
        remove(run)
        remove(self.folder / "out")
        shutil.copytree(self.folder / ("stopped" if stopped else "run"), run)
        files = sorted(path for path in run.rglob("*") if path.suffix in (".json", ".jsonl", _HEADERS))
        if draw.random() < 0.8:  # digests are refused for what they are, and tokenizers have a fuzzer of their own
            files = [path for path in files if path.name not in ("digests.json", "tokenizer.json")]
        path = draw.choice(files)
        data = changed(path.read_bytes(), path.suffix, draw)
        path.write_bytes(data.replace(b'"compile": true', b'"compile": false'))  # which takes a minute, as it should
        if path.name != "digests.json" and draw.random() < _RESEALED:
            for sealed in (path.parent, run):
                if (sealed / "digests.json").is_file():
                    seal(sealed)
        return run, self._filled(command, run), path

    def _filled(self, command: Command, run: Path) -> Command:
        words = {"{run}": str(run), "{out}": str(self.folder / "out"), "{recipe}": self.recipe}
        found: list[str] = []
        for word in command:
            if word == "{data}":
                found += map(str, self.data)
            else:
                place = word.replace("{data}", str(self.data[0])).replace("{folder}", str(self.folder))
                found.append(words.get(word, place))
        return tuple(found)


def changed(data: bytes, suffix: str, draw: random.Random) -> bytes:
    """A JSON file, a line of JSON lines, or the header of a file of tensors with other values."""
    if suffix == ".jsonl":
        lines = data.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = _composed(lines[at], draw)
        return b"\n".join(lines) + b"\n" * draw.choice((1, 1, 0))
    if suffix != _HEADERS:
        return _composed(data, draw)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    config = header.get("__metadata__", {}).get("config")
    if config is None or draw.random() < 0.2:
        text = _composed(json.dumps(header).encode(), draw)
    else:
        header["__metadata__"]["config"] = _composed(config.encode(), draw).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _composed(text: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.25:
        return damaged_json(text, draw)
    tree = json.loads(text)
    return json.dumps(_deep(tree, half_mild(draw), draw)).encode("utf-8", "replace")


def _deep(tree: Any, mild: random.Random, draw: random.Random) -> Any:
    """Some values at the top, or those of something at any depth, are others."""
    if draw.random() < 0.1:
        return draw.choice(VALUES)
    entries = tree.items() if isinstance(tree, dict) else ()
    inner = [key for key, value in entries if isinstance(value, (dict, list)) and value]
    if inner and draw.random() < 0.6:
        key = draw.choice(sorted(inner))
        return {**tree, key: _deep(tree[key], mild, draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.7:
        at = draw.randrange(len(tree))
        return [*tree[:at], _deep(tree[at], mild, draw), *tree[at + 1 :]]
    if isinstance(tree, dict) and tree:
        if draw.random() < 0.1:
            return {key: value for key, value in tree.items() if key != draw.choice(sorted(tree))}
        return composed_object(tree, mild)
    return varied(tree, mild)


@dataclass
class RunOutcome:
    """How many commands ended well, were refused in one line, or were stopped in training; and the failures."""

    done: int = 0
    refused: int = 0
    stopped: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def fuzz_runs(trial: Trial, seed: int, first: int, count: int, until: float = float("inf")) -> RunOutcome:
    """Cases `first` to `first + count`, or those before the process has used `until` seconds of a core."""
    outcome = RunOutcome()
    for index in range(first, first + count):
        if time.process_time() > until:
            break
        _, command, path = trial.damaged(draw_of(seed, f"{trial.name}:{index}"))
        code, said = ran(command)
        if code == cli.DONE:
            outcome.done += 1
        elif code == cli.USER_ERROR and said.count("headway: ") == 1:
            outcome.refused += 1
        elif code == cli.INTERRUPTED and "training" in said:
            outcome.stopped += 1
        else:
            file = path.relative_to(trial.folder / "damaged")
            outcome.failures[f"{trial.name} {index}"] = f"{' '.join(command)} with another {file}: {code} {said[-400:]}"
    return outcome


def ran(command: Command, seconds: int = SECONDS) -> tuple[int | str, str]:
    """The exit code of a command that may take so many seconds of a core, and what it wrote to stderr."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said), _standard_input(), _log_to(said):
        try:
            with limited(_WAITED), _computing(seconds), _interrupted(command[0] in ("train", "compare")):
                code: int | str = _OTHERS[command[0]](command) if command[0] in _OTHERS else cli.main(_words(command))
        except TooSlow as error:
            code = f"TooSlow: {error}"
        except KeyboardInterrupt:
            code = cli.INTERRUPTED
        except BaseException as error:
            code = f"{type(error).__name__}: {str(error)[:200]}"
    return code, said.getvalue()


def _words(command: Command) -> list[str]:
    return [*command[0].split(), *command[1:]]


def _serve(command: Command) -> int:
    """What the server does with a model as it starts, and when the first request comes."""
    from headway.serve.fingerprint import fingerprint
    from headway.serve.models import LoadOptions, summarize_model

    def start() -> None:
        found = summarize_model(Path(command[1]), LoadOptions())
        model = hw.load(command[1])
        if "generate" in found.verbs:
            fingerprint(model)

    return _refusable(start)


def _open(command: Command) -> int:
    """A run as Python has it."""
    from headway.learn.run import open_run
    from headway.learn.run_report import run_sections

    def look() -> None:
        run = open_run(Path(command[1]))
        repr(run)
        run.card().html()
        repr(hw.load(command[1]))
        run_sections(run)

    return _refusable(look)


def _refusable(use: Any) -> int:
    import sys

    try:
        use()
    except UserError as error:
        print(f"headway: {error}", file=sys.stderr)
        return cli.USER_ERROR
    return cli.DONE


_OTHERS = {"serve": _serve, "open": _open}


@contextlib.contextmanager
def _standard_input() -> Iterator[None]:
    import sys

    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(_INPUT.encode()), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = before


@contextlib.contextmanager
def _log_to(stream: io.StringIO) -> Iterator[None]:
    """Warnings of the log are not what a command says."""
    import logging

    before = logging.lastResort
    logging.lastResort = None
    try:
        yield
    finally:
        logging.lastResort = before


@contextlib.contextmanager
def _computing(seconds: int) -> Iterator[None]:
    """TooSlow after so many seconds of a core: others may be at work on this machine."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s of a core")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _interrupted(trains: bool) -> Iterator[None]:
    """Ctrl-C after some seconds of a command that trains."""
    if not trains:
        yield
        return

    def press(signal_number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGVTALRM, press)
    signal.setitimer(signal.ITIMER_VIRTUAL, _TRAINED, _TRAINED)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
