"""Starts the processes of `headway train --processes N` on this machine, and ends all of them when one fails."""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from headway.errors import UserError, printable
from headway.learn.interrupts import STOP_SIGNALS

Job = Callable[[], int]

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
_EXIT_SECONDS = 30.0  # for the other processes to end by themselves, then again after SIGTERM
_POLL_SECONDS = 0.1
_MAX_LINES = 20  # of a failed process


def check_processes(args: argparse.Namespace) -> None:
    """Raise UserError for a number of processes that this machine cannot run, and divide the threads among them."""
    import torch

    from headway.app.loading import find_device

    variable = next((name for name in _TORCHRUN_VARIABLES if name in os.environ), None)
    if variable is not None:
        raise UserError(f"{variable} is set, as in processes of torchrun; remove --processes, or unset it")
    number, cores = args.processes, os.cpu_count() or 1
    device = find_device(args.device)
    if device.type == "cuda":
        available = torch.cuda.device_count()
        if number > available or device.index is not None:
            raise UserError(
                f"--processes {number} with --device {args.device} needs one GPU per process, and this machine has "
                f"{available}; use --processes {available} --device cuda"
            )
    elif device.type != "cpu":
        raise UserError(f"several processes run on CPUs or NVIDIA GPUs, not on {device.type}; use --device cpu")
    elif number > cores:
        raise UserError(f"{number} processes are too many for {cores} cores; use at most --processes {cores}")
    if args.threads is None:
        args.threads = max(1, torch.get_num_threads() // number)


def launch(number: int, job: Job, remedy: str = "resume with --resume") -> int:
    """Run `job`, which can be pickled, in `number` processes with torchrun's environment; return the exit code. The
    `remedy` is for a process that was killed.

    Only process 0 writes to the terminal. Lines that another one wrote to stderr are printed if it fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    code = f"import sys; sys.path[:] = {sys.path!r}; from headway.app.cli.launcher import work; sys.exit(work())"
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(signum: int, _: object) -> None:
        received.append(signum)
        for child in children:
            with suppress(ProcessLookupError):
                child.send_signal(signum)

    previous = {signum: signal.signal(signum, forward) for signum in STOP_SIGNALS}
    try:
        for rank in range(number):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
            child = subprocess.Popen(
                [sys.executable, *flags, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if rank else None,
                stderr=subprocess.PIPE if rank else None,
                env={"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, **ranks, **address},  # as in main
            )
            children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write(pickle.dumps(job))
                child.stdin.flush()  # it stays open, so that a child learns when this process is killed
        return _wait(children, received, remedy)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            for pipe in (child.stdin, child.stderr):
                if pipe is not None:
                    pipe.close()
            child.wait()
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _wait(children: list[subprocess.Popen[bytes]], received: list[int], remedy: str) -> int:
    """Wait until all processes have ended, and end them when one fails; the exit code of the first that failed."""
    lines = [deque[bytes](maxlen=_MAX_LINES) for _ in children]
    readers = [
        threading.Thread(target=tail.extend, args=(child.stderr,), daemon=True)
        for child, tail in zip(children, lines)
        if child.stderr is not None
    ]
    for reader in readers:
        reader.start()
    failed: dict[int, int] = {}  # exit codes by rank, the first failure first
    deadline, signum, running = float("inf"), signal.SIGTERM, list(children)
    while running:
        time.sleep(_POLL_SECONDS)
        running = [child for child in children if child.poll() is None]
        for rank, child in enumerate(children):
            if child.returncode:
                failed.setdefault(rank, child.returncode)
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + _EXIT_SECONDS
        if time.monotonic() > deadline:
            for child in running:
                child.send_signal(signum)
            deadline, signum = time.monotonic() + _EXIT_SECONDS, signal.SIGKILL
    for reader in readers:
        reader.join(_POLL_SECONDS * _MAX_LINES)
    stopped = {128 + number for number in received} | {-number for number in received}
    for rank, code in failed.items():
        for line in lines[rank] if code not in stopped else ():
            print(f"process {rank}: {printable(line.decode(errors='replace').rstrip())}", file=sys.stderr, flush=True)
        if code < 0 and code not in stopped:
            name = signal.Signals(-code).name
            print(f"headway: process {rank} was ended by {name}; {remedy}", file=sys.stderr, flush=True)
    codes = sorted(failed.values(), key=lambda code: code < 0)  # a process that ended by itself knows why
    return 0 if not codes else codes[0] if codes[0] > 0 else 128 - codes[0]


def work() -> int:
    """In a process of `launch`: run the job from stdin, and stop like after SIGTERM if the starting process ends."""
    job: Job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_follow, daemon=True).start()
    return job()


def _follow() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock would be held when this process exits
    os.kill(os.getpid(), signal.SIGTERM)
