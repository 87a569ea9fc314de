"""Options shared by the commands, and an argument parser that reports errors as one-line UserErrors."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from headway.app.verb_table import declaration
from headway.errors import UserError, nearest

if TYPE_CHECKING:
    from headway.app.model import Model

_MAX_DIGITS = 100  # digits per number
BACKEND_HELP = (
    "generation backend; cpu is the compiled engine, and auto uses it for every model it supports (default: auto)"
)


class Parser(argparse.ArgumentParser):
    """Raises UserError, suggests the nearest option, and ends its help with an example. If the command `takes_recipe`,
    the settings of that recipe's task are options, too.
    """

    takes_recipe = False

    def __init__(self, name: str, summary: str, example: str) -> None:
        super().__init__(
            prog=name,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n{textwrap.indent(example.strip(), '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        if self.takes_recipe and args and not args[0].startswith("-"):
            options = {word.partition("=")[0] for word in args if word.startswith("--")}
            if options - self._option_string_actions.keys() or "--help" in options:
                # An option for each simple setting of the recipe's task. Imports the recipe's domain.
                from headway.app.recipes import load_recipe
                from headway.config import shortcuts

                with suppress(UserError):  # the command reports it
                    task, recipe = load_recipe(args[0]).task, args[0]
                    title = f"settings of {recipe}'s task (--name VALUE is short for --set task.name=VALUE)"
                    group = self.add_argument_group(title)
                    for field in fields(task):
                        default = getattr(task, field.name)
                        option, is_flag = f"--{field.name.replace('_', '-')}", isinstance(default, bool)
                        if option in self._option_string_actions or is_dataclass(default):
                            continue
                        kind: Any = {"nargs": "?", "const": "true"} if is_flag else {}
                        value = "none" if default is None else str(default).lower() if is_flag else str(default)
                        kind["help"] = f"default: {value}".replace("%", "%%")
                        if field.type in ("str", "str | None") and field.name not in shortcuts(type(task)):
                            kind["type"] = quoted
                        group.add_argument(option, action=_TaskSetting, dest="set", metavar="VALUE", **kind)
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown and not any(word.startswith("-") for word in unknown):  # texts after options
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        for word in unknown:
            if word.startswith("-"):
                option = word.partition("=")[0]
                known = [o for o in self._option_string_actions if o.startswith("--")]
                raise UserError(f"{self.prog} has no option {option}; {nearest(option, known)}")
        if unknown:
            raise UserError(f"unexpected argument {unknown[0]!r}; see {self.prog} --help")
        return parsed


def quoted(text: str) -> str:
    """The value of a setting that is a string: text that is JSON of another type, such as 42 or [0], in quotes."""
    from headway.config import parse_value

    return text if isinstance(parse_value(text), (str, NoneType)) else json.dumps(text)


class _TaskSetting(argparse.Action):
    """Adds task.NAME=VALUE to the settings."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = (option_string or "").removeprefix("--").replace("-", "_")
        namespace.set = [*(namespace.set or ()), f"task.{name}={values}"]


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command."""
    add = parser.add_argument_group("common options").add_argument
    add("--threads", type=threads, metavar="N", help="number of CPU threads (default: torch's default)")
    add(
        "--device",
        default="auto",
        help="device to run on: cpu, cuda, cuda:1 or mps; auto uses a GPU if available (default: auto)",
    )
    add("--backend", default="auto", type=backend, metavar="auto|torch|cpu", help=BACKEND_HELP)
    add("--seed", type=integer(0, 2**63 - 1), metavar="N", help="random seed")
    add(
        "--deterministic",
        action="store_true",
        help="make each row's result independent of the rest of its batch (slower)",
    )
    add("--json", action="store_true", help="print one JSON object as the last line of stdout")
    add("--debug", action="store_true", help="print the traceback of an error")


def add_recipe(parser: argparse.ArgumentParser, settings: str = "settings to override") -> None:
    """Add the options for a recipe's data and settings."""
    if isinstance(parser, Parser):
        parser.takes_recipe = True
    add_data(parser, "your own data files or folders")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"{settings}, such as model.width=256 optim.lr=0.001",
    )


def add_fine_tuning(parser: argparse.ArgumentParser) -> None:
    """Add the options for fine-tuning: the model to start from, and LoRA."""
    parser.add_argument(
        "--from", dest="start", metavar="RUN|MODEL", help="fine-tune this model: start from its weights and tokenizer"
    )
    parser.add_argument(
        "--lora", type=integer(1), metavar="RANK", help="train a low-rank adapter (LoRA) instead of all weights"
    )


