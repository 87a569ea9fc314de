"""`headway COMMAND`: finds the command, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from keyword import iskeyword
from pathlib import Path
from typing import Any

from headway.app.cli.options import Parser, add_common
from headway.app.cli.terminal import Terminal
from headway.errors import UserError, nearest, printable
from headway.outputs import check_output

# Each has a module of its own (see `module_of`) with EXAMPLE, arguments(parser) and run(args, terminal).
COMMANDS = {
    "demo": "train a small 2017 transformer on real words, show it at work, write its report",
    "recipes": "list the built-in recipes and presets",
    "show": "parameters, memory and blocks of a recipe, preset, run or model",
    "train": "train a recipe, on its own data or on yours",
    "plan": "size, steps and time for your data without training",
    "compare": "train variants on the same data, budget and size: one table and picture",
    "evaluate": "measure a run or model with the standard metrics of its domain",
    "generate": "continue a prompt",
    "chat": "several turns in the terminal, streamed",
    "translate": "a line in, a line out",
    "transcribe": "sounds to text, with times",
    "fill": "the most probable words where a text has masks",
    "import": "a published model into headway's own folder",
    "export": "a run or model in a format that others read",
    "quantize": "a model with its weights in 8 or 4 bits, for the CPU",
    "verify": "whether the files of a run or model are as they were written",
    "classify": "texts, pairs of texts or images to labels with probabilities",
    "caption": "images to what they show",
    "attention": "where a model of texts looks, as a picture",
    "rerank": "documents by their relevance to a query",
    "tag": "a tag for each word of each line, and the entities they spell",
    "embed": "lines to vectors, a JSON list a line",
    "serve": "models over HTTP, in the form of the OpenAI API",
    "match": "which of some texts say what images show",
    "forecast": "what comes after time series, as quantiles",
    "rollout": "a model of trajectories or a robot's policy plays episodes in an environment",
    "bench": "how fast this machine runs a shape, beside other programs",
    "claims": "the experiments behind the history of the transformer: result, picture, verdict",
    "chess uci": "play chess over UCI, in a board of yours or a tournament",
    "chess puzzles": "how many chess puzzles of a file a model solves",
    "chess suite": "how many positions of a chess test suite (EPD) a model solves",
    "chess match": "games of chess against Stockfish or another model: the difference in Elo",
    "tokenizer train": "make a tokenizer.json from text",
    "data list": "known data sets with source and licence",
    "data get": "download a known data set and check it",
    "data collect": "record episodes or demonstrations in environments",
    "data label": "positions of chess with the best moves and values that an engine finds",
}
# Their engine has threads of its own, and those of torch that wait busily would take its cores.
_WRITING = ("generate", "chat", "serve", "translate", "transcribe", "caption")
DEFAULTS = {"data": "list"}  # what a group of commands does when none is named

# What torch says in a RuntimeError, on a processor and on a GPU.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

_LEAST_MEMORY = 1 << 30  # bytes of addresses, which torch and a small model take
_LONGEST = 1500  # characters of a message
_OUTPUTS = ("out", "picture", "attention", "render", "pgn", "timeline")  # arguments that name files to write
_MODELS = ("model", "draft")  # in whose folders results may be kept
DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 a bad argument or input, 130 Ctrl-C, 1 else."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Lines of files are UTF-8 in every locale; names of files that are no Unicode are shown as escapes.
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _dispatch(arguments)
        sys.stdout.flush()
    except UserError as error:
        return _fail(_few_files(error) or str(error), USER_ERROR, arguments)
    except UnicodeEncodeError as error:
        told = f"{error.object[: error.start + 20]!r} holds bytes that are no UTF-8; write it anew"
        return _fail(told, USER_ERROR, arguments)
    except UnicodeDecodeError as error:
        told = f"the input is not UTF-8 at byte {error.start}; convert it, for example: iconv -f ISO-8859-1 -t UTF-8"
        return _fail(told, USER_ERROR, arguments)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", INTERRUPTED, arguments)
    except BrokenPipeError:  # the reader of our output (`| head`) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        few = _few_files(error)
        return _fail(few or _describe(error), USER_ERROR if few else FAILED, arguments)
    return DONE


def _few_files(error: BaseException | None) -> str | None:
    """What to say where an error, or one that it came of, is that no more files can be opened; None for others."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(error):
            most = _limit("RLIMIT_NOFILE")
            limit = "the system's" if most is None else most
            return f"too few files can be open at once (the limit is {limit}); allow more, for example: ulimit -n 1024"
        error = error.__cause__ or error.__context__
    return None


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(COMMANDS))
        return
    if arguments[0] == "--version":
        from headway import __version__

        print(f"headway {__version__}")
        return
    name, rest = _find(arguments)
    if name not in COMMANDS:
        print(overview({full: text for full, text in COMMANDS.items() if full.split()[0] == name}))
        return
    if name in _WRITING:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = import_module(module_of(name))
    parser = Parser(f"headway {name}", COMMANDS[name], command.EXAMPLE)
    command.arguments(parser)
    add_common(parser)
    args = parser.parse_args(rest)
    _check_memory()
    _check_outputs(vars(args))
    command.run(args, Terminal(args.json))


