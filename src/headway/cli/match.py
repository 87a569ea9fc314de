"""`headway match`: which of some texts say what images show."""

from __future__ import annotations

import argparse

from headway.cli.options import load, torch_options
from headway.cli.terminal import Terminal

EXAMPLE = """
headway match path/to/clip --image a.jpg b.png --text "a dog on a beach" "a cat in a basket"
headway match path/to/clip --image *.jpg --text cat dog bird --template "a photo of a {}" --template "a drawing of a {}"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="a run directory or a published model, such as a CLIP or SigLIP")
    add("--image", nargs="+", required=True, metavar="I", help="image files")
    add("--text", nargs="+", required=True, metavar="T", help="texts, or the names of classes")
    add(
        "--template",
        action="append",
        default=[],
        metavar="T",
        help='what texts are put into, as "a photo of a {}"; several are averaged',
    )
    add("--truncate", action="store_true", help="cut texts that are too long for the model")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        found = load(args).match(args.image, args.text, args.template, args.truncate)
    similar, probable = found.similarities.tolist(), found.probabilities.tolist()
    for image, cosines, chances in zip(args.image, similar, probable):
        terminal.say(image)
        order = sorted(range(len(args.text)), key=lambda number: -cosines[number])
        rows = [{"text": args.text[n], "probability": chances[n], "similarity": cosines[n]} for n in order]
        terminal.table(rows)
        terminal.say()
    terminal.result({"images": args.image, "texts": args.text, "similarities": similar, "probabilities": probable})
