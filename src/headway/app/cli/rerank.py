"""`headway rerank`: rank documents by their relevance to a query."""

from __future__ import annotations

import argparse
import sys

from headway.app.cli.options import add_server, add_verb, integer, load, torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway rerank path/to/ms-marco-MiniLM-L6-v2 --query "how are pearls made" < documents.txt
headway rerank runs/reranking --query "a question" --documents "one text" "another text" --top 1
headway rerank path/to/Qwen3-Reranker-0.6B --query "a question" --instruction "Find answers." < documents.txt
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run or published model that scores a document for a query")
    add("--query", required=True, metavar="TEXT", help="query to rank the documents by")
    add("--documents", nargs="+", metavar="TEXT", help="documents to rank (default: lines of standard input)")
    add("--top", type=integer(1), metavar="N", help="number of documents to print, most relevant first (default: all)")
    add_verb(parser, "rerank", omit=["top_n"])
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    documents = args.documents or [line.rstrip("\n") for line in sys.stdin]
    if not documents:
        raise UserError("there are no documents; pass --documents, or lines on standard input")
    with torch_options(args):
        model = load(args)
        ranked = model.rerank(args.query, documents, args.top, args.truncate, args.instruction)
    for entry in ranked:
        terminal.print(f"{entry.score:.4f}\t{entry.document}")
    terminal.print_result(
        {"query": args.query, "results": [entry._asdict() for entry in ranked], "beyond": model.unexpected}
    )
