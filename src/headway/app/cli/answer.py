"""`headway answer`: answer a question with a part of a text."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, cast

from headway.app.cli.options import add_server, add_verb, integer, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.domains.understanding import Answer

EXAMPLE = """
headway answer path/to/roberta-base-squad2 --question "Who wrote it?" "Ada wrote the first program." --allow-none
headway answer path/to/distilbert-base-cased-distilled-squad --question "When was it built?" < article.txt
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="published model for question answering")
    add("contexts", nargs="*", metavar="CONTEXT", help="text that contains the answer (default: all standard input)")
    add("--question", required=True, metavar="TEXT", help="question to answer from each context")
    add_verb(parser, "answer", types={"stride": integer(0)})
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    contexts = args.contexts or [sys.stdin.read()]
    with torch_options(args):
        model = load(args)
        answers = cast("list[Answer]", model.answer(args.question, contexts, **verb_options(args, "answer")))
    for entry in answers:
        terminal.print(f"{entry.score:.4f}\t{entry.start}-{entry.end}\t{entry.text or '(no answer)'}")
    terminal.print_result(
        {"question": args.question, "results": [entry._asdict() for entry in answers], "beyond": model.unexpected}
    )
