"""`headway attention`: draw the attention weights of a text model."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import add_server, add_verb, integer, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway attention runs/shakespeare --text "To be, or not to be" attention.png
headway attention runs/en-de --text "A man sleeps." --target "Ein Mann schläft." attention.svg
headway attention runs/en-de --text "A man sleeps." --layer 2 --all heads.png
"""
_SUFFIXES = (".png", ".svg", ".pdf")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add("out", type=Path, metavar="OUT", help=f"image file to write, ending in {', '.join(_SUFFIXES)}")
    add("--text", required=True, help="input text")
    add_verb(parser, "attention")
    add("--layer", type=integer(1), metavar="N", help="layer to draw, counted from 1 (default: mean over all layers)")
    add("--head", type=integer(1), metavar="N", help="head to draw, counted from 1 (default: mean over all heads)")
    add("--all", action="store_true", help="draw every head, one row per layer")
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    out: Path = args.out
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{out} is not a supported image file; use a name such as attention.png")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder; create it, or choose another path")
    with torch_options(args):
        model = load(args)
        attention = model.attention(args.text, **verb_options(args, "attention"))
        figure = attention.picture(args.layer, args.head, args.all)
    try:
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another path") from None
    terminal.print(f"picture: {out}")
    terminal.print_result({"picture": out, "symbols": attention.symbols, "source": attention.source})
