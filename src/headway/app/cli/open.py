"""`headway open`: a page in the browser to use and train models on this computer."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import platform
import secrets
import socket
import stat
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from headway.app.cli.options import torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway open
headway open my-model.gguf ~/models --runs ~/runs
headway open --shortcut
"""
_HOST = "127.0.0.1"
_ANSWER_SECONDS = 120.0  # for the server to start and answer; it imports torch first
_RETRY_SECONDS = 0.5
_ENDING_SECONDS = 20.0  # for a server that is about to end
_IDLE_SECONDS = 900.0  # after which a model that nobody uses is unloaded
_SLOTS, _QUEUE = 16, 64  # sequences that are generated at once, and requests that wait


def arguments(parser: argparse.ArgumentParser) -> None:
    paths = "run, model or folder of models to serve, in addition to the runs and the models made so far"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=paths)
    runs = "folder of runs to show and to train in (default: ./runs if it exists, otherwise ~/headway/runs)"
    parser.add_argument("--runs", metavar="DIR", help=runs)
    add_no_browser(parser)
    shortcut = "add headway to the applications of the desktop instead (Linux)"
    parser.add_argument("--shortcut", action="store_true", help=shortcut)


def add_no_browser(parser: argparse.ArgumentParser) -> None:
    """Add --no-browser, for commands that call `open_page`."""
    parser.add_argument("--no-browser", action="store_true", help="print the address instead of opening the browser")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    if args.shortcut:
        from headway.app.cli.shortcut import write_shortcut

        written = write_shortcut([] if args.runs is None else [f"--runs={_absolute(args.runs)}"], _models(args.paths))
        terminal.print(f"headway is among the applications of your desktop now ({written}).")
        terminal.print_result({"shortcut": written})
        return
    from headway.io.files import user_path

    default = "runs" if os.path.isdir("runs") else "~/headway/runs"
    runs = user_path(default if args.runs is None else args.runs)
    open_page(args, terminal, runs, args.paths)


def open_page(
    args: argparse.Namespace, terminal: Terminal, runs: Path, paths: Sequence[str] = (), tab: str = ""
) -> None:
    """Open the page in the browser, on the tab with this id: on the server of this folder of runs, which is started if
    this user has none. A server that is started ends with Ctrl-C; if there was one, return at once.

    `args` has the common options and that of `add_no_browser`. Every request to the server needs a key, because other
    users of this machine can reach it, too. UserError for a path that is not a model, and without a cache folder.
    """
    models, runs = _models(paths), _absolute(runs)
    if runs.exists() and not runs.is_dir():
        raise UserError(f"{runs} is not a folder; pass a folder with --runs")
    with _claim(runs) as place:
        if place.sock is None:
            address = _address(place, models, tab)
            _show(address, args.no_browser, terminal, f"headway runs already (process {place.process}), at {place.url}")
            terminal.print_result({"url": place.url, "process": place.process, "started": False})
            return
        terminal.note(f"The page is at {place.url} (press Ctrl-C to stop)")
        thread = threading.Thread(target=_show_when_ready, args=(place, models, tab, args.no_browser, terminal))
        thread.daemon = True  # it waits for a server that may never be ready
        thread.start()
        from headway.serve.supervisor import can_supervise, supervise

        if can_supervise():
            sys.exit(supervise(place.sock, partial(_serve_in_process, args, place._replace(sock=None), runs)))
        _serve(args, place, runs, place.sock)


class _Place(NamedTuple):
    """Where a server is. Its state file has the first three; only the process that starts it has the socket."""

    port: int
    process: int
    secret: str
    state: Path
    sock: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}"


@contextmanager
def _claim(runs: Path) -> Iterator[_Place]:
    """The running server of this folder of runs, or a socket and a state file for a new one; the file is locked as long
    as the server runs, so one that was killed leaves nothing behind. Two that claim at the same moment get the same.
    """
    from headway.io.cache import cache_errors, cache_root, file_lock
    from headway.io.durable import write_json

    folder = cache_root() / "open"
    name = hashlib.blake2b(f"{platform.node()}\n{runs}".encode(errors="surrogateescape"), digest_size=8).hexdigest()
    state = folder / f"{name}.json"
    with ExitStack() as until_end:
        with cache_errors(folder):
            _check_owner(folder)
            folder.chmod(0o700)
            with file_lock(folder / "start.lock"):
                place, deadline = None, time.monotonic() + _ENDING_SECONDS
                while place is None:
                    try:
                        until_end.enter_context(file_lock(folder / f"{name}.lock", wait=False))
                        break
                    except BlockingIOError:  # a server runs, or is about to end and has closed its port
                        is_late = time.monotonic() > deadline
                        if is_late or (state.exists() and _is_listening(_read_state(state).port)):
                            place = _read_state(state)
                        time.sleep(_RETRY_SECONDS)
                if place is None:
                    sock = until_end.enter_context(_listen(folder / f"{name}.port"))
                    place = _Place(sock.getsockname()[1], os.getpid(), secrets.token_urlsafe(32), state, sock)
                    for path in (state, _sessions_path(state)):
                        path.unlink(missing_ok=True)
                        until_end.callback(path.unlink, missing_ok=True)
                    write_json(state, dict(zip(_Place._fields, place[:3])), private=True)
        yield place


