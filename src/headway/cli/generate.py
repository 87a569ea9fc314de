"""`headway generate`: continue a prompt."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headway.cli.options import number, torch_options, whole
from headway.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway generate runs/shakespeare --prompt "ROMEO:" --max-new-tokens 200 --temperature 0.8
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--prompt", required=True, metavar="TEXT|@FILE|-", help="text, a file or standard input"
    )
    add_sampling(parser, tokens=100)


def add_sampling(parser: argparse.ArgumentParser, tokens: int) -> None:
    """The options that `generate` and `chat` share."""
    add = parser.add_argument
    add("--max-new-tokens", type=whole(1), default=tokens, metavar="N", help=f"at most N (default: {tokens})")
    add("--temperature", type=number(0), default=1.0, metavar="T", help="0 takes the likeliest (default: 1)")
    add("--top-k", type=whole(1), metavar="K", help="only the K likeliest tokens")
    add("--top-p", type=number(0, 1, above=True), metavar="P", help="only the likeliest that sum to P")
    add(
        "--min-p",
        type=number(0, 1),
        metavar="P",
        help="only those at least P times as likely as the likeliest",
    )
    add("--repetition-penalty", type=number(0, above=True), metavar="R", help="above 1 repeats less")
    add("--stop", action="append", metavar="S", help="end before this text; may be given several times")


def sampling(args: argparse.Namespace) -> dict:
    """What `add_sampling` read, as arguments of Model.generate and Model.stream."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    prompt = read_prompt(args.prompt)
    import headway as hw

    with torch_options(args):
        model = hw.load(args.model, device=args.device)
        if args.json:
            terminal.result(model.completion(prompt, **sampling(args)))
            return
        terminal.say(prompt, end="")
        for piece in model.stream(prompt, **sampling(args)):
            terminal.say(piece, end="")
        terminal.say()


def read_prompt(text: str) -> str:
    """The prompt: standard input for `-`, a file's text for `@FILE`, else the text itself."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist; give a file, or the text without the @")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file {path} is no UTF-8 at byte {error.start}; convert it") from None
