"""`headway caption`: write captions for images."""

from __future__ import annotations

import argparse
import time

from headway.app.cli.inputs import image_paths, predict_each, report_outcome
from headway.app.cli.options import add_server, add_weights, integer, load, number, torch_options, verb_options
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
    add("--beam", type=integer(1), default=4, metavar="N", help="beams per image; 1 is greedy (default: 4)")
    add(
        "--length-penalty", type=number(0), default=0.6, metavar="A", help="length penalty, GNMT's alpha (default: 0.6)"
    )
    add("--n-best", type=integer(1), default=1, metavar="N", help="captions per image, best first (default: 1)")
    add_weights(parser)
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, captions = time.monotonic(), []
    with torch_options(args):
        model = load(args)
        files, failures = image_paths(args.images), []
        predict = lambda batch: model.caption(batch, **verb_options(args, "caption", model))  # noqa: E731
        for image, batch in predict_each(files, predict, failures):
            if batch is not None:
                captions.append({"image": image, "caption": batch[0], "captions": batch})
                for text in batch:
                    terminal.print(f"{text}\t{image}" if len(files) > 1 else text)
    seconds = time.monotonic() - started
    report_outcome({"captions": captions, "images": len(captions), "seconds": seconds}, failures, terminal)
