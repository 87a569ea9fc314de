"""Joining the processes that train together, and reporting why they end: once, from one process."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

from headway.errors import UserError, printable
from headway.learn.interrupts import Interrupts, UserInterrupt
from headway.learn.parallel.heartbeat import ACKNOWLEDGED, VERDICT, Heartbeat, Verdict, report

_MIN_START_SECONDS = 60.0  # for all processes to start: imports take long on a busy machine
_POLL_SECONDS = 0.1
_MAX_NAMED = 20  # missing processes in a message
_ORDER_BEATS = 3  # that process 0 has to report an error that all processes have
_RESTART = "see its log, and start all processes again"
_joined: Heartbeat | None = None
_joins = count()


def world_size() -> int:
    """The number of processes, from torchrun's WORLD_SIZE."""
    return _integer("WORLD_SIZE", 1)


def process_rank() -> int:
    """The number of this process, from torchrun's RANK."""
    return _integer("RANK", 0)


@contextmanager
def joined(timeout: float) -> Iterator[Heartbeat | None]:
    """Join the other processes, and end all of them if one fails: one reports the error, the others exit silently with
    its exit code. Signals interrupt at once until training handles them. With one process, this does nothing.
    """
    global _joined
    if world_size() == 1 or _joined is not None:
        yield _joined
        return
    Interrupts.ignore_repeats(-math.inf)
    with Interrupts(several=True) as interrupts, interrupts.breakable():
        try:
            _joined = _join(timeout)
            yield _joined
        except BaseException as error:
            _end(_joined, error, interrupts.number)
            raise
        finally:
            if _joined is not None:
                _joined.close()
            _joined = None


def _end(heartbeat: Heartbeat | None, error: BaseException, number: int) -> None:
    """End the other processes for this error; SystemExit if another process reports it."""
    rank, world = process_rank(), world_size()
    if isinstance(error, (SystemExit, GeneratorExit)):
        return
    if isinstance(error, KeyboardInterrupt):
        if not isinstance(error, UserInterrupt):
            error = UserInterrupt("stopped", "run the command again, with --resume if the run exists", number or 2)
        code, reason = 128 + error.number, str(error)
        if error.is_agreed:
            if rank:
                raise SystemExit(code)
            return
    elif heartbeat is not None and isinstance(error, RuntimeError) and any(n in str(error) for n in ("gloo", "NCCL")):
        first = str(error).split("\n")[0].rpartition("] ")[2]  # of a collective operation of FSDP
        raise SystemExit(heartbeat.broken(first.rstrip("."))) from error
    else:
        is_known = isinstance(error, UserError)
        code = 2 if is_known else 1
        reason = str(error) if is_known else f"{type(error).__name__}: {printable(str(error)).strip()[:500]}"
    if heartbeat is not None:
        verdict = heartbeat.other_verdict(_ORDER_BEATS) if rank else None
        if verdict is not None or not heartbeat.end_all(code, reason):
            verdict = verdict or heartbeat.other_verdict(0)
            raise SystemExit(code if verdict is None else verdict.code) from error
    if isinstance(error, UserInterrupt):
        raise error
    if rank and isinstance(error, UserError):
        raise type(error)(f"process {rank} of {world} on {socket.gethostname()}: {reason}") from error


def _join(timeout: float) -> Heartbeat:
    """Meet the other processes at torchrun's store, or at one that process 0 starts. UserError if one is missing after
    `timeout` seconds, from one process.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    rank, world, seconds = process_rank(), world_size(), max(timeout, _MIN_START_SECONDS)
    address, port = os.environ.get("MASTER_ADDR"), _integer("MASTER_PORT", 0)
    if not address or not 0 < port < 1 << 16 or not 0 <= rank < world:
        raise UserError(
            f"RANK={rank}, WORLD_SIZE={world}, MASTER_ADDR={address or ''}, MASTER_PORT={port} do not describe a group "
            "of processes; start them with torchrun or --processes"
        )
    starts_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        server: Any = TCPStore(
            address, port, None, starts_store, timedelta(seconds=seconds), wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        if rank < 2 or os.environ.get("LOCAL_RANK") == "0":  # there is no store to decide who reports it
            event = "cannot listen" if starts_store else f"did not start within {seconds:g} s"
            report(f"training process 0 {event} at {address}:{port}; {_RESTART}")
        raise SystemExit(1) from error
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store for the next attempt
    try:
        return _meet(PrefixStore(f"headway{restarts}.{next(_joins)}", server), timeout, seconds)
    except RuntimeError as error:
        if rank == 1 or os.environ.get("LOCAL_RANK") == "0":
            report(f"training process 0 ended at the start; {_RESTART}")
        raise SystemExit(1) from error


def _meet(store: Any, timeout: float, seconds: float) -> Heartbeat:
    """Wait until all processes have published a heartbeat; SystemExit after `seconds`."""
    rank, world = process_rank(), world_size()
    heartbeat = Heartbeat(store, rank, world, timeout)
    keys, deadline = [f"beat/{other}" for other in range(world)], time.monotonic() + seconds
    while not store.check(keys if rank == 0 else ["started"]):
        if (verdict := json.loads(store.get(VERDICT))) is not None:
            store.add(ACKNOWLEDGED, int(rank > 0))
            raise SystemExit(Verdict(*verdict).code)
        if time.monotonic() > deadline:
            missing = [other for other, key in enumerate(keys) if not store.check([key])]
            names = ", ".join(map(str, missing[:_MAX_NAMED])) + (", ..." if len(missing) > _MAX_NAMED else "")
            noun = "process" if len(missing) == 1 else "processes"
            reason = f"training {noun} {names} of {world} did not start within {seconds:g} s; {_RESTART}"
            heartbeat.end_all(1, reason, prints=True, lost=len(missing))
            raise SystemExit(1)
        time.sleep(_POLL_SECONDS)
    store.set("started", "1")
    heartbeat.start()
    return heartbeat


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name} is {text!r}; start the processes with torchrun or --processes")
    return int(text)
