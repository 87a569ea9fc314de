"""Two jobs in one folder notice each other, where locks of the system do nothing, and a lock that is left behind blocks
nobody.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_task import counting_recipe
from tiny_task import train as count

from headway.app.cli.main import USER_ERROR, main
from headway.errors import UserError
from headway.io import lease
from headway.io.durable import machine_id
from headway.io.lease import Lease
from headway.learn.run import RunDirectory

PERIOD = 0.25
FOREIGN = {"host": "gpu-7", "process": 123, "machine": "0000", "started": 1.7e9}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_PERIOD", PERIOD)
    monkeypatch.setattr(lease, "_SETTLE", PERIOD / 2)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system where it succeeds and excludes nobody."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


def left(folder: Path, **changes: Any) -> Path:
    """What a job has left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").write_text("123")
    (folder / ".lease").write_text(json.dumps({**FOREIGN, **changes, "count": 7}))
    return folder


def seconds_to_take(folder: Path) -> float:
    start = time.monotonic()
    with RunDirectory(folder).locked():
        record = json.loads((folder / ".lease").read_text())
        assert (record["process"], record["machine"]) == (os.getpid(), machine_id())
        return time.monotonic() - start


@pytest.mark.usefixtures("no_flock")
def test_a_second_job_is_refused_where_locks_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "play.txt").write_text("to be or not to be\n" * 500)
    with RunDirectory(tmp_path / "run").locked():
        told = rf"run is being trained by another process \(process {os.getpid()} on .*, since 20\d\d-.*\); wait until"
        with pytest.raises(UserError, match=told), RunDirectory(tmp_path / "run").locked():
            pass
        words = ["--data", str(tmp_path / "play.txt"), "--run", str(tmp_path / "run")]
        assert main(["train", "text", *words]) == USER_ERROR
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    count(tmp_path / "run", counting_recipe(steps=2))
    assert not (tmp_path / "run" / ".lease").exists()


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Path]:
    """A folder in which a job of another machine is at work."""
    folder, ended = left(tmp_path / "living"), threading.Event()

    def renew() -> None:
        for number in range(1000):
            (folder / ".lease").write_text(json.dumps({**FOREIGN, "count": number}))
            if ended.wait(PERIOD):
                return

    thread = threading.Thread(target=renew)
    thread.start()
    yield folder
    ended.set()
    thread.join()


def test_a_job_of_another_machine_is_noticed(living: Path) -> None:
    with pytest.raises(UserError, match=r"process 123 on gpu-7, since 2023-11-1"), RunDirectory(living).locked():
        pass
    assert json.loads((living / ".lease").read_text())["host"] == "gpu-7"


@pytest.mark.parametrize("noop", [False, True])
def test_what_a_killed_job_has_left_is_taken_over(
    noop: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    if noop:
        request.getfixturevalue("no_flock")
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert seconds_to_take(left(tmp_path / "ended", machine=machine_id(), process=child)) < 2 * PERIOD
    alive = seconds_to_take(left(tmp_path / "alive", machine=machine_id(), process=os.getppid()))
    assert (alive >= 2 * PERIOD) == noop, "an id that another process has now, unless a lock tells"
    with caplog.at_level(logging.WARNING):
        assert seconds_to_take(left(tmp_path / "foreign")) >= 2 * PERIOD
    assert "foreign may be in use by process 123 on gpu-7, since 2023-11-1" in caplog.text


CONTENTS = (b"", b"[1", b"null", b"[]", b"\xff\0" * 5000, b'{"process": "x", "started": 1e99}')


def test_a_lease_that_nobody_can_read_is_taken_over(tmp_path: Path) -> None:
    folders = [left(tmp_path / str(number)) for number in range(len(CONTENTS))]
    for folder, content in zip(folders, CONTENTS):
        (folder / ".lease").write_bytes(content)
    with ThreadPoolExecutor(len(folders)) as pool:
        assert min(pool.map(seconds_to_take, folders)) >= 2 * PERIOD
    assert not list(tmp_path.rglob(".lease"))


def test_contents_written_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shorter of two contents would leave the end of the longer one, which nobody can read."""
    sizes = set()
    for host in ("a", "a-host-with-a-long-name"):
        monkeypatch.setattr(lease.platform, "node", lambda host=host: host)
        job = Lease(tmp_path / host)
        assert job.take(lambda: False) is None
        sizes.add(job.path.stat().st_size)
        job.release()
    assert len(sizes) == 1


@pytest.mark.usefixtures("no_flock")
def test_of_two_that_take_over_at_once_one_remains(tmp_path: Path) -> None:
    path, results = left(tmp_path) / ".lease", list[str | None]()
    leases = [Lease(path) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda lease=lease: results.append(lease.take(lambda: False))) for lease in leases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(None) == 1
    for each in leases:
        each.release()


@pytest.mark.usefixtures("no_flock")
def test_a_job_that_was_paused_for_long_does_not_write_into_the_other_s_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_renew", lambda *_: None)
        with paused.locked():
            (tmp_path / "run" / "recipe.json").write_text("{}")
            assert seconds_to_take(left(tmp_path / "run")) >= 2 * PERIOD
            left(tmp_path / "run")
            with pytest.raises(UserError, match="run was taken over by process 123 on gpu-7, since"):
                paused.write_status({"status": "running"})
    assert json.loads((tmp_path / "run" / ".lease").read_text())["host"] == "gpu-7"


def test_a_lease_is_renewed_and_written_again(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run").locked():
        path = tmp_path / "run" / ".lease"
        first = path.read_text()
        time.sleep(2.5 * PERIOD)
        second = path.read_text()
        assert second != first
        assert len(second) == len(first)  # in place, also on a full disk
        path.unlink()
        time.sleep(2.5 * PERIOD)
        assert path.exists()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Lease, "_create", full)
    with pytest.raises(UserError, match="run cannot be written: No space left on device; "):
        count(tmp_path / "run", counting_recipe(steps=2))
