"""Commands of headway as child processes of the server, which end with the request, and with the server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

# Asks Linux to kill this process when the thread that started it ends (PR_SET_PDEATHSIG is 1), which is that of the
# event loop; then becomes the command.
_ENDS_WITH_PARENT = (
    "import ctypes, os, sys\n"
    f"ctypes.CDLL(None).prctl(1, {signal.SIGKILL.value})\n"
    "if os.getppid() == int(sys.argv[1]):\n"  # otherwise the parent has ended already
    "    os.execv(sys.argv[2], sys.argv[2:])\n"
)


class CommandResult(NamedTuple):
    """The exit code of a command, its output, and its messages."""

    code: int
    output: str
    messages: str


async def run_command(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> CommandResult:
    """Run a command with `environment` added to this process's. TimeoutError after `seconds`. On Linux the process ends
    with this one, even if it is killed; everywhere it ends with this coroutine.
    """
    wrapper = [sys.executable, "-I", "-S", "-c", _ENDS_WITH_PARENT, str(os.getpid())] if sys.platform == "linux" else []
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *wrapper,
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        async with asyncio.timeout(seconds):
            output, messages = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return CommandResult(process.returncode or 0, output.decode(errors="replace"), messages.decode(errors="replace"))
