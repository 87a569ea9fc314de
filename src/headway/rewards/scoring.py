"""Computes rewards in a separate process with a time limit per answer, because a function may raise, hang or crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any
from weakref import finalize

from headway.errors import UserError

_IMPORT_SECONDS = 60.0  # for the function's module and what it imports
_MAX_TIMEOUTS = 4  # answers in a row that take too long


class Scorer:
    """Computes the reward `function`, `module:name`, with at most `seconds` per answer. The process starts with the
    first answer, and again after an answer that ended it.
    """

    def __init__(self, name: str, function: str, seconds: float) -> None:
        self.name, self.function, self.seconds = name, function, seconds
        self._process: subprocess.Popen[str] | None = None
        self._replies: SimpleQueue[str] = SimpleQueue()

    def start(self) -> subprocess.Popen[str]:
        """The process; UserError if the function cannot be imported."""
        if self._process is not None:
            return self._process
        paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if os.path.isabs(path))]
        code = (
            f"import sys; sys.path[:] = {paths!r}; "
            f"from headway.rewards.scorer import serve; serve({self.function!r}, {self.seconds!r})"
        )
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C must reach only this process
        )
        finalize(self, end, process)
        self._replies = SimpleQueue()
        threading.Thread(target=_read, args=(process.stdout, self._replies), daemon=True, name="rewards").start()
        reply = self._receive(_IMPORT_SECONDS)
        if "error" in reply:
            self.close()
            text = reply["error"]
            raise UserError(text if ";" in text else f"the reward {self.name!r} cannot be imported: {text}; correct it")
        return process

    def score(self, answers: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[float | str]:
        """The reward of each answer (prompt, output, row), or the reason why it has none. UserError if several in a
        row take too long.
        """
        rewards: list[float | str] = []
        timeouts = 0
        for answer in answers:
            process = self.start()
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps(answer) + "\n")
                process.stdin.flush()
                reply = self._receive(self.seconds)
            except BrokenPipeError:
                reply = {"error": "its process ended", "ended": True}
            if reply.get("ended"):
                self.close()
            timeouts = timeouts + 1 if reply.get("late") else 0
            if timeouts == _MAX_TIMEOUTS:
                raise UserError(
                    f"the reward {self.name!r} takes more than {self.seconds:g} s for each of {timeouts} answers in a "
                    "row; make it faster, or raise task.seconds"
                )
            rewards.append(reply["reward"] if "reward" in reply else reply["error"])
        return rewards

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The next reply; the process is ended if none comes in time."""
        try:
            line = self._replies.get(timeout=seconds)
        except Empty:
            return {"error": f"it takes more than {seconds:g} s", "ended": True, "late": True}
        except BaseException:  # after an interrupt, the late reply would be taken for the next one
            self.close()
            raise
        return json.loads(line) if line.endswith("\n") else {"error": "its process ended", "ended": True}

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            end(process)


def _read(replies: IO[str], lines: SimpleQueue[str]) -> None:
    """Pass on lines, and an empty one at the end. Programs that the function started may hold the pipe open, so that
    the end comes late.
    """
    with replies:
        for line in replies:
            lines.put(line)
    lines.put("")


def end(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    if not hasattr(os, "killpg"):
        process.kill()
    elif process.returncode is None:  # its id is not reused before it is waited for
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # a line that the process did not read
        process.stdin.close()
