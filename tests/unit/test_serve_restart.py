"""A serving process that ends or hangs is replaced: meanwhile clients are told to come again, and later served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
import uvicorn
from serve_models import stories
from served import Resident

from headway.serve.http_errors import StatusError, error_body
from headway.serve.interfaces import ServerSettings
from headway.serve.server import _Server
from processes import Program

SUPERVISE = """
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
import restarting
from headway.serve import supervisor
from headway.serve.listener import open_listener

supervisor._SILENT_SECONDS, supervisor._STABLE_SECONDS, supervisor._FIRST_DELAY = 1, *map(float, sys.argv[2:])
with open_listener("127.0.0.1", 0, True) as sock:
    print(sock.getsockname()[1], flush=True)
    sys.exit(supervisor.supervise(sock, partial(restarting.serve, Path(sys.argv[1]))))
"""


def wait_for(state: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := state()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


class Supervised(NamedTuple):
    """A supervisor of small servers, and the folder in which they leave their traces."""

    program: Program
    place: Path
    port: int

    def get(self, path: str = "/") -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=20)

    def fail(self, path: str) -> None:
        with pytest.raises(httpx.TransportError):
            self.get(path)

    def pid(self) -> int:
        """Of the process that serves, when it does."""

        def served() -> int | None:
            answer = self.get()
            return int(answer.text) if answer.status_code == 200 else None

        return wait_for(served)

    def starts(self) -> list[float]:
        """When the processes started."""
        return [float(line.split()[1]) for line in (self.place / "starts").read_text().splitlines()]


Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs = []

    def begin(stable: float = 0, delay: float = 0.3, listens: bool = True) -> Supervised:
        program = Program(tmp_path, SUPERVISE, str(tmp_path), str(stable), str(delay))
        programs.append(program)
        port = wait_for(lambda: re.match(r"(\d+)\n", program.out)) if listens else None
        return Supervised(program, tmp_path, int(port[1]) if port else 0)

    yield begin
    for program in programs:
        if program.returncode is None:
            program.signal(signal.SIGTERM)
            program.wait(20)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/abort", "SIGABRT"), ("/exit3", "exit code 3"), ("/exit0", "exit code 0"), ("/hang", "SIGKILL")],
)
def test_another_process_takes_over(start: Start, path: str, reason: str) -> None:
    server = start()
    before = server.pid()
    server.fail(path)
    assert server.pid() != before
    server.program.signal(signal.SIGTERM)
    _, err = server.program.wait(20)
    assert server.program.returncode == 0
    assert f"the serving process ended ({reason}); another one starts\n" in err
    assert ("has not responded for 1 s" in err) == (path == "/hang")
    assert re.search(r"ready again; \d+ requests got status 503", err)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_the_answer_meanwhile(start: Start, path: str) -> None:
    server = start()
    server.pid()
    (server.place / "fail").write_text("1")
    server.fail("/exit1")
    url = f"http://127.0.0.1:{server.port}{path}"
    refused = wait_for(lambda: [answer for answer in [httpx.post(url, content=b"x" * 3_000_000)] if answer.is_error])[0]
    page = httpx.get(f"http://127.0.0.1:{server.port}/")
    (server.place / "fail").unlink()
    assert page.headers["content-type"] == "text/html"
    assert '<meta http-equiv="refresh"' in page.text
    seconds = int(refused.headers["retry-after"])
    assert refused.status_code == 503
    assert seconds >= 1
    error = StatusError(503, f"the server is restarting; try again in {seconds} s", code="restarting")
    assert refused.json() == msgspec.json.decode(msgspec.json.encode(error_body(error, path)))
    server.pid()


def test_a_process_that_fails_again_and_again_is_started_less_and_less_often(start: Start) -> None:
    server = start(stable=100)
    for _ in range(4):
        server.pid()
        server.fail("/exit1")
    server.pid()
    times = server.starts()
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[1] >= 0.3
    assert gaps[2] >= 0.6
    server.program.signal(signal.SIGTERM)
    _, err = server.program.wait(20)
    delays = re.findall(r"another one starts( in [\d.]+ s)?\n", err)
    assert delays == ["", " in 0.3 s", " in 0.6 s", " in 1.2 s"]


@pytest.mark.parametrize(("trace", "code"), [("fail", 2), ("abort", 128 + signal.SIGABRT)])
def test_a_first_process_that_never_serves_ends_the_command(
    start: Start, tmp_path: Path, trace: str, code: int
) -> None:
    (tmp_path / trace).write_text("2")
    server = start(listens=False)
    _, err = server.program.wait(20)
    assert server.program.returncode == code
    assert ("ended before it was ready (SIGABRT)" in err) == (trace == "abort")
    assert len(server.starts()) == 1


def test_later_processes_that_never_serve_end_it_too(start: Start) -> None:
    server = start(delay=0.01)
    server.pid()
    (server.place / "fail").write_text("7")
    server.fail("/exit1")
    _, err = server.program.wait(20)
    assert server.program.returncode == 7
    assert len(server.starts()) == 6
    assert "the serving process ended before it was ready (exit code 7)" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_while_nobody_serves(start: Start, number: signal.Signals) -> None:
    server = start(stable=100, delay=60)
    server.pid()
    (server.place / "fail").write_text("1")
    server.fail("/exit1")
    wait_for(lambda: "another one starts in 60 s" in (next(server.place.glob("*/err")).read_text()))
    server.program.signal(number)
    server.program.wait(20)
    assert server.program.returncode == (
        0 if number == signal.SIGTERM else 1
    )  # KeyboardInterrupt, which `main` reports
    assert len(server.starts()) == 2


def test_ctrl_c_reaches_the_process_that_serves_once(start: Start) -> None:
    server = start()
    pid = server.pid()
    assert os.getsid(pid) != os.getsid(os.getpid())  # a terminal's Ctrl-C does not reach it
    server.program.signal(signal.SIGINT)
    server.program.wait(20)
    assert server.program.returncode == 130
    with pytest.raises(httpx.ConnectError):
        server.get()


def test_a_supervisor_that_is_killed_leaves_nobody_behind(start: Start) -> None:
    server = start()
    server.pid()
    server.program.signal(signal.SIGKILL)
    server.program.wait(20)
    wait_for((server.place / "left").exists)


def test_the_supervisor_imports_no_packages() -> None:
    code = (
        "import sys, headway.app.cli.main, headway.app.cli.serve, headway.serve.api_keys, headway.serve.supervisor; "
        "print(sorted({'torch', 'numpy', 'msgspec', 'starlette', 'uvicorn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class Stuck(NamedTuple):
    """A model's loop whose last step ended long ago."""

    seconds_since_step: float
    reads_whole_prompts: bool


