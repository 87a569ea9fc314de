"""Options that every command has, and an argument parser whose errors are UserErrors of one line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from headway.errors import UserError, nearest

if TYPE_CHECKING:
    from headway.app.model import Model

_DIGITS = 100  # of a number
BACKENDS = "what generates: cpu is the compiled engine; auto takes it for what it can do (default: auto)"


class Parser(argparse.ArgumentParser):
    """Raises UserError, suggests the nearest option, and ends its help with an example."""

    def __init__(self, name: str, summary: str, example: str) -> None:
        super().__init__(
            prog=name,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n{_indent(example)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows how")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("-"):
                option = word.partition("=")[0]
                known = [o for o in self._option_string_actions if o.startswith("--")]
                raise UserError(f"{self.prog} has no option {option}; {nearest(option, known)}")
        if unknown:
            raise UserError(f"{unknown[0]!r} is one argument too many; {self.prog} --help shows how")
        return parsed


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every command."""
    add = parser.add_argument_group("everywhere").add_argument
    add("--threads", type=threads, metavar="N", help="processor threads (default: torch's choice)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one")
    add("--backend", default="auto", type=backend, metavar="auto|torch|cpu", help=BACKENDS)
    add("--seed", type=whole(0, 2**63 - 1), metavar="N", help="seed of everything random")
    add(
        "--deterministic",
        action="store_true",
        help="results of a row do not depend on the batch: batched = single = cached, and slower",
    )
    add("--json", action="store_true", help="print one JSON object as the last line of stdout")
    add("--debug", action="store_true", help="show the traceback of an error")


def add_recipe(parser: argparse.ArgumentParser, settings: str = "settings of the recipe") -> None:
    """The data and the settings of a recipe."""
    add_data(parser, "your own data")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"{settings}, as in model.width=256 optim.lr=0.001",
    )


def add_start(parser: argparse.ArgumentParser) -> None:
    """What fine-tuning starts from, and whether it trains an adapter."""
    parser.add_argument("--from", dest="start", metavar="RUN|MODEL", help="start from its weights and tokenizer")
    parser.add_argument(
        "--lora", type=whole(1), metavar="RANK", help="train a low-rank adapter (LoRA) instead of all weights"
    )


def add_data(parser: argparse.ArgumentParser, about: str) -> None:
    """Paths of data, which a word of the shell is even where it looks like a text."""
    parser.add_argument("--data", nargs="+", action="extend", type=_path, metavar="PATH", help=about)


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not a path")
    return Path(text)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for whole numbers from `least` on, or to `most`."""

    def read(text: str) -> int:
        digits = text.removeprefix("-")
        known = digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS
        if not known or int(text) < least or (most is not None and int(text) > most):
            limit = "on" if most is None else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text[:_DIGITS]!r} is not a whole number from {least} {limit}")
        return int(text)

    return read


def number(low: float, high: float = float("inf"), *, above: bool = False) -> Callable[[str], float]:
    """A type for numbers from `low` (or, with `above`, beyond it) to `high`."""

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
    """A type for --backend."""
    if text not in ("auto", "torch", "cpu"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a backend; use auto, torch or cpu")
    return text


def threads(text: str) -> int:
    """A type for --threads."""
    count, cores = whole(1)(text), os.cpu_count() or 1
    if count > cores:
        raise argparse.ArgumentTypeError(f"{count} threads on {cores} cores wait for each other; give at most {cores}")
    return count


def add_weights(parser: argparse.ArgumentParser) -> None:
    """The option of commands that compute with a model."""
    forms = ("fp32", "int8", "int4")
    parser.add_argument(
        "--weights", choices=forms, help="round the weights to 8 or 4 bits first (default: as they are)"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The options of commands that generate with keys and values of their past."""
    add_weights(parser)
    add_cache_form(parser)


def add_cache_form(parser: argparse.ArgumentParser) -> None:
    """The format of keys and values alone."""
    default = "default: fp16 for quantised weights, otherwise fp32"
    parser.add_argument("--cache", choices=("fp32", "fp16", "int8"), help=f"number format of the KV cache ({default})")


def add_server(parser: argparse.ArgumentParser) -> None:
    """The option of commands that a server can answer."""
    parser.add_argument(
        "--server",
        metavar="URL",
        help="have a server of headway compute: the model is the one that it calls so (key: HEADWAY_API_KEY)",
    )


# What a server has chosen for itself, and what none of its answers can be asked with.
_OWN = {"weights": None, "cache": None, "draft": None, "device": "auto", "backend": "auto", "threads": None}
_OWN |= {"deterministic": False}


def load(args: argparse.Namespace) -> Model:
    """The model that a command was given, here or at a server. UserError for options that are a server's own."""
    import headway as hw

    if getattr(args, "server", None) is not None:
        chosen = [name for name, default in _OWN.items() if getattr(args, name, default) != default]
        if chosen:
            raise UserError(f"--{chosen[0]} is chosen where the server is started; leave it out, or --server")
        return cast("Model", hw.connect(args.server, model=str(args.model)))  # which has the methods that commands use
    given = {name: getattr(args, name) for name in ("weights", "cache", "draft") if hasattr(args, name)}
    return hw.load(args.model, args.device, backend=args.backend, **given)


@contextmanager
def torch_options(args: argparse.Namespace) -> Iterator[None]:
    """Threads and deterministic kernels as the common options say, while a command works."""
    if getattr(args, "server", None) is not None:
        yield  # nothing is computed here
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
