"""`headway COMMAND`: find the command, run it, and turn errors into one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from keyword import iskeyword
from pathlib import Path

from headway.app.cli.options import Parser, add_common
from headway.app.cli.terminal import Terminal
from headway.errors import UserError, nearest, printable
from headway.io.outputs import check_output

# Each command has a module (see `module_of`) with EXAMPLE, arguments(parser) and run(args, terminal).
COMMANDS = {
    "demo": "train a small 2017 transformer on real words, show its output and write a report",
    "recipes": "list the built-in recipes and presets",
    "show": "show the parameters, memory and blocks of a recipe, preset, run or model",
    "models list": "list small models that headway makes in minutes, with data, licence and score",
    "models make": "make one of these models, or continue to make it",
    "train": "train a recipe on its own data or on yours",
    "plan": "estimate size, steps and memory for your data without training",
    "compare": "train variants on the same data, budget and size, and tabulate the results",
    "evaluate": "evaluate a run or model with the standard metrics of its domain",
    "generate": "continue a prompt",
    "chat": "chat with a model in the terminal",
    "translate": "translate text line by line",
    "transcribe": "transcribe audio or video, with timestamps",
    "answer": "answer a question with a part of a text",
    "fill": "predict the most probable words for the masks in a text",
    "import": "convert a published model to headway's own format",
    "export": "convert a run or model to a format that other programs read",
    "quantize": "quantise a model's weights to 8 or 4 bits for the CPU",
    "verify": "check that the files of a run or model are undamaged",
    "classify": "classify text, text pairs, images or audio",
    "caption": "write captions for images",
    "attention": "draw the attention weights of a text model",
    "lens": "show what each layer of a text model would predict",
    "look": "draw where an image model looks",
    "rerank": "rank documents by their relevance to a query",
    "tag": "tag each word of each line, and extract the entities",
    "embed": "embed each line as a vector, one JSON list per line",
    "board": "show the runs of a folder in the browser: live curves, comparisons, stop and resume",
    "open": "open a page in the browser to use and train models on this computer",
    "serve": "serve models over HTTP with an OpenAI-compatible API",
    "match": "match images with text descriptions",
    "forecast": "forecast time series as quantiles",
    "act": "choose the next action of an episode",
    "rollout": "play episodes in an environment with an agent, trajectory model or robot policy",
    "bench": "measure this machine's speed on a model shape, compared with other programs",
    "claims": "run the experiments behind the history of the transformer: result, figure, verdict",
    "chess move": "play a move in a game of chess",
    "chess uci": "play chess over UCI, for a chess GUI or a tournament",
    "chess puzzles": "measure how many chess puzzles in a file a model solves",
    "chess suite": "measure how many positions of a chess test suite (EPD) a model solves",
    "chess match": "play chess against Stockfish or another model, and estimate the Elo difference",
    "tokenizer train": "train a tokenizer.json on text",
    "doctor": "check this machine and the installation, with the command that mends what is wrong",
    "completion": "print a script that completes commands and options in your shell",
    "data list": "list the known data sets with source and licence",
    "data get": "download a known data set and verify it",
    "data prepare": "write data of any size as shards that a training reads from an index",
    "data collect": "record episodes or demonstrations in environments",
    "data label": "label chess positions with an engine's best moves and values",
}
# These run the engine's own threads; busy-waiting OpenMP threads of torch would take its cores.
_GENERATING = ("generate", "chat", "board", "open", "serve", "translate", "transcribe", "caption")
DEFAULTS = {"data": "list", "models": "list"}  # the command to run when only a group is named

# Parts of torch's out-of-memory messages, on a CPU and on a GPU.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

_MIN_MEMORY = 1 << 30  # bytes of address space that torch and a small model need
_MAX_MESSAGE = 1500  # characters per message
_OUTPUTS = ("out", "picture", "attention", "render", "pgn", "timeline")  # arguments that are output paths
_MODELS = ("model", "draft")  # models, in whose folders outputs are allowed
DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 2 bad argument or input, 130 Ctrl-C, 143 SIGTERM
    in a training, 1 otherwise."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_job(lambda: _dispatch(arguments), "--debug" in arguments)


def run_job(job: Callable[[], None], debug: bool) -> int:
    """Run a command, or its part in another process, print its error as one line, and return the exit code."""
    # Input is UTF-8 in every locale; file names that are not valid Unicode are printed with escapes.
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        job()
        sys.stdout.flush()
    except UserError as error:
        return _fail(_too_many_files(error) or str(error), USER_ERROR, debug)
    except UnicodeEncodeError as error:
        message = f"{error.object[: error.start + 20]!r} contains bytes that are not UTF-8; retype it"
        return _fail(message, USER_ERROR, debug)
    except UnicodeDecodeError as error:
        message = f"the input is not UTF-8 at byte {error.start}; convert it, for example: iconv -f ISO-8859-1 -t UTF-8"
        return _fail(message, USER_ERROR, debug)
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "number", signal.SIGINT)  # SIGTERM may stop a training
        return _fail(str(interrupt) or "interrupted", 128 + number, debug)
    except BrokenPipeError:  # the reader of the output (`| head`) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if message := _too_many_files(error):
            return _fail(message, USER_ERROR, debug)
        name, first = type(error).__name__, str(error).strip().split("\n")[0]
        message = f"{name}: {first}; add --debug for the traceback"
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: " if error.filename else ""
            message += error.strerror.lower()
        elif isinstance(error, MemoryError) or any(words in first for words in _OUT_OF_MEMORY):
            remedy = "reduce the batch or the number of tokens, or use a smaller model"
            message = f"out of memory ({first or name}); {remedy}"
        return _fail(message, FAILED, debug)
    return DONE


def _too_many_files(error: BaseException | None) -> str | None:
    """The message for an error that is, or was caused by, too many open files; None for other errors."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(error):
            maximum = _limit("RLIMIT_NOFILE")
            limit = "the system's" if maximum is None else maximum
            return f"too many files are open (the limit is {limit}); raise the limit, for example: ulimit -n 1024"
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
    if name in _GENERATING:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "RANK" in os.environ:  # headway reports a lost process; torch would print its own stack
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    command = import_module(module_of(name))
    parser = Parser(f"headway {name}", COMMANDS[name], command.EXAMPLE)
    command.arguments(parser)
    add_common(parser)
    args = parser.parse_args(rest)
    limit = _limit("RLIMIT_AS")
    if limit is not None and limit < _MIN_MEMORY:  # torch's libraries would crash without a message
        raise UserError(
            f"the memory limit of a process is {limit / 1e6:,.0f} MB, which is too little for torch; "
            f"raise it to {_MIN_MEMORY / 1e6:,.0f} MB or more, for example: ulimit -v {_MIN_MEMORY >> 10}"
        )
    inputs = [  # which must not be outputs as well
        argument
        for name, value in vars(args).items()
        if name not in _OUTPUTS
        for argument in (value if isinstance(value, list) else [value])
        if isinstance(argument, (str, Path)) and not (name in _MODELS and os.path.isdir(argument))
    ]
    for output in (getattr(args, name, None) for name in _OUTPUTS):
        if isinstance(output, (str, Path)):
            check_output(Path(output), inputs)
    if hasattr(args, "part") and (args.part is not None or args.join is not None or "RANK" in os.environ):
        from headway.app.cli import shares

        if args.part is not None or args.join is not None:
            shares.run(command, name, args, parser)
            return
        shares.check_alone(name, "--out" if hasattr(args, "out") else "--run")
    command.run(args, Terminal(args.json))


