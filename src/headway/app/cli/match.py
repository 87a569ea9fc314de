"""`headway match`: match images with text descriptions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headway.app.cli.inputs import Failures, image_paths, predict_each, report_outcome
from headway.app.cli.options import add_server, add_verb, load, torch_options
from headway.app.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.domains.image_text import Matches

EXAMPLE = """
headway match path/to/clip --image a.jpg b.png --text "a dog on a beach" "a cat in a basket"
headway match path/to/clip --image *.jpg --text cat dog bird --template "a photo of a {}" --template "a drawing of a {}"
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model, such as CLIP or SigLIP")
    add("--image", nargs="+", required=True, metavar="I", help="image files, or folders of image files")
    add("--text", nargs="+", required=True, metavar="T", help="descriptions or class names to match")
    add(
        "--template",
        action="append",
        default=[],
        metavar="T",
        help='template for the texts, such as "a photo of a {}"; repeat the option to average the embeddings',
    )
    add_verb(parser, "match", omit=["templates"])
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    failures: Failures = []
    rows: list[tuple[str, list[float], list[float]]] = []
    with torch_options(args):
        model = load(args)

        def pairs(matches: Matches) -> list[tuple[list[float], list[float]]]:
            return list(zip(matches.similarities.tolist(), matches.probabilities.tolist()))

        predict = lambda batch: model.match(list(batch), args.text, args.template, args.truncate)  # noqa: E731
        for image, answer in predict_each(image_paths(args.image), predict, failures, pairs):
            if answer is not None:
                rows.append((image, *answer))
    for image, similarities, probabilities in rows:
        terminal.print(image)
        order = sorted(range(len(args.text)), key=lambda number: -similarities[number])
        terminal.print_table(
            [{"text": args.text[n], "probability": probabilities[n], "similarity": similarities[n]} for n in order]
        )
        terminal.print()
    names = ("images", "similarities", "probabilities")
    columns = {name: [row[column] for row in rows] for column, name in enumerate(names)}
    report_outcome({"texts": args.text, **columns}, failures, terminal)