def add_data(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add --data. Its arguments are always paths, even if they look like text."""
    parser.add_argument("--data", nargs="+", action="extend", type=_path, metavar="PATH", help=help_text)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not a path")
    return Path(text)


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """An argparse type for integers from `minimum` to `maximum`."""

    def read(text: str) -> int:
        digits = text.removeprefix("-")
        is_integer = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS
        if not is_integer or int(text) < minimum or (maximum is not None and int(text) > maximum):
            limit = "" if maximum is None else f" and at most {maximum}"
            raise argparse.ArgumentTypeError(f"{text[:_MAX_DIGITS]!r} is not an integer of at least {minimum}{limit}")
        return int(text)

    return read


def number(low: float, high: float = float("inf"), *, above: bool = False) -> Callable[[str], float]:
    """An argparse type for numbers from `low` (exclusive with `above`) to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not math.isfinite(value) or not (low < value <= high or (value == low and not above)):
            limit = f" to {high:g}" if high < float("inf") else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {'above' if above else 'from'} {low:g}{limit}")
        return value

    return read


def backend(text: str) -> str:
    """The argparse type of --backend."""
    if text not in ("auto", "torch", "cpu"):
        raise argparse.ArgumentTypeError(f"unknown backend {text!r}; use auto, torch or cpu")
    return text


def threads(text: str) -> int:
    """The argparse type of --threads."""
    count, cores = integer(1)(text), os.cpu_count() or 1
    if count > cores:
        raise argparse.ArgumentTypeError(f"{count} threads are too many for {cores} cores; use at most {cores}")
    return count


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add --weights, for commands that run a model."""
    dtypes = ("fp32", "bf16", "int8", "int4")
    default = "default: as stored; bf16 for generation on a GPU"
    parser.add_argument("--weights", choices=dtypes, help=f"number format of the weights ({default})")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add --weights and --cache, for commands that generate with a KV cache."""
    add_weights(parser)
    add_cache_dtype(parser)


def add_cache_dtype(parser: argparse.ArgumentParser) -> None:
    """Add only --cache."""
    default = "default: fp16 for quantised weights, otherwise fp32"
    parser.add_argument("--cache", choices=("fp32", "fp16", "int8"), help=f"number format of the KV cache ({default})")


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add --server, for commands that a server can run."""
    parser.add_argument(
        "--server",
        metavar="URL",
        help="run on this headway server, where RUN|MODEL is the model's name (API key: HEADWAY_API_KEY)",
    )


def add_shares(parser: argparse.ArgumentParser, out: str | None = "folder of all parts, which they share") -> None:
    """Add --part, --join and, with an explanation, --out, for commands that work in shares."""
    add = parser.add_argument
    add(
        "--part",
        metavar="I/N|auto",
        help="compute only part I of N, from 1; auto takes both from torchrun or Slurm, and auto/N takes I from "
        "Kubernetes",
    )
    if out is not None:
        add("--out", type=Path, metavar="DIR", help=out)
    add("--join", type=Path, action=_Join, metavar="DIR", help="print the output of all parts in DIR; takes no model")


class _Join(argparse.Action):
    """Stores the folder. The parts know model and inputs, so no other argument is required any more."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        for required in (*parser._actions, *parser._mutually_exclusive_groups):
            required.required = False


# Options that are set when the server starts, not per request, with their defaults.
_SERVER_OPTIONS = {"weights": None, "cache": None, "draft": None, "device": "auto", "backend": "auto", "threads": None}
_SERVER_OPTIONS |= {"deterministic": False}


def load(args: argparse.Namespace) -> Model:
    """The model of a command, loaded here or on a server. Raises UserError for options that only the server sets."""
    import headway as hw

    if getattr(args, "server", None) is not None:
        overridden = [name for name, default in _SERVER_OPTIONS.items() if getattr(args, name, default) != default]
        if overridden:
            raise UserError(f"--{overridden[0]} is set when the server starts; remove it, or remove --server")
        return cast("Model", hw.connect(args.server, model=str(args.model)))  # it has the methods that commands use
    options = {name: getattr(args, name) for name in ("weights", "cache", "draft") if hasattr(args, name)}
    return hw.load(args.model, args.device, backend=args.backend, **options)


def add_verb(
    parser: argparse.ArgumentParser,
    verb: str,
    omit: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    types: Mapping[str, Callable[[str], Any]] | None = None,
    options: Mapping[str, str] | None = None,
) -> None:
    """Add an option for each optional argument of a verb, with the default of its signature and the explanation of its
    docstring, except those in `omit` and those that are options already.

    `options` names some options differently, and `defaults` replaces some defaults. `types` are argparse types of some
    arguments; others are integers of at least 1, or numbers of at least 0. A capital letter in an explanation stands
    for the value.
    """
    signature, explanations = declaration(verb)
    for argument in list(signature.parameters.values())[1:]:
        name, kind = argument.name, str(argument.annotation).removesuffix(" | None")
        option = (options or {}).get(name, f"--{name.replace('_', '-')}")
        if argument.default is argument.empty or name in ("seed", *omit) or option in parser._option_string_actions:
            continue
        text = explanations[name]
        default = (defaults or {}).get(name, argument.default)
        if isinstance(default, bool) or kind == "bool":
            parser.add_argument(option, action="store_true", default=default, help=text)
        elif kind.startswith("str |"):
            parser.add_argument(option, action="append", default=[], metavar="TEXT", help=f"{text}; repeatable")
        else:
            value_type: Any = None
            metavar = "TEXT"
            if kind == "int":
                value_type, metavar = integer(1), "N"
            elif kind == "float":
                value_type, metavar = number(0), name.rpartition("_")[2][0].upper()
            if letter := re.search(r"\b[A-Z]\b", text):
                metavar = letter[0]
            if isinstance(default, (int, float)):
                text += f" (default: {default:g})"
            value_type = (types or {}).get(name, value_type)
            parser.add_argument(option, dest=name, type=value_type, default=default, metavar=metavar, help=text)


def verb_options(args: argparse.Namespace, verb: str) -> dict[str, Any]:
    """The options of a command that are optional arguments of a model's verb, by name."""
    parameters = declaration(verb).signature.parameters
    return {
        name: value
        for name, value in vars(args).items()
        if name in parameters and parameters[name].default is not parameters[name].empty
    }


@contextmanager
def torch_options(args: argparse.Namespace) -> Iterator[None]:
    """Apply --threads and --deterministic while a command runs."""
    if getattr(args, "server", None) is not None:
        yield  # the server computes
        return
    import torch

    from headway.nn.kernels import deterministic

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.deterministic:
        with deterministic():
            yield
    else:
        yield
