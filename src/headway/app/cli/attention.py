"""`headway attention`: where a model of texts looks, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import load, torch_options, whole
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway attention runs/shakespeare --text "To be, or not to be" attention.png
headway attention runs/en-de --text "A man sleeps." --target "Ein Mann schläft." attention.svg
headway attention runs/en-de --text "A man sleeps." --layer 2 --all heads.png
"""
_KINDS = (".png", ".svg", ".pdf")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="a run directory or a published model")
    add("out", type=Path, metavar="OUT", help=f"the picture to write, a file ending in {', '.join(_KINDS)}")
    add("--text", required=True, help="what the model reads")
    add("--target", metavar="TEXT", help="what a translator writes (default: its own translation)")
    add("--layer", type=whole(1), metavar="N", help="one layer, from 1 on (default: the mean of all)")
    add("--head", type=whole(1), metavar="N", help="one head, from 1 on (default: the mean of all)")
    add("--all", action="store_true", help="a small picture of each head, a row a layer")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    out: Path = args.out
    if out.suffix.lower() not in _KINDS:
        raise UserError(f"{out} ends on no kind of picture that can be written; name it like attention.png")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder; make it, or choose another place")
    with torch_options(args):
        found = load(args).attention(args.text, args.target)
        figure = found.picture(args.layer, args.head, args.all)
    try:
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another place") from None
    terminal.say(f"picture: {out}")
    terminal.result({"picture": out, "symbols": found.symbols, "source": found.source})
