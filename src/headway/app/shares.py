"""Work in shares: independent processes compute the inputs of one job, in any order and on any machines, and the joined
output has the bytes of one process.

The inputs of a job are dealt in blocks of equal numbers of inputs: block b belongs to part b mod n + 1. Each part has a
folder, in which a block's output is written under another name, synced, and renamed when it is complete. So a part
that runs again computes only what is missing, and nothing coordinates the parts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from headway.config import from_dict
from headway.errors import UserError
from headway.io.durable import (
    DIGESTS_FILE,
    atomic_write,
    compute_digests,
    digest_entry,
    is_sealed,
    read_digests,
    read_json,
    write_json,
)
from headway.io.files import open_file
from headway.io.outputs import check_folder, check_tree

_VERSION = 1  # of the folder's format
_MAX_PARTS = 100_000
_PART_FOLDER = re.compile(r"part-(\d{1,6})-of-(\d{1,6})")
_BLOCK_FILE = re.compile(r"block-(\d{6,12})-([0-9a-f]{16})\.txt")
_MANIFEST, _COMPLETE = "part.json", "complete.json"
_MAX_MANIFEST = 1 << 26  # bytes of a JSON file in the folder
_PICTURE = 60  # characters of a setting in a message
# Files and folders of a run that are not needed to load its model.
_NO_MODEL = ("run.json", DIGESTS_FILE)
_NO_MODEL_SUFFIXES = (".jsonl", ".html", ".png", ".svg", ".md", ".csv", ".wav", ".log")
_TRAINING_FOLDERS = ("checkpoints", "trunk", "samples")


class Part(NamedTuple):
    """One of several equal parts of a job, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, item: int) -> bool:
        """Whether an item of the job, counted from 0, belongs to this part."""
        return item % self.count == self.number - 1


def parse_part(text: str) -> Part:
    """A part from `I/N`, or from the variables of torchrun, Slurm or Kubernetes for `auto` and `auto/N`. Raises
    UserError for anything else.
    """
    match = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text)
    if not match or (match[1] != "auto" and match[2] is None):
        raise UserError(f"--part {text[:_PICTURE]} is not a part; write I/N, such as 1/3, auto, or auto/N")
    count = None if match[2] is None else int(match[2])
    part = _scheduled_part(count) if match[1] == "auto" else Part(int(match[1]), count or 0)
    if match[1] == "auto" and count is not None and part.number > count:
        raise UserError(
            f"--part auto/{count} has {count} parts, but this process is number {part.number}; write --part auto/N, "
            "where N is the `completions` of the Job"
        )
    if not 1 <= part.number <= part.count <= _MAX_PARTS:
        raise UserError(f"--part {part} is not a part; write I/N with I from 1 to N, and N at most {_MAX_PARTS:,}")
    return part


