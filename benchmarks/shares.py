"""10,000 lines translated and 1,000 sounds transcribed in three parts, one of them killed and run again, compared with
the file of one process; and what is refused.

    python benchmarks/shares.py --keep DIR      # about 8 minutes on one core; continues in DIR after an interruption

The models are small and trained for a minute each, because the figure is about bytes, not about scores. The inputs are
Multi30k's first 10,000 English training sentences, and the first 1,000 recordings of the Free Spoken Digit Dataset.
Every step is the command of a user, and runs alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import data_folder, write

PARTS, LINES, SOUNDS, SEED = 3, 10_000, 1_000, 1
TRAININGS = {
    "translation": ["multi30k-en-de-small", "--set", "model.width=64", "model.depth=2", "--minutes", "1"],
    "speech": ["spoken-sequences", "--minutes", "1.5"],
}


def headway(*argv: object, stdin: Path | None = None, stdout: Path | None = None, **options: Any) -> dict[str, Any]:
    """Run a command in a process of its own: exit code, wall-clock and processor seconds, and stderr."""
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(stdin or os.devnull, "rb") as source, open(stdout or os.devnull, "wb") as sink:
        done = subprocess.run(
            [sys.executable, "-m", "headway", *map(str, argv)],
            stdin=source, stdout=sink, stderr=subprocess.PIPE, text=True, check=False, **options,
        )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = {"seconds": round(time.perf_counter() - started, 1), "core_seconds": round(processor, 1)}
    return {"code": done.returncode, **seconds, "stderr": done.stderr.strip().splitlines()}


def kill_after(blocks: int, folder: Path, *argv: object, stdin: Path | None = None) -> dict[str, int]:
    """Start a part, kill it once it has this many blocks, and count its complete blocks and drafts."""
    with open(stdin or os.devnull, "rb") as source:
        process = subprocess.Popen(
            [sys.executable, "-m", "headway", *map(str, argv)], stdin=source, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(folder.glob("block-*.txt"))) < blocks:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return {"blocks_before_the_kill": len(list(folder.glob("block-*.txt"))), "drafts": len(list(folder.glob(".*")))}


def prepare(keep: Path) -> None:
    """The inputs and the trained models, if they are not there yet."""
    path = data_folder() / "translation" / "multi30k-train.en.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(LINES))]
    (keep / "source.en").write_text("".join(lines), encoding="utf-8")
    recordings: dict[str, bytes] = {}
    with tarfile.open(data_folder() / "fsdd" / "free-spoken-digits.tar.xz") as archive:
        for member in archive:  # in the archive's order, because it can only be decompressed from its start
            content = archive.extractfile(member) if member.name.endswith(".wav") else None
            if content is not None:
                recordings[Path(member.name).name] = content.read()
    (keep / "sounds").mkdir(exist_ok=True)
    for name in sorted(recordings)[:SOUNDS]:
        (keep / "sounds" / name).write_bytes(recordings[name])
    for name, arguments in TRAININGS.items():
        status = keep / name / "run.json"
        if not status.is_file() or not json.loads(status.read_text(encoding="utf-8")).get("scores"):
            done = headway("train", *arguments, "--run", keep / name, "--resume", "--threads", "1", "--seed", SEED)
            assert done["code"] == 0, done["stderr"]


def compare_with_one(keep: Path, name: str, command: Sequence[object], stdin: Path | None) -> dict[str, Any]:
    """The output of one process, and of three parts of which the second is killed."""
    alone_file, joined_file, folder = keep / f"{name}-alone", keep / f"{name}-joined", keep / f"{name}-shares"
    verb = command[0]
    alone = headway(*command, "--threads", "1", stdin=stdin, stdout=alone_file)
    parts = []
    kill = random.Random(SEED).randint(1, 3)
    for number in range(1, PARTS + 1):
        argv = [*command, "--threads", "1", "--part", f"{number}/{PARTS}", "--out", folder]
        killed = {}
        if number == 2:
            killed = kill_after(kill, folder / f"part-{number}-of-{PARTS}", *argv, stdin=stdin)
            early = headway(verb, "--join", folder)
            killed |= {"join_before_it_is_complete": early["stderr"][-1]}
        parts.append({**killed, **headway(*argv, stdin=stdin)})
    joined = headway(verb, "--join", folder, stdout=joined_file)
    again = headway(*argv, stdin=stdin)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (alone_file, joined_file)]
    summaries = [
        {**part, "stderr": [line for line in part["stderr"] if line.startswith("part ")][-1:]} for part in parts
    ]
    return {
        "command": " ".join(str(word).replace(f"{keep}/", "") for word in command),
        "bytes": alone_file.stat().st_size,
        "sha256": digests[0],
        "equal": digests[0] == digests[1],
        "one_process": {key: alone[key] for key in ("code", "seconds", "core_seconds")},
        "parts": summaries,
        "join": {key: joined[key] for key in ("code", "seconds", "core_seconds")},
        "complete_part_again": {key: again[key] for key in ("code", "seconds", "core_seconds")},
    }


def refusals(keep: Path, command: Sequence[object]) -> list[dict[str, Any]]:
    """The line and exit code of bad input, and whether the parts can still be joined with the same bytes."""
    source, folder = keep / "source.en", keep / "translation-shares"
    few = keep / "few.en"
    few.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:600]), encoding="utf-8")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))  # noqa: E731
    cases: dict[str, tuple[list[object], dict[str, Any]]] = {
        "another number of parts": ([*command, "--part", "1/4", "--out", folder], {"stdin": source}),
        "another input": ([*command, "--part", "1/3", "--out", folder], {"stdin": few}),
        "another option": ([*command, "--length-penalty", "1", "--part", "1/3", "--out", folder], {"stdin": source}),
        "an empty list": ([*command, "--part", "1/3", "--out", keep / "empty"], {}),
        "files of 4 kB at most": (
            [*command, "--part", "1/1", "--out", keep / "full"],
            {"stdin": few, "preexec_fn": limit},
        ),
        "a join of nothing": (["translate", "--join", keep / "sounds"], {}),
        "torchrun without --part": ([*command], {"env": {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}}),
    }  # fmt: skip
    rows = []
    for name, (argv, options) in cases.items():
        done = headway(*argv, "--threads", "1", **options) if "--join" not in argv else headway(*argv)
        lines = [line.replace(f"{keep}/", "") for line in done["stderr"]]
        rows.append({"case": name, "code": done["code"], "lines": len(lines), "line": lines[-1] if lines else ""})
    after = keep / "after"
    headway("translate", "--join", folder, stdout=after)
    rows.append({"case": "afterwards", "equal": after.read_bytes() == (keep / "translation-alone").read_bytes()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, required=True, help="folder for models, inputs and finished results")
    keep = parser.parse_args().keep.resolve()
    keep.mkdir(parents=True, exist_ok=True)
    prepare(keep)
    translate = ["translate", keep / "translation", "--beam", "1"]
    transcribe = ["transcribe", keep / "speech", keep / "sounds", "--beam", "1", "--temperature", "0"]
    steps = {
        "translation": lambda: compare_with_one(keep, "translation", translate, keep / "source.en"),
        "transcription": lambda: compare_with_one(keep, "transcription", transcribe, None),
        "refusals": lambda: refusals(keep, translate),
    }
    result: dict[str, Any] = {"parts": PARTS, "lines": LINES, "sounds": SOUNDS, "seed": SEED, "trainings": TRAININGS}
    for name, step in steps.items():
        file = keep / f"{name}.json"
        if not file.is_file():
            file.write_text(json.dumps(step()), encoding="utf-8")
        result[name] = json.loads(file.read_text(encoding="utf-8"))
    write("shares", result)


if __name__ == "__main__":
    main()
