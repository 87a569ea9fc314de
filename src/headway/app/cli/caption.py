"""`headway caption`: write captions for images."""

from __future__ import annotations

import argparse
import time

from headway.app.cli.inputs import BATCH_SIZE, Failures, image_paths, predict_each, report_outcome
from headway.app.cli.options import add_server, add_shares, add_verb, add_weights, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway caption runs/caption photo.jpg other.png
headway caption runs/caption *.jpg --beam 1                         # greedy, faster
headway caption runs/caption photo.jpg --n-best 3 --json
headway caption runs/caption photos/ --part 1/3 --out shares/       # on each machine, with its own number
headway caption --join shares/ > captions.tsv
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory, or model with a vision encoder and a text decoder")
    add("images", nargs="+", metavar="IMAGE", help="image files, or folders of image files")
    add_verb(parser, "caption", defaults={"n_best": 1})
    add_weights(parser)
    add_server(parser)
    add_shares(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    started, count, captions = time.monotonic(), 0, []
    failures: Failures = []
    with torch_options(args):
        model = load(args)
        files = image_paths(args.images)
        predict = lambda batch: model.caption(batch, **verb_options(args, "caption"))  # noqa: E731
        for _, images in terminal.chunks(files, failures, BATCH_SIZE):
            for image, batch in predict_each(images, predict, failures, total=len(files)):
                if batch is None:
                    continue
                count += 1
                for text in batch:
                    terminal.print(f"{text}\t{image}" if len(files) > 1 else text)
                if args.json:
                    captions.append({"image": image, "caption": batch[0], "captions": batch})
    seconds = time.monotonic() - started
    report_outcome({"captions": captions, "images": count, "seconds": seconds}, failures, terminal)
