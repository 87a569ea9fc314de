"""`headway generate`: continue a prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.options import add_cache, add_server, integer, load, number, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.generate import Limits, Sampling

EXAMPLE = """
headway generate runs/shakespeare --prompt "ROMEO:" --max-new-tokens 200 --temperature 0.8
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="run directory or published model")
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="TEXT|@FILE|-",
        help="prompt: text, @FILE for a file, or - for standard input",
    )
    add_sampling(parser, tokens=100)


def add_sampling(parser: argparse.ArgumentParser, tokens: int) -> None:
    """Add the options that `generate` and `chat` share."""
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=integer(1),
        default=tokens,
        metavar="N",
        help=f"maximum number of new tokens (default: {tokens})",
    )
    add(
        "--temperature", type=number(0), default=1.0, metavar="T", help="sampling temperature; 0 is greedy (default: 1)"
    )
    add("--top-k", type=integer(1), metavar="K", help="sample only from the K most probable tokens")
    add(
        "--top-p",
        type=number(0, 1, above=True),
        default=1.0,
        metavar="P",
        help="sample from the most probable tokens with total probability P (default: 1)",
    )
    add(
        "--min-p",
        type=number(0, 1),
        default=0.0,
        metavar="P",
        help="drop tokens less probable than P times the most probable one (default: 0)",
    )
    add(
        "--repetition-penalty",
        type=number(0, above=True),
        default=1.0,
        metavar="R",
        help="penalty on repeated tokens; 1 turns it off (default: 1)",
    )
    add("--stop", action="append", default=[], metavar="S", help="stop before this string; repeatable")
    add_cache(parser)
    drafts = "smaller model with the same tokenizer, for speculative decoding: same output, usually faster"
    add("--draft", type=Path, metavar="RUN|MODEL", help=drafts)
    add_server(parser)


def sampling_settings(args: argparse.Namespace) -> tuple[Sampling, Limits]:
    """The parsed options of `add_sampling`."""
    from headway.generate import Limits, Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, args.seed)
    return sampling, Limits(args.max_new_tokens, tuple(args.stop))


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    prompt = read_prompt(args.prompt)
    with torch_options(args):
        if args.server is not None:
            model = load(args)
            text = stream_output(model.stream(prompt, **verb_options(args, "stream", model)), prompt, terminal)
            terminal.print_result({"prompt": prompt, "text": text})
            return
        sampling, limits = sampling_settings(args)
        model = load(args)
        if args.json:
            completion = model.complete([prompt], sampling, limits)[0]
            names = ("text", "logprobs", "finish_reason", "tokens_per_second")
            fields = {name: getattr(completion, name) for name in names}
            terminal.print_result({"prompt": prompt, "tokens": completion.ids, **fields, "beyond": model.unexpected})
            return
        stream_output(model.continuations(prompt, sampling, limits), prompt, terminal)


def stream_output(chunks: Iterator[str], prompt: str, terminal: Terminal) -> str:
    """Print the prompt and then the output as it is generated; return the output."""
    terminal.print(prompt, end="")
    text = ""
    for chunk in chunks:
        terminal.print(chunk, end="")
        text += chunk
    terminal.print()
    return text


def read_prompt(text: str) -> str:
    """The prompt: standard input for `-`, the content of a file for `@FILE`, otherwise the text itself."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    path = Path(text[1:])
    if not path.is_file():
        raise UserError(f"prompt file {path} does not exist; check its path, or remove the @ to use the text itself")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file {path} is not UTF-8 at byte {error.start}; convert it to UTF-8") from None