def _limit(name: str) -> int | None:
    """A resource limit of this process; None if it is unlimited or the system does not have it."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit


def module_of(command: str) -> str:
    """The module of a command: `a_b` for `a b`, and `import_` for `import`, a Python keyword."""
    name = command.replace(" ", "_")
    return f"headway.app.cli.{name}_" if iskeyword(name) else f"headway.app.cli.{name}"


def _find(arguments: list[str]) -> tuple[str, list[str]]:
    """The full name of the command (or group, if its help is requested) and the arguments after it."""
    first, rest = arguments[0], arguments[1:]
    if first.startswith("-"):
        raise UserError(f"option {first} comes before the command; write headway COMMAND {first}")
    if first in COMMANDS:
        return first, rest
    members = {name.split()[1] for name in COMMANDS if name.startswith(first + " ")}
    if not members:
        known = {name.split()[0] for name in COMMANDS}
        raise UserError(f"unknown command {first!r}; {nearest(first, known)}")
    if rest and not rest[0].startswith("-"):
        if rest[0] not in members:
            raise UserError(f"unknown command {first + ' ' + rest[0]!r}; {nearest(rest[0], members)}")
        return f"{first} {rest[0]}", rest[1:]
    if first not in DEFAULTS or rest[:1] in (["-h"], ["--help"]):
        return first, []
    return f"{first} {DEFAULTS[first]}", rest


def overview(commands: dict[str, str]) -> str:
    """The text of `headway --help`."""
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
            "Run headway COMMAND --help for the options of a command, with an example.",
            "example: headway demo",
        ]
    )


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        print("\n".join(map(printable, traceback.format_exc().split("\n"))), file=sys.stderr)
    line = printable(" ".join(message.split()))
    if len(line) > _MAX_MESSAGE:  # a file may contain a name of several megabytes
        line = f"{line[: _MAX_MESSAGE // 2]} ... {line[-_MAX_MESSAGE // 2 :]}"
    print(f"headway: {line}", file=sys.stderr)
    return code
