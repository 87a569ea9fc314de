"""`headway open`: one server per folder of runs, its keys, the browser, and the entry of a desktop."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serve_models import stories

from headway.app.cli import main as cli
from headway.app.cli import open as opening
from headway.app.cli.shortcut import write_shortcut
from headway.app.cli.terminal import Terminal
from headway.errors import UserError
from headway.io import durable
from headway.serve import session_keys
from headway.serve.session_keys import SessionKeys, key_digest
from processes import Program

OPEN = """
import sys
from headway.app.cli.main import main
from headway.serve import supervisor
supervisor.can_supervise = lambda: False  # test_serve_restart has servers with a supervisor
sys.exit(main(["open", "--no-browser", "--device", "cpu", "--backend", "torch", *sys.argv[1:]]))
"""
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/#key=([\w-]+)(&tab=\w+)?\n")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME", "XDG_DATA_HOME", "HEADWAY_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def post(url: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def models(url: str, key: str | None) -> list[str]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/models", headers=headers), timeout=30) as answer:
        return [model["id"] for model in json.load(answer)["data"]]


def test_two_at_the_same_moment_have_one_server_and_the_next_adds_its_models(home: Path, data_dir: Path) -> None:
    both = [Program(home, OPEN) for _ in range(2)]
    while all(program.returncode is None for program in both):
        time.sleep(0.02)
    both.sort(key=lambda program: program.returncode is None)
    done, server = both
    err = done.wait()[1]
    assert done.returncode == 0, err
    assert "headway runs already (process" in err
    [(one_time_key, _)] = ADDRESS.findall(err)
    url = err[err.index("http://") :].split()[0]
    key = post(url, "/v1/session", one_time_key=one_time_key)["key"]
    assert models(url, key) == []
    for path, body, keys in (
        ("/v1/models", None, (None, "wrong", one_time_key)),
        ("/v1/session", {"one_time_key": "wrong"}, (None,)),
        ("/v1/session/one-time-key", {"secret": key}, (None,)),  # a page cannot open others
    ):
        for secret in keys:
            with pytest.raises(urllib.error.HTTPError) as error:
                models(url, secret) if body is None else post(url, path, **body)
            assert error.value.code == 401
            assert "run headway open" in json.load(error.value)["error"]["message"]
    third = Program(home, OPEN, str(stories(data_dir)), "--json")
    out, err = third.wait()
    assert json.loads(out) == {"url": url, "process": server.pid, "started": False}
    assert ADDRESS.search(err)
    time.sleep(1)
    assert models(url, key) == ["stories260K"]
    [state] = [path for path in (home / "cache/open").glob("*.json") if ".sessions" not in path.name]
    assert state.stat().st_mode & 0o777 == 0o600
    assert (home / "cache/open").stat().st_mode & 0o777 == 0o700
    server.signal(signal.SIGINT)
    assert server.wait()[1].splitlines()[-1] == "headway: interrupted"
    assert server.returncode == cli.INTERRUPTED
    assert sorted(path.suffix for path in (home / "cache/open").iterdir()) == [".lock", ".lock", ".port"]


def test_what_a_killed_process_left_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opening._claim(home / "runs") as first:
        content = first.state.read_text()
    first.state.write_text(content)
    with opening._claim(home / "runs") as place:
        assert place.sock is not None
        assert json.loads(place.state.read_text())["secret"] == place.secret != first.secret
        with opening._claim(home / "other") as other:
            assert other.sock is not None  # each folder of runs has a server of its own
        with opening._claim(home / "runs") as again:
            assert again == place._replace(sock=None)
        place.state.write_text("{}")
        with pytest.raises(UserError, match=r"is damaged.*; end that process"), opening._claim(home / "runs"):
            pass
        place.state.unlink()
        monkeypatch.setattr(opening, "_ENDING_SECONDS", 0.0)
        with pytest.raises(UserError, match="is damaged"), opening._claim(home / "runs"):
            pass


def test_the_address_stays_the_same_unless_another_program_has_it(home: Path) -> None:
    """Browsers store conversations by address."""
    ports = []
    for content in (None, None, "", "80", "65536"):
        if content is not None:
            next((home / "cache/open").glob("*.port")).write_text(content)
        with opening._claim(home / "runs") as place:
            ports.append(place.port)
    assert ports[0] == ports[1]
    assert all(port >= 1024 for port in ports)
    with socket.create_server(("127.0.0.1", ports[-1])), opening._claim(home / "runs") as place:
        assert place.sock is not None
        assert place.port != ports[-1]


def test_a_server_that_is_ending_is_waited_for(home: Path) -> None:
    ended = threading.Event()

    def end() -> None:
        with opening._claim(home / "runs") as place:
            assert place.sock is not None
            place.sock.close()
            ended.set()
            time.sleep(0.5)

    thread = threading.Thread(target=end)
    thread.start()
    assert ended.wait(10)
    with opening._claim(home / "runs") as place:
        assert place.sock is not None
    thread.join()


def test_files_of_another_user_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opening._claim(home / "runs") as place:
        place.state.chmod(0o644)
        with pytest.raises(UserError, match="belongs to another user"), opening._claim(home / "runs"):
            pass
    monkeypatch.setattr(opening.os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"open is a link, or belongs to another user"), opening._claim(home / "runs"):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("HEADWAY_CACHE", str(home / "linked"))
    (home / "linked").mkdir()
    (home / "linked/open").symlink_to(home / "cache/open")
    with pytest.raises(UserError, match="is a link"), opening._claim(home / "runs"):
        pass


def test_a_cache_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("HEADWAY_CACHE", str(home / "file"))
    with pytest.raises(UserError, match="set HEADWAY_CACHE to a writable folder"), opening._claim(home / "runs"):
        pass
    monkeypatch.setenv("HEADWAY_CACHE", str(home / "cache"))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "_sync", full)
        with pytest.raises(UserError, match="No space left on device"), opening._claim(home / "runs"):
            pass
    with opening._claim(home / "runs") as place:
        assert place.sock is not None


def test_a_one_time_key_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sessions.json"
    keys = SessionKeys(path, "secret", [tmp_path / "runs"])
    assert keys.issue("Secret") is None
    assert keys.exchange("") is keys.exchange("never") is None
    first, second = keys.issue("secret"), keys.issue("secret", [tmp_path / "a", tmp_path / "runs"])
    assert first is not None
    assert second is not None
    key = keys.exchange(first)
    other = keys.exchange(second)
    assert key is not None
    assert other is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert not any(secret in path.read_text() for secret in ("secret", first, second, key, other))
    again = SessionKeys(path, "secret", [tmp_path / "runs"])  # another process that serves
    assert again.folders == [tmp_path / "runs", tmp_path / "a"]
    assert [again.is_valid(key_digest(text)) for text in (key, other, first, "secret", "")] == [True] * 2 + [False] * 3
    assert keys.exchange(first) is None  # who sends it now may be its owner, and the first a thief
    assert [keys.is_valid(key_digest(text)) for text in (key, other)] == [False, True]
    late = keys.issue("secret")
    assert late is not None
    now = time.monotonic()
    monkeypatch.setattr(session_keys.time, "monotonic", lambda: now + session_keys.ONE_TIME_SECONDS + 1)
    assert keys.exchange(late) is None
    assert keys.exchange(second) is None
    assert keys.is_valid(key_digest(other))  # an old address in the history of a browser ends no session


def test_keys_of_a_full_disk_are_valid_while_the_process_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = SessionKeys(tmp_path / "none/sessions.json", "secret", [])
    (tmp_path / "none").touch()
    one_time_key = keys.issue("secret")
    assert one_time_key is not None
    key = keys.exchange(one_time_key)
    assert key is not None
    assert keys.is_valid(key_digest(key))
    assert "sessions are not stored" in caplog.text


@pytest.mark.parametrize("works", [True, False])
def test_the_browser_opens_where_there_is_a_display(
    home: Path, works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(opening.webbrowser, "open", lambda address: addresses.append(address) or works)
    monkeypatch.setattr(opening.sys, "platform", "linux")

    def shown(no_browser: bool = False) -> str:
        opening._show("http://127.0.0.1:1/#key=a", no_browser, Terminal())
        return capsys.readouterr().err

    assert "There is no browser to open. Open this address" in shown()
    assert not addresses
    monkeypatch.setenv("DISPLAY", ":0")
    assert shown(no_browser=True).startswith("Open this address")
    assert not addresses
    assert ("#key=a" in shown()) != works  # an address that was opened is printed nowhere
    assert addresses == ["http://127.0.0.1:1/#key=a"]


def test_paths_that_are_no_models(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "notes").mkdir()
    (home / "notes/a.txt").touch()
    (home / "runs").mkdir()
    for words, message in (
        (["none"], "none does not exist; pass a run, a model or a folder of models"),
        (["notes"], "notes has no model; pass a run"),
        (["notes/a.txt"], "a.txt has no model"),
        (["--runs", "notes/a.txt"], "a.txt is not a folder; pass a folder with --runs"),
        (["--shortcut", "none"], "none does not exist"),
    ):
        assert cli.main(["open", *words]) == cli.USER_ERROR
        assert message in capsys.readouterr().err
    assert not (home / "cache/open").exists()


def test_the_shortcut(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / 'it\'s "50 %" \\ $HOME `x`'
    folder.mkdir()
    (folder / "a.gguf").touch()
    assert cli.main(["open", "--shortcut", str(folder), "--runs", "my runs"]) == 0
    entry = home / ".local/share/applications/headway.desktop"
    assert str(entry) in capsys.readouterr().out
    lines = dict(line.split("=", 1) for line in entry.read_text().splitlines()[1:])
    # The general escape of strings first, then the quotes of Exec, which are a shell's, then its field codes.
    command = lines["Exec"].replace("\\\\", "\\").replace("%%", "%")
    found = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    cache = f"HEADWAY_CACHE={home / 'cache'}"
    words = ["env", cache, sys.executable, "-m", "headway", "open", f"--runs={home / 'my runs'}", str(folder)]
    assert found.stdout.splitlines() == words
    assert lines["Terminal"] == "false"
    assert Path(lines["Icon"]).read_text().startswith("<svg")
    if shutil.which("desktop-file-validate"):
        subprocess.run(["desktop-file-validate", "--no-warn-deprecated", entry], check=True)
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    assert write_shortcut([], []) == home / "data/applications/headway.desktop"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert write_shortcut([], []) == entry
    with pytest.raises(UserError, match="contains characters"):
        write_shortcut([], [home / "two\nlines"])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="is for Linux"):
        write_shortcut([], [])
