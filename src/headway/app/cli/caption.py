"""`headway caption`: write captions for images."""

from __future__ import annotations

import argparse
import time

from headway.app.cli.answers import answers, conclude, images
from headway.app.cli.options import add_server, add_weights, load, number, torch_options, whole
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway caption runs/caption photo.jpg other.png
headway caption runs/caption *.jpg --beam 1                         # greedy, faster
headway caption runs/caption photo.jpg --n-best 3 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory, or model with a vision encoder and a text decoder")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of image files")
    add("--beam", type=whole(1), default=4, metavar="N", help="beams per image; 1 is greedy (default: 4)")
    add(
        "--length-penalty", type=number(0), default=0.6, metavar="A", help="length penalty, GNMT's alpha (default: 0.6)"
    )
    add("--n-best", type=whole(1), default=1, metavar="N", help="captions per image, best first (default: 1)")
    add_weights(parser)
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, found = time.monotonic(), []
    with torch_options(args):
        model = load(args)
        files, failures = images(args.images), []
        ask = lambda some: model.caption(some, args.beam, args.length_penalty, args.n_best)  # noqa: E731
        for image, some in answers(files, ask, failures):
            if some is not None:
                found.append({"image": image, "caption": some[0], "captions": some})
                for text in some:
                    terminal.say(f"{text}\t{image}" if len(files) > 1 else text)
    seconds = time.monotonic() - started
    conclude({"captions": found, "images": len(found), "seconds": seconds}, failures, terminal)
