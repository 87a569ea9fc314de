"""Jobs: trainings and other commands as processes of their own, which outlive the program that starts them.

A job's state is in RUNS/.jobs/NAME.json and its output in NAME.log, so that every program that uses the folder sees it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from headway.errors import UserError, printable
from headway.io.durable import is_running, machine_id, process_start, read_json, write_json
from headway.io.lease import exclusive_lock
from headway.io.outputs import check_folder, open_run_file

FOLDER = ".jobs"
_NAME = re.compile(r"(?![.\s])[^/\\\x00-\x1f\x7f]{1,100}(?<!\s)")
_TAIL = 4096  # bytes at the end of a log, which contain its last line
_MAX_LINE = 500  # characters of a log's line in a message
_RETRY_SECONDS = 1.0  # between the first tries to record an exit code, for instance on a full disk
_FIRST_TRIES = 4  # while these last, an ended job counts as running
_LATER_SECONDS = 10.0  # between later tries


class Job(NamedTuple):
    """A command of its own process. `started` is in seconds since 1970, `log` the file with its output, and `message`
    the last line of it. "ended": nobody saw its exit code, because the program that started it had ended before.
    """

    name: str
    command: tuple[str, ...]
    process: int
    started: float
    state: Literal["running", "finished", "failed", "ended"]
    message: str
    log: Path


def is_name(name: str) -> bool:
    """Whether a run or a job may have this name: one visible file name of at most 100 characters and 200 bytes."""
    return _NAME.fullmatch(name) is not None and len(os.fsencode(name)) <= 200


def check_name(name: str) -> str:
    """The name of a run or a job. UserError for names that `is_name` excludes."""
    if not is_name(name):
        shown = printable(name[:60]) + "..." * (len(name) > 60)
        raise UserError(
            f"{shown!r} cannot be the name of a run; use 1 to 100 characters without / or \\, not starting with a dot"
        )
    return name


def start_job(runs: Path, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Job:
    """Start a command as a process of its own session, without a terminal, and with `environment` added to this
    process's. UserError if a job of this name is running, or if the command cannot start.
    """
    folder = runs / FOLDER
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    variables.pop("OMP_WAIT_POLICY", None)  # a server sets it for itself
    state, log = folder / f"{check_name(name)}.json", folder / f"{name}.log"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        check_folder(folder)
        folder.mkdir(exist_ok=True)
        with exclusive_lock(folder / f"{name}.lock", f"{name} is being started by another program; wait a moment"):
            earlier = read_job(state)
            if earlier is not None and earlier.state == "running":
                raise UserError(f"{name} is already running (process {earlier.process}); wait for it, or stop it")
            log.unlink(missing_ok=True)
            state.unlink(missing_ok=True)
            with open_run_file(log) as output:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=variables,
                )
            record = {"command": list(command), "process": process.pid, "machine": machine_id()}
            record |= {"began": process_start(process.pid), "started": time.time(), "exit_code": None}
            record |= {"starter": os.getpid(), "starter_began": process_start(os.getpid())}
            try:
                write_json(state, record)
            except UserError:  # a full disk: nobody could stop it later
                process.kill()
                process.wait()
                raise
            threading.Thread(target=_wait, args=(process, state, record), daemon=True, name=f"job {name}").start()
    except OSError as error:
        raise UserError(f"{name} cannot be started: {error.strerror}; correct this, then start it again") from error
    return Job(name, tuple(command), process.pid, record["started"], "running", "", log)


def jobs(runs: Path) -> dict[str, Job]:
    """The jobs of a folder by name, running and ended; a damaged state is left out."""
    found = {}
    with suppress(OSError):
        for entry in sorted(os.listdir(runs / FOLDER)):
            if entry.endswith(".json") and _NAME.fullmatch(entry[: -len(".json")]):
                job = read_job(runs / FOLDER / entry)
                if job is not None:
                    found[job.name] = job
    return found


def read_job(state: Path) -> Job | None:
    """The job of a state file; None if there is none, or if it is damaged."""
    record = _read(state)
    if record is None:
        return None
    log, code, began = state.with_suffix(".log"), record["exit_code"], record["began"]
    kind = "ended" if code is None else "failed" if code else "finished"
    if code is None and record["machine"] == machine_id():
        # The program that started a job records its exit code a moment after its end; until then it is a zombie, which
        # has no start. It may have ended before its start was read.
        starter, starter_began = record.get("starter"), record.get("starter_began")
        is_awaited = isinstance(starter, int) and process_start(starter) == starter_began and starter_began is not None
        start = process_start(record["process"])
        is_zombie = start is None and os.name == "posix" and is_running(record["process"])
        kind = "running" if (start is not None and start == began) or (is_awaited and is_zombie) else kind
        if kind == "ended" and (_read(state) or record)["exit_code"] is not None:
            return read_job(state)  # it was recorded since it was read
    lines = []
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    line = next((line for line in reversed(lines) if line.strip()), "").strip().removeprefix("headway: ")
    command = tuple(record["command"])
    return Job(state.stem, command, record["process"], record["started"], kind, printable(line)[:_MAX_LINE], log)


def stop_job(runs: Path, name: str) -> None:
    """Ask a job to stop, as Ctrl-C does: a training ends after its step, with a checkpoint. UserError if it does not
    run.
    """
    record = _read(runs / FOLDER / f"{check_name(name)}.json")
    began = None if record is None or record["machine"] != machine_id() else record["began"]
    if record is None or began is None or not signal_process(record["process"], began):
        raise UserError(f"{name} is not running on this machine; look at the list of runs again")


def signal_process(process: int, began: str | None = None) -> bool:
    """Send SIGTERM to a process, if it `began` at this moment; return whether it was running. A handle of the process
    keeps its id from being given to another one in between.
    """
    handle = None
    try:
        with suppress(AttributeError, OSError):  # systems without handles, or a filter of system calls
            handle = os.pidfd_open(process)
        if began is not None and process_start(process) != began:
            return False
        if handle is not None:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        else:
            os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise UserError(f"process {process} belongs to another user, who has to stop it") from None
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _wait(process: subprocess.Popen[bytes], state: Path, record: dict[str, Any]) -> None:
    """Record the exit code of a job at its end, and wait for it, so that it does not stay as a zombie."""
    code = None
    with suppress(AttributeError, ChildProcessError):  # systems that cannot tell it without removing the zombie
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # which it is only with WNOHANG
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    code = process.wait() if code is None else code
    tries = 0
    while not _is_recorded(state, {**record, "exit_code": code, "ended": time.time()}):
        tries += 1
        if tries == _FIRST_TRIES:
            process.wait()
        time.sleep(_RETRY_SECONDS if tries < _FIRST_TRIES else _LATER_SECONDS)
    process.wait()


def _is_recorded(state: Path, record: dict[str, Any]) -> bool:
    """Write a job's last record, unless its state was removed or is another job's by now; whether that is done."""
    current = _read(state)
    if not state.exists() or (current is not None and current["process"] != record["process"]):
        return True
    with suppress(UserError, OSError):  # a full disk
        write_json(state, record)
        return True
    return False


def _read(state: Path) -> dict[str, Any] | None:
    """A job's record; None if there is none, or if it is damaged."""
    with suppress(UserError, OSError, TypeError, KeyError):
        record = read_json(state)
        kinds = {"command": list, "process": int, "machine": str, "started": (int, float)}
        is_valid = all(isinstance(record[name], kind) for name, kind in kinds.items())
        if is_valid and record["process"] > 1 and isinstance(record["exit_code"], (int, type(None))):
            return {"began": None, **record, "command": [str(word) for word in record["command"]]}
    return None
