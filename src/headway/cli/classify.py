"""`headway classify`: texts, pairs of texts, images or sounds to labels with probabilities."""

from __future__ import annotations

import argparse
import sys

from headway.cli.options import load, torch_options, whole
from headway.cli.terminal import Terminal
from headway.cli.translate import chunks
from headway.errors import UserError

EXAMPLE = """
headway classify runs/banking77 "I lost my card" "What is the exchange rate?"
headway classify runs/pairs --pairs < pairs.tsv                     # two texts a line, a TAB between them
headway classify path/to/vit cat.png dog.jpg
headway classify runs/mine cat.png --attention cat-attention.png    # and draw where the model looks
headway classify runs/spoken-digits seven.wav
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="a run directory or a published model")
    add(
        "items",
        nargs="*",
        metavar="ITEM",
        help="texts, or files of images or sounds (default: the lines of standard input)",
    )
    add("--pairs", action="store_true", help="each item is two texts with a TAB between them")
    add("--top", type=whole(1), default=3, metavar="N", help="show the N most probable labels (default: 3)")
    add("--attention", metavar="FILE", help="draw where the model looks in the one image that is given")
    add("--truncate", action="store_true", help="cut texts and sounds that are too long for the model")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    found = []
    if args.attention and len(args.items) != 1:
        raise UserError(f"--attention draws one image, and {len(args.items)} are given; give one")
    with torch_options(args):
        model = load(args)
        for lines in [args.items] if args.items else chunks(sys.stdin):
            texts = [pair(line) for line in lines] if args.pairs else lines
            for line, probabilities in zip(lines, model.classify(texts, truncate=args.truncate)):
                best = dict(list(probabilities.items())[: args.top])
                found.append({"item": line, "labels": best})
                shown = "  ".join(f"{name} {value:.3f}" for name, value in best.items())
                terminal.say(f"{shown}\t{line}")
        if args.attention:
            from headway.codecs.images import write_image

            lines = [f"{name} {100 * share:.0f} %" for name, share in found[0]["labels"].items()]
            write_image(model.look(args.items)[0].beside(lines), args.attention)
    terminal.result({"results": found})


def pair(line: str) -> tuple[str, str]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise UserError(f"{line!r} has no TAB; write: text, TAB, text")
    return first, second
