"""`headway tokenizer train`: train a tokenizer.json on text."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import integer
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway tokenizer train --kind bpe --size 8000 --data books/ --out tokenizer.json
"""
KINDS = ("bpe", "wordpiece", "unigram", "word", "char", "byte")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kind", required=True, choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    add("--size", type=integer(1), required=True, metavar="N", help="vocabulary size, including special tokens")
    add(
        "--data", nargs="+", action="extend", required=True, metavar="PATH", help="text files, or folders of text files"
    )
    add("--lowercase", action="store_true", help="convert all text to lower case; decoding does not restore capitals")
    add("--out", type=Path, required=True, metavar="FILE", help="output file, such as tokenizer.json")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.codecs import train_codec
    from headway.codecs.tokenizer import config_path
    from headway.data.array_store import check_output_path, output_errors
    from headway.data.corpus import iter_documents
    from headway.io.outputs import check_new

    if args.out.suffix != ".json":
        raise UserError(f"--out {args.out} is not a .json file; use a name such as tokenizer.json")
    check_new(args.out, config_path(args.out))
    check_output_path(args.out)
    codec = train_codec(args.kind, iter_documents(args.data), args.size, lowercase=args.lowercase)
    with output_errors(args.out):
        codec.save(args.out)
    terminal.print(f"{codec.vocab_size:,} tokens: {args.out}")
    terminal.print_result({"kind": args.kind, "size": codec.vocab_size, "path": args.out})
