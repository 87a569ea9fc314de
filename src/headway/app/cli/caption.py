"""`headway caption`: write captions for images."""

from __future__ import annotations

import argparse
import time

from headway.app.cli.inputs import image_paths, predict_each, report_outcome
from headway.app.cli.options import add_server, add_verb, add_weights, load, torch_options, verb_options
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
    add_verb(parser, "caption", defaults={"n_best": 1})
    add_weights(parser)
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, captions = time.monotonic(), []
    with torch_options(args):
        model = load(args)
        files, failures = image_paths(args.images), []
        predict = lambda batch: model.caption(batch, **verb_options(args, "caption"))  # noqa: E731
        for image, batch in predict_each(files, predict, failures):
            if batch is not None:
                captions.append({"image": image, "caption": batch[0], "captions": batch})
                for text in batch:
                    terminal.print(f"{text}\t{image}" if len(files) > 1 else text)
    seconds = time.monotonic() - started
    report_outcome({"captions": captions, "images": len(captions), "seconds": seconds}, failures, terminal)
