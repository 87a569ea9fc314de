"""Commands as processes of their own, seen by several programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.app import jobs as module
from headway.app.jobs import FOLDER, Job, jobs, start_job, stop_job
from headway.errors import UserError
from headway.io.durable import machine_id, process_start

SLEEP = (sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until(runs: Path, name: str, state: str) -> Job:
    wait_for(lambda: jobs(runs)[name].state == state)
    return jobs(runs)[name]


def test_a_job_ends_with_its_exit_code_and_its_last_line(tmp_path: Path) -> None:
    good = start_job(tmp_path, "good", (sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"))
    bad = start_job(
        tmp_path, "bad one", ("sh", "-c", "echo work; echo 'headway: no room\x1b[2J; free space' >&2; exit 2")
    )
    assert good.state == bad.state == "running"
    assert until(tmp_path, "good", "finished").message == "''", "it has no input to wait for"
    ended = until(tmp_path, "bad one", "failed")
    assert ended.message == "no room\\x1b[2J; free space"
    assert ended.log.read_text().startswith("work\n")
    with pytest.raises(ChildProcessError):  # it was waited for, so it is not a zombie
        os.waitpid(bad.process, os.WNOHANG)
    again = start_job(tmp_path, "bad one", ("true",))
    assert again.process != bad.process
    assert until(tmp_path, "bad one", "finished").message == ""


def test_a_job_is_in_a_session_of_its_own_and_is_stopped_once(tmp_path: Path) -> None:
    job = start_job(tmp_path, "long", SLEEP, {"HEADWAY_TEST": "1"})
    wait_for(lambda: jobs(tmp_path)["long"].message == "begun")
    assert os.getsid(job.process) == job.process != os.getsid(0)
    with pytest.raises(UserError, match="already running"):
        start_job(tmp_path, "long", SLEEP)
    stop_job(tmp_path, "long")
    assert until(tmp_path, "long", "failed").process == job.process
    with pytest.raises(UserError, match="not running"):
        stop_job(tmp_path, "long")


def test_a_job_outlives_its_starter_and_another_program_stops_it(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from headway.app.jobs import start_job\n"
    code += f"print(start_job(Path({str(tmp_path)!r}), 'alone', {SLEEP!r}).process)"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    job = jobs(tmp_path)["alone"]
    assert job.state == "running"
    assert job.process == int(started.stdout)
    wait_for(lambda: jobs(tmp_path)["alone"].message == "begun")
    stop_job(tmp_path, "alone")
    assert until(tmp_path, "alone", "ended").message == "begun"


def test_a_recycled_process_id_is_never_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    try:
        record = {"command": ["x"], "process": other.pid, "machine": machine_id(), "started": 1.0, "exit_code": None}
        (tmp_path / FOLDER).mkdir()
        for began in ("1", None):
            (tmp_path / FOLDER / "old.json").write_text(json.dumps({**record, "began": began}))
            assert jobs(tmp_path)["old"].state == "ended"
            with pytest.raises(UserError, match="not running on this machine"):
                stop_job(tmp_path, "old")
        elsewhere = {**record, "began": process_start(other.pid), "machine": "elsewhere"}
        (tmp_path / FOLDER / "far.json").write_text(json.dumps(elsewhere))
        assert jobs(tmp_path)["far"].state == "ended"
        with pytest.raises(UserError, match="not running on this machine"):
            stop_job(tmp_path, "far")
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def test_damaged_states_and_wrong_names_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for number, content in enumerate(("", "[]", "{}", '{"command": [], "process": -1}', '"' + "x" * 9999)):
        (folder / f"broken{number}.json").write_text(content)
    assert jobs(tmp_path) == {}
    assert jobs(tmp_path / "none") == {}
    for name in ("", ".hidden", "a/b", "..", "a\\b", "a\nb", "a\0b", "x" * 101, "ä" * 101, " x", "x "):
        with pytest.raises(UserError, match="cannot be the name"):
            start_job(tmp_path, name, ("true",))
    with pytest.raises(UserError, match="cannot be started: No such file"):
        start_job(tmp_path, "missing", ("/no/such/program",))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / FOLDER).symlink_to(folder)
    with pytest.raises(UserError, match="is a link"):
        start_job(tmp_path / "linked", "x", ("true",))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "open_run_file", full)
    with pytest.raises(UserError, match="No space left on device; "):
        start_job(tmp_path, "x", ("true",))


def test_an_exit_code_that_is_recorded_while_a_job_is_read_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start_job(tmp_path, "x", ("sh", "-c", "exit 3"))
    until(tmp_path, "x", "failed")
    state = tmp_path / FOLDER / "x.json"
    record = json.loads(state.read_text())
    state.write_text(json.dumps({**record, "exit_code": None}))

    def look(process: int) -> bool:  # the program that started it removes the zombie now
        state.write_text(json.dumps(record))
        return False

    monkeypatch.setattr(module, "is_running", look)
    assert process_start(job.process) is None
    assert jobs(tmp_path)["x"].state == "failed"


def test_a_job_that_ended_before_its_start_was_read_runs_until_its_exit_code_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, write = threading.Event(), module.write_json

    def late(path: Path, content: dict[str, object]) -> None:
        assert content["exit_code"] is None or record.wait(20)
        write(path, {**content, "began": None})

    monkeypatch.setattr(module, "write_json", late)
    job = start_job(tmp_path, "x", ("sh", "-c", "exit 3"))
    wait_for(lambda: process_start(job.process) is None)
    assert jobs(tmp_path)["x"].state == "running"
    record.set()
    until(tmp_path, "x", "failed")


def test_an_exit_code_is_recorded_when_the_disk_has_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tries = module.write_json, []

    def full(path: Path, record: dict[str, object]) -> None:
        if record["exit_code"] is not None and len(tries) < 3:
            tries.append(jobs(tmp_path)["x"].state)
            raise UserError("no space")
        write(path, record)

    monkeypatch.setattr(module, "write_json", full)
    for name in ("_RETRY_SECONDS", "_LATER_SECONDS"):
        monkeypatch.setattr(module, name, 0.2)
    monkeypatch.setattr(module, "_FIRST_TRIES", 2)
    start_job(tmp_path, "x", ("sh", "-c", "sleep 0.2; exit 3"))
    assert until(tmp_path, "x", "ended").message == "", "nobody waits for a full disk"
    until(tmp_path, "x", "failed")
    assert tries == ["running", "running", "ended"]
    start_job(tmp_path, "x", ("sh", "-c", "kill -9 $$"))
    until(tmp_path, "x", "failed")
    assert json.loads((tmp_path / FOLDER / "x.json").read_text())["exit_code"] == -signal.SIGKILL


@pytest.mark.parametrize("error", [AttributeError(), OSError(38, "ENOSYS"), PermissionError(1, "EPERM")])
def test_a_job_is_stopped_without_handles_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(_: int) -> int:
        raise error

    monkeypatch.setattr(os, "pidfd_open", refuse)
    start_job(tmp_path, "long", SLEEP)
    stop_job(tmp_path, "long")
    until(tmp_path, "long", "failed")
