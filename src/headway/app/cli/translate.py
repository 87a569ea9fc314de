"""`headway translate`: translate text line by line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from headway.app.cli.inputs import text_inputs
from headway.app.cli.options import add_cache, add_server, add_verb, integer, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway translate runs/multi30k-en-de "Two dogs play in the snow." --n-best 3
headway translate runs/multi30k-en-de --beam 4 < source.en > target.de
headway translate hf:facebook/nllb-200-distilled-600M --from en --to de "Two dogs play in the snow."
headway translate runs/multi30k-en-de --temperature 0.8 --n-best 5 --seed 1 < source.en
"""
CHUNK = 512  # lines to read before translating: enough to batch lines of similar length


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="RUN|MODEL", help="run directory or published model")
    add("texts", nargs="*", metavar="TEXT", help="text to translate (default: lines of standard input)")
    add("--n-best", type=integer(1), metavar="N", help="print the N best translations per line, as score, TAB, text")
    add_verb(parser, "translate", omit=["scores"], options={"source": "--from", "target": "--to"})
    add_cache(parser)
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, count, outputs, scores = time.monotonic(), 0, [], []
    inputs = text_inputs(args.texts, f"headway translate {args.model}")
    with torch_options(args):
        model = load(args)
        options = {**verb_options(args, "translate"), "n_best": args.n_best or 1, "scores": True}
        for first, lines in [(1, inputs)] if inputs else number_chunks(sys.stdin):
            for line_number, (line, hypotheses) in enumerate(zip(lines, model.translate(lines, **options)), first):
                if not line.strip():
                    terminal.note(f"line {line_number} is empty; its translation is empty too")
                for text, score in hypotheses:
                    terminal.print(text if args.n_best is None else f"{score:.4f}\t{text}")
                if args.json:
                    outputs.append([text for text, _ in hypotheses])
                    scores.append([score for _, score in hypotheses])
            count += len(lines)
    if not count:
        raise UserError("no text to translate; pass text, or lines: headway translate RUN < FILE")
    seconds = time.monotonic() - started
    results = {"translations": outputs, "scores": scores} if args.json else {}
    terminal.print_result({**results, "lines": count, "seconds": seconds, "beyond": model.unexpected})


def line_chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    """Chunks of lines without newlines; from a keyboard, one line at a time."""
    size = 1 if sys.stdin.isatty() else CHUNK
    while chunk := [line.rstrip("\r\n") for line in islice(lines, size)]:
        yield chunk


def number_chunks(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Each chunk with the number of its first line, counted from 1."""
    first = 1
    for chunk in line_chunks(lines):
        yield first, chunk
        first += len(chunk)
