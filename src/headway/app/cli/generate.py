"""`headway generate`: continue a prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.options import add_cache, add_server, add_verb, load, number, torch_options, verb_options
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
    share = number(0, 1, above=True)
    types = {"top_p": share, "min_p": number(0, 1), "repetition_penalty": number(0, above=True)}
    add_verb(parser, "generate", defaults={"max_new_tokens": tokens}, types=types)
    add_cache(parser)
    drafts = "smaller model with the same tokenizer, for speculative decoding: same output, usually faster"
    parser.add_argument("--draft", type=Path, metavar="RUN|MODEL", help=drafts)
    add_server(parser)


def sampling_settings(args: argparse.Namespace) -> tuple[Sampling, Limits]:
    """The parsed options of `add_sampling`."""
    from headway.generate import Limits, Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, args.seed)
    return sampling, Limits(args.max_new_tokens, tuple(args.stop))


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if args.prompt.startswith("@"):
        path = Path(args.prompt[1:])
        if not path.is_file():
            raise UserError(
                f"prompt file {path} does not exist; check its path, or remove the @ to use the text itself"
            )
        try:
            prompt = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"prompt file {path} is not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    with torch_options(args):
        if args.server is not None:
            model = load(args)
            text = stream_output(model.stream(prompt, **verb_options(args, "stream")), prompt, terminal)
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
