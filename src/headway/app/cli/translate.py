"""`headway translate`: translate text line by line."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from headway.app.cli.inputs import text_inputs
from headway.app.cli.options import (
    add_cache,
    add_server,
    add_shares,
    add_verb,
    integer,
    load,
    torch_options,
    verb_options,
)
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway translate runs/multi30k-en-de "Two dogs play in the snow." --n-best 3
headway translate runs/multi30k-en-de --beam 4 < source.en > target.de
headway translate hf:facebook/nllb-200-distilled-600M --from en --to de "Two dogs play in the snow."
headway translate runs/multi30k-en-de --temperature 0.8 --n-best 5 --seed 1 < source.en
headway translate runs/multi30k-en-de --part 1/3 --out shares/ < source.en     # on each machine, with its own number
headway translate --join shares/ > target.de
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="RUN|MODEL", help="run directory or published model")
    add("texts", nargs="*", metavar="TEXT", help="text to translate (default: lines of standard input)")
    add("--n-best", type=integer(1), metavar="N", help="print the N best translations per line, as score, TAB, text")
    add_verb(parser, "translate", omit=["scores"], options={"source": "--from", "target": "--to"})
    add_cache(parser)
    add_server(parser)
    add_shares(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, count, outputs, scores = time.monotonic(), 0, [], []
    inputs = text_inputs(args.texts, f"headway translate {args.model}")
    with torch_options(args):
        model = load(args)
        options = {**verb_options(args, "translate"), "n_best": args.n_best or 1, "scores": True}
        for first, lines in terminal.chunks(inputs or sys.stdin):
            for line_number, (line, hypotheses) in enumerate(zip(lines, model.translate(lines, **options)), first):
                if not line.strip():
                    terminal.note(f"line {line_number} is empty; its translation is empty too")
                for text, score in hypotheses:
                    terminal.print(text if args.n_best is None else f"{score:.4f}\t{text}")
                if args.json:
                    outputs.append([text for text, _ in hypotheses])
                    scores.append([score for _, score in hypotheses])
            count += len(lines)
    if not count and args.part is None:
        raise UserError("no text to translate; pass text, or lines: headway translate RUN < FILE")
    seconds = time.monotonic() - started
    results = {"translations": outputs, "scores": scores} if args.json else {}
    terminal.print_result({**results, "lines": count, "seconds": seconds, "beyond": model.unexpected})