def scheduler_rank() -> tuple[str, int, int] | None:
    """Who started this process as one of several, its number from 0, and their number, which is 0 where only a person
    knows it; None if it was started alone. Raises UserError for numbers that do not describe a part.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return "torchrun", _variable("RANK"), _variable("WORLD_SIZE")
    has_array, has_step = "SLURM_ARRAY_TASK_ID" in os.environ, "SLURM_STEP_NUM_TASKS" in os.environ
    if has_array or has_step:  # srun sets the latter; both may be there: an array of jobs with several tasks each
        index, count = 0, 1
        if has_array:
            step, count = _variable("SLURM_ARRAY_TASK_STEP", 1), _variable("SLURM_ARRAY_TASK_COUNT")
            index, remainder = divmod(
                _variable("SLURM_ARRAY_TASK_ID") - _variable("SLURM_ARRAY_TASK_MIN"), max(1, step)
            )
            if remainder or not 0 <= index < count:
                raise UserError(
                    f"the Slurm array has gaps (task {index + 1} of {count}); submit it with --array=1-{count}, or "
                    "write --part I/N"
                )
        if has_step:
            tasks = _variable("SLURM_STEP_NUM_TASKS")
            index, count = index * tasks + _variable("SLURM_PROCID"), count * tasks
        return "Slurm", index, count
    if "JOB_COMPLETION_INDEX" in os.environ:
        return "Kubernetes", _variable("JOB_COMPLETION_INDEX"), 0
    return None


def _scheduled_part(count: int | None) -> Part:
    """The part of this process, for `auto` or, with a count, `auto/N`."""
    scheduled = scheduler_rank()
    if scheduled is None:
        raise UserError(
            "--part auto needs the variables of torchrun, Slurm (srun or a job array) or Kubernetes (an indexed Job), "
            "and none is set; write --part I/N"
        )
    scheduler, index, total = scheduled
    if total == 0 and count is None:
        raise UserError(
            "Kubernetes does not pass the number of parts to a process; write --part auto/N, where N is the "
            "`completions` of the Job"
        )
    if count is not None and total not in (0, count):
        raise UserError(f"--part auto/{count} has {count} parts, but {scheduler} started {total}; write --part auto")
    return Part(index + 1, total or count or 0)


def _variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"\d{1,9}", text):
        raise UserError(f"{name} is {text[:_PICTURE]!r}, not a number; write --part I/N instead of auto")
    return int(text)


@dataclass(frozen=True)
class Manifest:
    """part.json: the job of a part. Parts of one job differ only in `part`.

    command, headway, model, options: the command's name, the version, the model's digest, and the options by name.
    block: inputs per block; first: digest of the first block's inputs.
    """

    version: int
    command: str
    headway: str
    model: str
    options: dict[str, Any]
    block: int
    first: str
    part: int
    parts: int


@dataclass(frozen=True)
class PartSummary:
    """complete.json: written when a part has all its blocks.

    inputs, digest: number of inputs of the whole job, and their digest; sizes: bytes of each block of this part.
    """

    inputs: int
    digest: str
    sizes: dict[str, int]


class Share:
    """The folder of one part, which a command fills block by block.

    job: the command, version, model and options, as in `Manifest`.
    """

    def __init__(self, folder: Path, part: Part, job: Mapping[str, Any]) -> None:
        self.folder, self.part, self._job = folder / f"part-{part.number}-of-{part.count}", part, dict(job)
        check_folder(folder)
        check_tree(self.folder)
        self._names = dict(_blocks(self.folder))
        self.num_inputs = self.num_blocks = self.num_computed = 0  # of the job; of this part; of those by this process
        self._digest = ""

    def missing(self, inputs: Iterable[str], size: int) -> Iterator[tuple[int, int, list[str]]]:
        """The blocks of `size` inputs that this part lacks: number, the index of the first input, and the inputs.

        Raises UserError for no inputs at all, for other inputs or another job than those of the folder, and if another
        part in it is of another job.
        """
        items, digest = iter(inputs), blake2b(digest_size=8)
        number = 0
        while block := list(islice(items, size)):
            for item in block:
                raw = str(item).encode("utf-8", "surrogatepass")
                digest.update(b"%d:" % len(raw) + raw)
            self._digest = digest.hexdigest()
            if number == 0:
                self._begin(size)
            first, self.num_inputs = self.num_inputs, self.num_inputs + len(block)
            if self.part.has(number):
                self.num_blocks += 1
                if number not in self._names:
                    yield number, first, block
                elif self._names[number][1] != self._digest:
                    raise UserError(
                        f"{self.folder} was computed from other inputs (they differ up to number {self.num_inputs:,}); "
                        "pass the same inputs, or choose another folder with --out"
                    )
            number += 1
        if number == 0:
            raise UserError("there are no inputs to share; pass lines on standard input, or files")

    def _begin(self, size: int) -> None:
        """Write the manifest after the first block was read, or compare it with those in the folder."""
        manifest = Manifest(
            version=_VERSION, block=size, first=self._digest, part=self.part.number, parts=self.part.count, **self._job
        )
        for path, other in _manifests(self.folder.parent):
            _check_same_job(path, other, manifest)
        if not (self.folder / _MANIFEST).is_file():
            if self._names:
                raise UserError(f"{self.folder} has blocks but no {_MANIFEST}; remove it, and run this part again")
            write_json(self.folder / _MANIFEST, asdict(manifest))

    def write(self, number: int, output: str, failures: list[tuple[str, str]]) -> None:
        """Store the output of a block that `missing` has just yielded, and the inputs that failed with their errors."""
        name = f"block-{number:06d}-{self._digest}"
        if failures:
            write_json(self.folder / f"{name}.json", failures)
        with atomic_write(self.folder / f"{name}.txt") as draft:
            draft.write_bytes(output.encode("utf-8", "backslashreplace"))  # as stdout encodes it
        self._names[number] = f"{name}.txt", self._digest
        self.num_computed += 1

    def complete(self) -> None:
        """Record that all blocks of this part are there. Raises UserError if the part was computed from more inputs."""
        path, sizes = self.folder / _COMPLETE, dict[str, int]()
        earlier = from_dict(PartSummary, _read(path), str(path)) if path.is_file() else None
        is_other = earlier is not None and (earlier.inputs, earlier.digest) != (self.num_inputs, self._digest)
        if is_other or len(self._names) > self.num_blocks:
            raise UserError(
                f"{self.folder} was computed from other inputs than these {self.num_inputs:,}; pass the same, or "
                "choose another folder with --out"
            )
        for number, (name, _) in sorted(self._names.items()):
            sizes[str(number)] = (self.folder / name).stat().st_size
        write_json(path, asdict(PartSummary(self.num_inputs, self._digest, sizes)))


class JoinedParts:
    """The parts of a command's job in a folder. Raises UserError unless all are there, complete, and of one job."""

    def __init__(self, folder: Path, command: str) -> None:
        manifests = _manifests(folder)
        if not manifests:
            raise UserError(f"{folder} has no parts of a job; pass the folder that the parts wrote with --out")
        first_path, self.manifest = manifests[0]
        if self.manifest.command != command:
            name = _format(self.manifest.command)
            raise UserError(f"{folder} has parts of headway {name}; write headway {name} --join {folder}")
        for path, manifest in manifests:
            _check_same_job(first_path, self.manifest, manifest, path)
        count = self.manifest.parts
        by_number = {manifest.part: path for path, manifest in manifests}
        missing = [number for number in range(1, count + 1) if number not in by_number]
        if missing:
            raise UserError(
                f"{folder} has no part {missing[0]}/{count}; run the command with --part {missing[0]}/{count}"
            )
        completions = []
        for number in range(1, count + 1):
            path = by_number[number] / _COMPLETE
            if not path.is_file():
                complete = len(list(_blocks(by_number[number])))
                raise UserError(
                    f"part {number}/{count} in {folder} is not complete (it has {count_blocks(complete)}); run --part "
                    f"{number}/{count} again"
                )
            completions.append(from_dict(PartSummary, _read(path), str(path)))
        self.num_inputs, digest = completions[0].inputs, completions[0].digest
        for number, completion in enumerate(completions, 1):
            if (completion.inputs, completion.digest) != (self.num_inputs, digest):
                raise UserError(
                    f"part {number}/{count} in {folder} was computed from {completion.inputs:,} inputs, and part "
                    f"1/{count} from {self.num_inputs:,} others; remove the folder of the wrong one, and run it again"
                )
        self._blocks = list[Path]()
        names = {number: dict(_blocks(path)) for number, path in by_number.items()}
        for block in range(-(-self.num_inputs // max(1, self.manifest.block))):
            number = block % count + 1
            name, _ = names[number].get(block, ("", ""))
            path, size = by_number[number] / name, completions[number - 1].sizes.get(str(block))
            if not name or path.stat().st_size != size:
                remedy = f"run --part {number}/{count} again"
                fault, remedy = ("is damaged", f"remove {path}, and {remedy}") if name else ("is missing", remedy)
                raise UserError(f"block {block} of part {number}/{count} in {folder} {fault}; {remedy}")
            self._blocks.append(path)

    def outputs(self) -> Iterator[str]:
        """The output of each block, in order."""
        for path in self._blocks:
            with open_file(path) as file:
                yield file.read().decode("utf-8")

    def failures(self) -> Iterator[tuple[str, str]]:
        """The inputs that failed, with their errors, in order."""
        for path in self._blocks:
            path = path.with_suffix(".json")
            if path.is_file():
                yield from from_dict(list[tuple[str, str]], _read(path), str(path))


def count_blocks(number: int) -> str:
    """A number of blocks, for people."""
    return "1 block" if number == 1 else f"{number:,} blocks"


def model_digest(path: Path) -> str:
    """A digest of the files that a model is loaded from: a folder or a single file."""
    digest = blake2b(digest_size=16)
    if path.is_file():
        entries = {"": digest_entry(path)}
    else:
        known = {}
        if is_sealed(path):
            for name, (size, sha256) in read_digests(path).items():
                if (path / name).is_file() and (path / name).stat().st_size == size:
                    known[name] = {"bytes": size, "sha256": sha256}
        entries = compute_digests(path, _TRAINING_FOLDERS, known)["files"]
    for name, entry in entries.items():
        if name not in _NO_MODEL and not name.endswith(_NO_MODEL_SUFFIXES):
            digest.update(f"{name} {entry['sha256']}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _blocks(folder: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """The complete blocks in the folder of a part: number, file name, and the digest of all inputs up to its end."""
    names = os.listdir(folder) if folder.is_dir() else []
    for name in sorted(names):
        if match := _BLOCK_FILE.fullmatch(name):
            yield int(match[1]), (name, match[2])


def _manifests(folder: Path) -> list[tuple[Path, Manifest]]:
    """The manifests of the parts in a folder, by number. Raises UserError for parts of different counts."""
    names = os.listdir(folder) if folder.is_dir() else []
    matches = sorted(filter(None, map(_PART_FOLDER.fullmatch, names)), key=lambda match: (int(match[2]), int(match[1])))
    counts = sorted({int(match[2]) for match in matches})
    if len(counts) > 1:
        raise UserError(
            f"{folder} has parts of {counts[0]} and parts of {counts[1]}, which do not belong together; remove the "
            "folders of one of them"
        )
    manifests = []
    for match in matches:
        path = folder / match[0] / _MANIFEST
        if not path.is_file():  # it has just been created
            continue
        manifest = from_dict(Manifest, _read(path), str(path))
        if manifest.version != _VERSION:
            raise UserError(
                f"{path} has version {manifest.version}, but headway reads {_VERSION}; install a newer version"
            )
        if (manifest.part, manifest.parts) != (int(match[1]), int(match[2])):
            raise UserError(f"{path} is of part {manifest.part}/{manifest.parts}; rename its folder, or remove it")
        manifests.append((path.parent, manifest))
    return manifests


def _check_same_job(path: Path, other: Manifest, job: Manifest, job_path: Path | None = None) -> None:
    """Raise UserError unless two parts are of the same job; `path` is the other's folder."""
    mine, others = ({**asdict(manifest), **manifest.options} for manifest in (job, other))
    texts = {"first": "the input differs", "model": "the model's files differ"}
    names = {"headway": "headway's version", "parts": "the number of parts", "block": "inputs per block"}
    for name in {**mine, **others}:
        if name in ("part", "options") or mine.get(name) == others.get(name):
            continue
        values = f"{names.get(name, name)} is {_format(mine.get(name))}, not {_format(others.get(name))}"
        where, remedy = "this command", "use the same command for all parts, or choose another folder with --out"
        if job_path is not None:
            where, remedy = str(job_path), "remove the wrong part, and run it again with the command of the others"
        raise UserError(f"{where} is of another job than {path}: {texts.get(name, values)}; {remedy}")


def _format(value: Any) -> str:
    text = "the default" if value is None else str(value)
    return text if len(text) <= _PICTURE else f"{text[:_PICTURE]}..."


def _read(path: Path) -> Any:
    size = path.stat().st_size
    if size > _MAX_MANIFEST:
        raise UserError(f"{path} has {size:,} bytes, more than {_MAX_MANIFEST:,}; remove it, and run its part again")
    return read_json(path)
