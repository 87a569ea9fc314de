"""`headway generate`: continue a prompt."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from hashlib import blake2b
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from headway.app.cli.inputs import BATCH_SIZE, Failures, predict_each, report_outcome
from headway.app.cli.options import (
    add_cache,
    add_server,
    add_shares,
    add_verb,
    load,
    number,
    torch_options,
    verb_options,
)
from headway.app.cli.terminal import Terminal
from headway.errors import UserError
from headway.io.files import open_file

if TYPE_CHECKING:
    from headway.generate import Limits, Sampling

EXAMPLE = """
headway generate runs/shakespeare --prompt "ROMEO:" --max-new-tokens 200 --temperature 0.8
headway generate runs/shakespeare --prompts names.txt --seed 1 > continued.jsonl      # one prompt per line
headway generate runs/shakespeare --prompts names.txt --seed 1 --part 1/3 --out shares/
headway generate --join shares/ > continued.jsonl
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="run directory or published model")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", metavar="TEXT|@FILE|-", help="prompt: text, @FILE for a file, or - for standard input"
    )
    prompts.add_argument(
        "--prompts",
        metavar="FILE|-",
        help="file with one prompt per line, or - for standard input; prints one JSON object per line",
    )
    add_sampling(parser, tokens=100)
    add_shares(parser)


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
    if args.prompts is not None:
        continue_lines(args, terminal)
        return
    if args.part is not None:
        raise UserError("--part deals out several prompts; pass a file with one per line: --prompts FILE")
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


def continue_lines(args: argparse.Namespace, terminal: Terminal) -> None:
    """Continue each line of --prompts, and print it with its continuation as JSON; null for one that fails."""
    count, failures = 0, Failures()
    is_stdin = args.prompts == "-"
    file = nullcontext(sys.stdin) if is_stdin else TextIOWrapper(open_file(args.prompts), encoding="utf-8")
    with file as stream, torch_options(args):
        model = load(args)
        for first, lines in terminal.chunks(stream, failures, BATCH_SIZE):
            options = verb_options(args, "generate")
            if args.seed is not None:  # the model counts from 0 in each call, so that equal seeds would repeat samples
                digest = blake2b(f"{args.seed} {first}".encode(), digest_size=7).digest()
                options["seed"] = int.from_bytes(digest, "little")
            predict = lambda prompts, options=options: model.generate(prompts, **options)  # noqa: E731
            for line, text in predict_each(lines, predict, failures, first=first):
                terminal.print_data(json.dumps({"prompt": line, "text": text}, ensure_ascii=False))
                count += 1
    report_outcome({"prompts": count}, failures, terminal)


def stream_output(chunks: Iterator[str], prompt: str, terminal: Terminal) -> str:
    """Print the prompt and then the output as it is generated; return the output."""
    terminal.print(prompt, end="")
    text = ""
    for chunk in chunks:
        terminal.print(chunk, end="")
        text += chunk
    terminal.print()
    return text
