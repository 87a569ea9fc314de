"""`headway serve`: models over HTTP, in the form of the OpenAI API."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import add_cache, number, torch_options, whole
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway serve runs/my-answers --weights int8
headway serve runs/my-answers --host 0.0.0.0 --allow-host chat.example.org --api-key @keys.txt
curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once upon a time"}'
"""
KEYS = (
    "API key that clients must send; repeatable; @FILE: a file with a line KEY or KEY N each, at most N requests at "
    "once, read again when it changes"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="*", metavar="RUN|MODEL", help="run directories or published models, loaded when asked for")
    add("--models", dest="folder", type=Path, metavar="DIR", help="a folder whose models are served, too")
    add("--keep-alive", type=number(0), metavar="S", help="let a model go that was idle for S seconds (default: never)")
    add("--host", default="127.0.0.1", metavar="H", help="the address to listen at (default: 127.0.0.1)")
    add("--port", type=whole(0, 65535), default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    add("--api-key", action="append", default=[], metavar="KEY|@FILE", help=KEYS)
    add("--insecure", action="store_true", help="without keys, even where other machines reach the server")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name that the server is asked by")
    add("--cors", action="append", default=[], metavar="ORIGIN", help="a web page that may ask; * for all")
    add("--slots", type=whole(1), default=64, metavar="N", help="texts that are written at once (default: 64)")
    add("--queue", type=whole(1), default=256, metavar="N", help="requests that wait for a model (default: 256)")
    memory = "GB of keys and values (default: a quarter of free memory)"
    add("--cache-memory", type=number(0, above=True), metavar="G", help=memory)
    add("--timeout", type=number(0, above=True), default=600.0, metavar="S", help="seconds of a request (default: 600)")
    add(
        "--grace", type=number(0), default=10.0, metavar="S", help="seconds for what is begun, at the end (default: 10)"
    )
    add("--no-access-log", action="store_true", help="no line on stdout for each request")
    add_cache(parser)
    add("--draft", type=Path, metavar="RUN|MODEL", help="a smaller model that guesses ahead: one request at a time")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    try:
        from headway.serve.program import listener, run_server, url_of
    except ModuleNotFoundError as error:
        raise UserError(f"the server needs {error.name}; pip install 'headway[serve]'") from None
    from headway.serve.frame import ServerSettings
    from headway.serve.keys import KeyFile, parsed
    from headway.serve.loop import open_loop
    from headway.serve.models import LoadOptions, ServedModels

    settings = ServerSettings(
        keys=tuple(key for given in args.api_key if given[:1] != "@" for key in parsed([given], given)),
        key_files=tuple(KeyFile(Path(given[1:])) for given in args.api_key if given[:1] == "@"),
        hosts=(args.host, *args.allow_host),
        origins=tuple(args.cors),
        seconds=args.timeout,
        grace=args.grace,
        log=not args.no_access_log,
    )
    memory = None if args.cache_memory is None else int(args.cache_memory * 1e9)
    bound = listener(args.host, args.port, settings, args.insecure)
    with torch_options(args), bound:
        options = LoadOptions(args.device, args.weights, args.backend, args.cache, args.draft)
        start = lambda model, name: open_loop(model, name, args.slots, args.queue, memory)  # noqa: E731
        models = ServedModels(args.models, args.folder, options, start, args.keep_alive)
        names = list(models.listed())
        terminal.note(f"{', '.join(names)} at {url_of(bound)} (Ctrl-C ends it)")
        for note in models.notes():
            terminal.note(note)
        run_server(models, settings, bound)
    terminal.result({"models": names})
