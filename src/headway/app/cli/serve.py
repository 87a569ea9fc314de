"""`headway serve`: serve models over HTTP with an OpenAI-compatible API."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.options import add_cache, integer, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    import socket

    from headway.serve.api_keys import ApiKey, KeyFile

EXAMPLE = """
headway serve runs/my-answers --weights int8
headway serve runs/my-answers --host 0.0.0.0 --allow-host chat.example.org --api-key @keys.txt
curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once upon a time"}'
"""
KEY_HELP = (
    "API key that clients must send; repeatable; @FILE has a line per key, KEY or KEY N for at most N concurrent "
    "requests, ending in train if it may train, and is reloaded when it changes"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="RUN|MODEL",
        help="run directory or published model to serve, loaded at the first request",
    )
    add("--models", dest="folder", type=Path, metavar="DIR", help="folder with more models to serve")
    add("--runs", type=Path, metavar="DIR", help="folder of runs to show, train in and serve models of (default: none)")
    add("--keep-alive", type=number(0), metavar="S", help="unload a model after S idle seconds (default: never)")
    add("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    port = "port to listen on; 0 chooses a free port (default: 8000)"
    add("--port", type=integer(0, 65535), default=8000, metavar="N", help=port)
    add("--api-key", action="append", default=[], metavar="KEY|@FILE", help=KEY_HELP)
    add(
        "--insecure",
        action="store_true",
        help="allow requests without a key even if other machines can reach the server",
    )
    add("--allow-host", action="append", default=[], metavar="NAME", help="host name to accept in requests; repeatable")
    add(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of web pages that may send requests; * for all; repeatable",
    )
    slots = "number of sequences to generate at once (default: 64)"
    add("--slots", type=integer(1), default=64, metavar="N", help=slots)
    queue = "maximum number of waiting requests per model (default: 256)"
    add("--queue", type=integer(1), default=256, metavar="N", help=queue)
    memory = "memory for the KV cache in GB (default: a quarter of free memory)"
    add("--cache-memory", type=number(0, above=True), metavar="G", help=memory)
    timeout = "time limit of a request in seconds (default: 600)"
    add("--timeout", type=number(0, above=True), default=600.0, metavar="S", help=timeout)
    grace = "seconds to wait at shutdown for running requests to finish (default: 10)"
    add("--grace", type=number(0), default=10.0, metavar="S", help=grace)
    budget = "maximum tokens of thinking in requests without thinking_token_budget; 0 turns it off (default: no limit)"
    add("--thinking-token-budget", type=integer(0), metavar="N", help=budget)
    add("--no-access-log", action="store_true", help="do not log each request on stdout")
    add_cache(parser)
    add(
        "--draft",
        type=Path,
        metavar="RUN|MODEL",
        help="smaller model for speculative decoding; limits generation to one request at a time",
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    # This process imports no torch; the process that serves does.
    from headway.serve.api_keys import KeyFile, parse_keys
    from headway.serve.listener import open_listener
    from headway.serve.supervisor import can_supervise, supervise

    keys = [key for argument in args.api_key if argument[:1] != "@" for key in parse_keys([argument], argument)]
    key_files = [KeyFile(Path(argument[1:])) for argument in args.api_key if argument[:1] == "@"]
    with open_listener(args.host, args.port, bool(keys or key_files or args.insecure)) as sock:
        if can_supervise():
            sys.exit(supervise(sock, partial(_serve_in_process, args, keys, key_files)))
        _serve(args, keys, key_files, sock)


def _serve_in_process(
    args: argparse.Namespace,
    keys: Sequence[ApiKey],
    key_files: Sequence[KeyFile],
    sock: socket.socket,
    channel: socket.socket,
) -> int:
    """In the process that serves: its exit code."""
    from headway.app.cli.main import run_job

    return run_job(lambda: _serve(args, keys, key_files, sock, channel), args.debug)


def _serve(
    args: argparse.Namespace,
    keys: Sequence[ApiKey],
    key_files: Sequence[KeyFile],
    sock: socket.socket,
    channel: socket.socket | None = None,
) -> None:
    try:
        from headway.serve.server import run_server
    except ModuleNotFoundError as error:
        raise UserError(f"the server needs {error.name}; run pip install 'headway[serve]'") from None
    from headway.serve.engine_loop import open_engine_loop
    from headway.serve.interfaces import ServerSettings
    from headway.serve.listener import url_of
    from headway.serve.models import LoadOptions, ServedModels

    for file in key_files:  # read when the command started, which a later process need not have seen
        file.refresh()
    settings = ServerSettings(
        keys=tuple(keys),
        key_files=tuple(key_files),
        hosts=(args.host, *args.allow_host),
        origins=tuple(args.cors),
        request_seconds=args.timeout,
        grace=args.grace,
        thinking_token_budget=args.thinking_token_budget,
        log=not args.no_access_log,
        runs=None if args.runs is None else args.runs.absolute(),
    )
    memory = None if args.cache_memory is None else int(args.cache_memory * 1e9)
    terminal = Terminal(args.json)
    with torch_options(args):
        options = LoadOptions(args.device, args.weights, args.backend, args.cache, args.draft)
        start = lambda model, name: open_engine_loop(model, name, args.slots, args.queue, memory)  # noqa: E731
        folders, has_runs = [folder for folder in (args.folder, settings.runs) if folder], settings.runs is not None
        models = ServedModels(args.models, folders, options, start, args.keep_alive, may_be_empty=has_runs)
        names = list(models.listed())
        what = [*names, *([f"runs in {args.runs}"] if has_runs else [])]
        terminal.note(f"{', '.join(what)} at {url_of(sock)} (press Ctrl-C to stop)")
        for note in models.notes():
            terminal.note(note)
        run_server(models, settings, sock, channel)
    terminal.print_result({"models": names})