def _listen(remembered: Path) -> socket.socket:
    """A socket at the port of the last time, because browsers store conversations by address; at a free one if another
    program has it.
    """
    from headway.serve.listener import open_listener

    with suppress(OSError, ValueError, UserError):
        port = int(remembered.read_text())
        if 1024 <= port < 1 << 16:
            return open_listener(_HOST, port, anyone=False)
    sock = open_listener(_HOST, 0, anyone=False)
    remembered.write_text(str(sock.getsockname()[1]))
    return sock


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=_ANSWER_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:  # it is busy
        return True
    return True


def _check_owner(path: Path) -> None:
    """UserError if another user owns this file or folder, or may read the file."""
    status = path.lstat()
    is_shared = stat.S_ISREG(status.st_mode) and status.st_mode & 0o077
    if os.name == "posix" and (status.st_uid != os.getuid() or is_shared or stat.S_ISLNK(status.st_mode)):
        raise UserError(
            f"{path} is a link, or belongs to another user; remove it, or set HEADWAY_CACHE to a folder of your own"
        )


def _read_state(path: Path) -> _Place:
    from headway.io.durable import read_json

    try:
        _check_owner(path)
        state = read_json(path)
        return _Place(int(state["port"]), int(state["process"]), str(state["secret"]), path)
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        message = f"{path} is damaged, and the headway that wrote it runs; end that process, and run headway open again"
        raise UserError(message) from None


def _sessions_path(state: Path) -> Path:
    return state.with_suffix(".sessions.json")


def _address(place: _Place, models: Sequence[Path], tab: str) -> str:
    """The page's address with a new one-time key, after adding models to the server. UserError without an answer."""
    deadline, body = time.monotonic() + _ANSWER_SECONDS, {"secret": place.secret, "folders": [*map(str, models)]}
    while True:
        connection = http.client.HTTPConnection(_HOST, place.port, timeout=_ANSWER_SECONDS)  # not through a proxy
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/session/one-time-key", json.dumps(body), headers)
            answer = connection.getresponse()
            content: Any = json.loads(answer.read())
            if answer.status == http.HTTPStatus.OK:
                return f"{place.url}/#key={content['one_time_key']}" + (f"&tab={tab}" if tab else "")
            problem = content["error"]["message"]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            problem = str(error) or type(error).__name__
        finally:
            connection.close()
        if time.monotonic() > deadline:
            remedy = f"end it (kill {place.process}), and run headway open again"
            raise UserError(f"headway runs at {place.url} (process {place.process}) but fails: {problem}; {remedy}")
        time.sleep(_RETRY_SECONDS)


def _show_when_ready(place: _Place, models: Sequence[Path], tab: str, no_browser: bool, terminal: Terminal) -> None:
    """In a thread of the process that starts the server: what the next `headway open` does, too."""
    try:
        _show(_address(place, models, tab), no_browser, terminal)
    except UserError as error:
        terminal.note(str(error))


def _show(address: str, no_browser: bool, terminal: Terminal, text: str = "") -> None:
    has_display = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME")
    )
    opened = False
    if has_display and not no_browser:
        with suppress(webbrowser.Error, OSError):
            opened = webbrowser.open(address)
    if text:
        terminal.note(text)
    if opened:
        terminal.note("The browser opens. If it does not, run headway open --no-browser.")
    else:
        reason = "" if no_browser else "There is no browser to open. "
        terminal.note(f"{reason}Open this address on this computer, once and within 5 minutes:\n{address}")


def _models(paths: Sequence[str]) -> list[Path]:
    """Absolute paths of models, and of folders of models. UserError for a path that has none."""
    from headway.io.files import user_path
    from headway.serve.model_folders import find_models

    for path in paths:
        if not user_path(path).exists():
            raise UserError(f"{path} does not exist; pass a run, a model or a folder of models")
        if not find_models(user_path(path)):
            raise UserError(f"{path} has no model; pass a run, a model (a folder or a .gguf file) or a folder of them")
    return [_absolute(path) for path in paths]


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


def _serve_in_process(
    args: argparse.Namespace, place: _Place, runs: Path, sock: socket.socket, channel: socket.socket
) -> int:
    """In the process that serves: its exit code."""
    from headway.app.cli.main import run_job

    return run_job(lambda: _serve(args, place, runs, sock, channel), args.debug)


def _serve(
    args: argparse.Namespace, place: _Place, runs: Path, sock: socket.socket, channel: socket.socket | None = None
) -> None:
    try:
        from headway.serve.server import run_server
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}; run pip install 'headway[serve]'") from None
    from headway.app.loading import find_device
    from headway.app.starters import models_folder
    from headway.serve.engine_loop import open_engine_loop
    from headway.serve.engine_preparation import EnginePreparation
    from headway.serve.interfaces import ServerSettings
    from headway.serve.models import LoadOptions, ServedModels
    from headway.serve.session_keys import SessionKeys

    sessions = SessionKeys(_sessions_path(place.state), place.secret, [runs, models_folder()])
    with torch_options(args):
        options = LoadOptions(args.device, backend=args.backend)
        start = lambda model, name: open_engine_loop(model, name, _SLOTS, _QUEUE)  # noqa: E731
        has_engine = args.backend != "torch" and find_device(args.device).type == "cpu"
        preparation = EnginePreparation() if has_engine else None
        models = ServedModels([], sessions.folders, options, start, _IDLE_SECONDS, True, preparation)
        run_server(models, ServerSettings(sessions=sessions, runs=runs, log=False), sock, channel)