@pytest.mark.parametrize(
    ("loop", "ends"),
    [(Stuck(59, False), False), (Stuck(61, False), True), (Stuck(61, True), False), (Stuck(661, True), True)],
)
def test_a_model_that_takes_no_step_ends_the_process(loop: Stuck, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    served = Resident([])
    monkeypatch.setattr(served, "loops", lambda: {"stuck": loop})
    here, there = socket.socketpair()
    with here, there:
        running = _Server(uvicorn.Config("none"), served, ServerSettings(), here)
        asyncio.run(running.on_tick(0))
        assert codes == [70] * ends
        assert there.recv(9) == b"."
        there.close()
        asyncio.run(running.on_tick(10))
        assert running.should_exit


SERVE = "import sys; from headway.app.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_that_is_killed_under_load_serves_again(data_dir: Path, tmp_path: Path) -> None:
    words = ("--port", "0", "--backend", "torch", "--device", "cpu", "--no-access-log")
    program = Program(tmp_path, SERVE, "serve", str(stories(data_dir)), *words)
    err = next(iter(wait_for(lambda: list(tmp_path.glob("*/err")))))
    url = wait_for(lambda: re.search(r"http://\S+", err.read_text()))[0]
    asked = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 100, "stream": True}
    text = json.dumps(asked)
    headers = {"Content-Type": "application/json"}

    def answer() -> tuple[int, str]:
        """Status and text of an answer; 0 without one, or if it broke off."""
        try:
            with httpx.stream("POST", f"{url}/v1/completions", content=text, headers=headers, timeout=60) as response:
                if response.status_code == 503:
                    return 503, response.headers["Retry-After"]
                lines = [line for line in response.iter_lines() if line]
            whole = lines[-1] == "data: [DONE]"
            return (response.status_code if whole else 0), "".join(lines[:-1])
        except httpx.TransportError:
            return 0, ""

    def content(lines: str) -> str:
        return "".join(re.findall(r'"text":"(.*?)"', lines))

    def client(_: int) -> list[tuple[int, str]]:
        answers = [answer()]
        while answers[-1][0] == 200 or all(status != 503 for status, _ in answers):
            answers.append(answer())
        while answers[-1][0] != 200:
            time.sleep(0.05)
            answers.append(answer())
        return answers

    [first] = [content(lines) for status, lines in [answer()] if status == 200]
    with ThreadPoolExecutor(4) as pool:
        clients = pool.map(client, range(4))
        wait_for(lambda: any(model["working"] for model in httpx.get(f"{url}/health").json()["models"].values()))
        [serving] = map(int, Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split())
        os.kill(serving, signal.SIGKILL)
        answers = list(clients)
    for statuses in answers:
        order = [status for status, _ in statuses]
        assert set(order) == {200, 503} or set(order) == {200, 503, 0}
        assert order[-1] == 200
    assert any(status == 0 for statuses in answers for status, _ in statuses)
    assert all(int(said) >= 1 for statuses in answers for status, said in statuses if status == 503)
    assert {content(said) for statuses in answers for status, said in statuses if status == 200} == {first}
    program.signal(signal.SIGTERM)
    _, told = program.wait(20)
    assert program.returncode == 0, told
    assert "the serving process ended (SIGKILL); another one starts" in told
    assert "Traceback" not in told
