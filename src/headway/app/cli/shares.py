"""Commands in shares: `--part I/N --out DIR` computes one part of the inputs, and `--join DIR` prints all parts."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from io import StringIO, TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any

import headway
from headway.app.cli.inputs import Failures, report_outcome
from headway.app.cli.options import Parser
from headway.app.cli.terminal import CHUNK, Terminal
from headway.app.shares import JoinedParts, Part, Share, count_blocks, model_digest, parse_part, scheduler_rank
from headway.errors import UserError
from headway.io.files import open_file
from headway.io.remote import UnavailableError

# Options that do not change the output: those of shares and of the terminal, the inputs, which have digests of their
# own, and where the command runs.
_NOT_OF_JOB = {"part", "out", "join", "json", "debug", "threads", "device", "server", "model"}
_NOT_OF_JOB |= {"texts", "items", "images", "files", "prompts", "draft"}
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")  # the number of this process on its machine
_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun's; parts train alone
_NOTE_SECONDS = 10.0  # between lines of progress


def check_alone(name: str, folder: str) -> None:
    """Raise UserError if torchrun has started several processes, each of which would do the whole work; `folder` is the
    option for the folder of parts.
    """
    scheduled = scheduler_rank()
    if scheduled is not None and scheduled[0] == "torchrun" and scheduled[2] > 1:
        raise UserError(
            f"torchrun has started {scheduled[2]} processes, and each would do all of the work; add --part auto "
            f"{folder} DIR to headway {name}, or start one process"
        )


def run(command: ModuleType, name: str, args: argparse.Namespace, parser: Parser) -> None:
    """Run one part of a command, or join its parts."""
    if args.join is not None:
        allowed = ("join", "out", "json", "debug")
        extra = [key for key, value in vars(args).items() if key not in allowed and value != parser.get_default(key)]
        if args.part is not None or extra:
            raise UserError(f"--join takes no other inputs or options; write headway {name} --join {args.join}")
    else:
        args.part = parse_part(args.part)
        separate(args)
    if not hasattr(args, "out"):  # `compare` has folders of its own
        command.run(args, Terminal(args.json))
        return
    if args.join is not None:
        getattr(command, "join", join)(JoinedParts(args.join, name), args, Terminal(args.json))
        return
    if args.out is None:
        raise UserError(f"--part {args.part} needs a folder that all parts share; add --out DIR")
    command.run(args, PartTerminal(name, args))


def separate(args: argparse.Namespace) -> None:
    """Separate a part from the others on its machine: a GPU and an input of its own, and no group to train with."""
    local = next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), "")
    if args.device == "auto" and local.isdecimal():
        import torch

        if (count := torch.cuda.device_count()) > 1:
            args.device = f"cuda:{int(local) % count}"
    is_shared = "LOCAL_RANK" in os.environ and isinstance(sys.stdin, TextIOWrapper)
    if is_shared and stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode):
        # torchrun's processes share one open file: each would read lines that the others lack.
        sys.stdin = TextIOWrapper(open_file("/dev/stdin"), encoding="utf-8")
    for variable in _GROUP:
        os.environ.pop(variable, None)


class PartTerminal(Terminal):
    """The terminal of a command that computes one part of its inputs: what the command prints goes to a block."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        super().__init__(args.json)
        self._name, self._args, self._block = name, args, StringIO()
        self._share: Share | None = None
        self._noted = self.seconds()

    def print(self, text: str = "", end: str = "\n") -> None:
        self._block.write(text + end)

    def print_data(self, line: str) -> None:
        self.print(line)

    def chunks(
        self, inputs: Iterable[Any], failures: Failures | None = None, size: int = CHUNK
    ) -> Iterator[tuple[int, list[Any]]]:
        part: Part = self._args.part
        is_pipe = isinstance(inputs, TextIOWrapper) and stat.S_ISFIFO(os.fstat(inputs.fileno()).st_mode)
        if is_pipe and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
            raise UserError(
                "standard input is a pipe, of which each process of torchrun would read some lines; pass a file: < FILE"
            )
        self._share = share = Share(self._args.out, part, self._job())
        lines = inputs if isinstance(inputs, list) else (line.rstrip("\r\n") for line in inputs)
        failed = [] if failures is None else failures
        for number, first, block in share.missing(lines, size):
            self._block = StringIO()
            yield first + 1, block
            for _, error in failed:
                if isinstance(error, UnavailableError):  # no fault of the inputs: the part can compute this block later
                    raise error
            for _, error in failed:  # reported here, because another process may compute the next block
                self.note(f"headway: {error}")
            share.write(number, self._block.getvalue(), [(str(item), str(error)) for item, error in failed])
            failed.clear()
            if self.seconds() - self._noted > _NOTE_SECONDS:
                self._noted = self.seconds()
                self.note(f"part {part}: inputs {first + 1:,} to {first + len(block):,} are done")
        share.complete()
        self.note(
            f"part {part} is complete: {count_blocks(share.num_blocks)} of {size} inputs, {share.num_computed:,} of "
            f"them new; join all parts with headway {self._name} --join {self._args.out}"
        )

    def print_result(self, value: Any) -> None:
        share = self._share
        if share is not None:
            result = {"part": self._args.part.number, "parts": self._args.part.count, "inputs": share.num_inputs}
            super().print_result({**result, "blocks": share.num_blocks, "computed": share.num_computed})

    def _job(self) -> dict[str, Any]:
        """What all parts of the job have in common; see `headway.app.shares.Manifest`."""
        from headway.io.hub import find_folder

        args = self._args
        is_remote = getattr(args, "server", None) is not None
        options = {
            name: [str(item) for item in value] if isinstance(value, (list, tuple)) else value
            for name, value in vars(args).items()
            if name not in _NOT_OF_JOB
        }
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        model = str(args.model) if is_remote else model_digest(find_folder(args.model))
        return {"command": self._name, "headway": headway.__version__, "model": model, "options": options}


def join(parts: JoinedParts, args: argparse.Namespace, terminal: Terminal) -> None:
    """Print the output of all parts, and then the inputs that failed, like one process."""
    if args.out is not None:
        raise UserError("--join prints to standard output; remove --out, and write > FILE")
    for output in parts.outputs():
        terminal.print(output, end="")
    failures: Failures = [(item, UserError(error)) for item, error in parts.failures()]
    report_outcome({"inputs": parts.num_inputs, "parts": parts.manifest.parts}, failures, terminal)