def _check_outputs(args: Mapping[str, Any]) -> None:
    """UserError, before any work, for an output file that is an input of the same command."""
    inputs = [
        item
        for name, value in args.items()
        if name not in _OUTPUTS
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, (str, Path)) and not (name in _MODELS and os.path.isdir(item))
    ]
    for name in _OUTPUTS:
        if isinstance(args.get(name), (str, Path)):
            check_output(Path(args[name]), inputs)


def _check_memory() -> None:
    """UserError where a process may have so little memory that torch's libraries would end it without a word."""
    most = _limit("RLIMIT_AS")
    if most is not None and most < _LEAST_MEMORY:
        raise UserError(
            f"a process may have {most / 1e6:,.0f} MB of memory here, which is too little for torch; "
            f"allow {_LEAST_MEMORY / 1e6:,.0f} MB or more, for example: ulimit -v {_LEAST_MEMORY >> 10}"
        )


def _limit(name: str) -> int | None:
    """A resource limit of this process; None if it is unlimited or unknown to this system."""
    try:
        import resource
    except ImportError:
        return None
    found = resource.getrlimit(getattr(resource, name))[0]
    return None if found == resource.RLIM_INFINITY else found


def module_of(command: str) -> str:
    """Where a command lives: `a b` in `a_b`, and `import`, a word of Python's own, in `import_`."""
    name = command.replace(" ", "_")
    return f"headway.app.cli.{name}_" if iskeyword(name) else f"headway.app.cli.{name}"


def _find(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's full name (or a group's, when help about it is wanted) and the arguments after it."""
    first, rest = arguments[0], arguments[1:]
    if first.startswith("-"):
        raise UserError(f"option {first} stands before the command; write headway COMMAND {first}")
    if first in COMMANDS:
        return first, rest
    members = {name.split()[1] for name in COMMANDS if name.startswith(first + " ")}
    if not members:
        known = {name.split()[0] for name in COMMANDS}
        raise UserError(f"there is no command {first!r}; {nearest(first, known)}")
    if rest and not rest[0].startswith("-"):
        if rest[0] not in members:
            raise UserError(f"there is no command {first + ' ' + rest[0]!r}; {nearest(rest[0], members)}")
        return f"{first} {rest[0]}", rest[1:]
    if first not in DEFAULTS or rest[:1] in (["-h"], ["--help"]):
        return first, []
    return f"{first} {DEFAULTS[first]}", rest


def overview(commands: dict[str, str]) -> str:
    """The page of `headway --help`."""
    lines = [f"  {name:<17}{text}" for name, text in commands.items()]
    return "\n".join(
        [
            "headway: train, check and run the transformer family and its ancestors.",
            "",
            "usage: headway COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "headway COMMAND --help tells more of a command, with an example.",
            "example: headway demo",
        ]
    )


def _describe(error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror.lower()}"
    first = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError) or any(words in first for words in _NO_MEMORY):
        return f"memory ran out ({first or name}); ask for fewer tokens or rows at once, or take a smaller model"
    return f"{name}: {first}; --debug shows where"


def _fail(message: str, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        import traceback

        print("\n".join(map(printable, traceback.format_exc().split("\n"))), file=sys.stderr)
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:  # a name in a file may have megabytes
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    print(f"headway: {line}", file=sys.stderr)
    return code
