"""Child processes of the server end with the request, and with a server that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headway.serve.child_process import run_command


def test_the_result_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: killed.append(group))
    code = "import os, sys; print(os.environ['HEADWAY_TEST'], sys.argv[1:]); print('no', file=sys.stderr); sys.exit(3)"
    result = asyncio.run(run_command([sys.executable, "-c", code, "a b", "-I"], 30, {"HEADWAY_TEST": "ä"}))
    assert result == (3, "ä ['a b', '-I']\n", "no\n")
    assert killed == []  # its number may belong to another process by now


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(process: int) -> None:
    end = time.monotonic() + 10
    while is_running(process):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end children with their parent")
def test_a_command_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    record = tmp_path / "process"
    child = f"import os, time; open({str(record)!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(60)"
    code = "import asyncio, sys; from headway.serve.child_process import run_command; "
    code += f"asyncio.run(run_command([sys.executable, '-c', {child!r}], 60))"
    server = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 30
    while not (record.exists() and record.read_text().endswith(" ")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert is_running(int(record.read_text()))
    server.send_signal(signal.SIGKILL)
    server.wait()
    wait_for_end(int(record.read_text()))


def test_a_command_ends_after_its_time(tmp_path: Path) -> None:
    record = tmp_path / "process"
    code = f"import os, time; open({str(record)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(TimeoutError):
        asyncio.run(run_command([sys.executable, "-c", code], 2))
    if record.exists():  # unless the machine was too slow to start it
        assert not is_running(int(record.read_text()))
