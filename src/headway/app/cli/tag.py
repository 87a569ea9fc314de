"""`headway tag`: tag each word of each line, and extract the entities."""

from __future__ import annotations

import argparse
import sys

from headway.app.cli.options import add_server, add_verb, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal, line_chunks

EXAMPLE = """
headway tag runs/tagging < lines
echo "Angela Merkel was born in Hamburg." | headway tag runs/tagging --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add("--split", action="store_true", help="lines are already split into words by spaces")
    add_verb(parser, "tag")
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    results = []
    with torch_options(args):
        model = load(args)
        for lines in line_chunks(sys.stdin):
            texts = [line.split() for line in lines] if args.split else lines
            for words, tags, entities in model.tag(texts, **verb_options(args, "tag")):
                terminal.print("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags)))
                spans = [{**span._asdict(), "text": " ".join(words[span.start : span.stop])} for span in entities]
                results.append({"words": words, "tags": tags, "entities": spans})
    terminal.print_result({"results": results, "beyond": model.unexpected})
