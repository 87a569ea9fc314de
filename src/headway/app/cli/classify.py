"""`headway classify`: predict labels with probabilities for text, text pairs, images or audio."""

from __future__ import annotations

import argparse
import csv
import sys
from io import StringIO
from typing import Any

from headway.app.cli.inputs import Failures, image_paths, predict_each, report_outcome, sound_paths, text_inputs
from headway.app.cli.options import add_server, add_shares, add_verb, integer, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway classify runs/banking77 "I lost my card" "What is the exchange rate?"
headway classify runs/pairs --pairs < pairs.tsv                     # two texts per line, separated by a TAB
headway classify path/to/nli-model "Rates rise again" --labels politics,economy,sports
headway classify path/to/vit cat.png dog.jpg
headway classify runs/mine cat.png --attention cat-attention.png    # also draw the attention of the model
headway classify runs/spoken-digits seven.wav recordings/
headway classify runs/banking77 --part 1/3 --out shares/ < lines    # on each machine, with its own number
headway classify --join shares/ > labels.tsv
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN|MODEL", help="run directory or published model")
    add(
        "items",
        nargs="*",
        metavar="ITEM",
        help="text, or image or audio files or folders (default: lines of standard input)",
    )
    add("--pairs", action="store_true", help="each item is two texts separated by a TAB")
    add(
        "--format",
        choices=("txt", "csv"),
        default="txt",
        help="output format; csv has item,label,probability or item,value (default: txt)",
    )
    add(
        "--top",
        type=integer(1),
        default=3,
        metavar="N",
        help="number of labels to print, most probable first (default: 3)",
    )
    add("--attention", metavar="FILE", help="image file for the model's attention over a single input image")
    add(
        "--labels",
        metavar="A,B,...",
        type=lambda text: [label.strip() for label in text.split(",")],
        help="labels to choose from, for a model for natural language inference (default: the model's classes)",
    )
    add_verb(parser, "classify", omit=["labels"])
    add_server(parser)
    add_shares(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    rows: list[dict[str, Any]] = []
    failures: Failures = []
    if args.attention and (args.server is not None or args.part is not None):
        raise UserError("--attention needs a local model; remove --attention, --server and --part")
    with torch_options(args):
        model = load(args)
        items = args.items
        if "images" in model.reads:
            items = image_paths(items)
        elif "sounds" in model.reads:
            items = sound_paths(items)
        else:
            items = text_inputs(items, f"headway classify {args.model}")
        if args.attention and len(items) != 1:
            raise UserError(f"--attention takes one image, not {len(items)}; pass a single image")
        predict = lambda batch: model.classify(  # noqa: E731
            list(map(split_pair, batch)) if args.pairs else batch, **verb_options(args, "classify")
        )
        total = len(items) if items else None
        for first, lines in terminal.chunks(items or sys.stdin, failures):
            is_first, line_number = first == 1, None if items else first
            for line, probabilities in predict_each(lines, predict, failures, first=line_number, total=total):
                if probabilities is not None or not items:  # every line has a row
                    labels, thresholds = probabilities or {}, model.thresholds
                    row: dict[str, Any] = {"item": line, "labels": dict(list(labels.items())[: args.top])}
                    if thresholds:  # a multi-label model
                        predicted = [name for name, share in labels.items() if share >= thresholds.get(name, 0.5)]
                        row["predicted"] = predicted
                    print_row = print_csv if args.format == "csv" else print_text
                    print_row(row, is_first, terminal)
                    is_first = False
                    if args.json or args.attention:
                        rows.append(row)
        if args.attention:
            from headway.codecs.image_processor import write_image

            lines = [f"{name} {100 * share:.0f} %" for name, share in rows[0]["labels"].items()]
            write_image(model.look(items)[0].side_by_side(lines), args.attention)
    report_outcome({"results": rows, "beyond": model.unexpected}, failures, terminal)


def print_text(row: dict[str, Any], first: bool, terminal: Terminal) -> None:
    labels = row["labels"]
    line = "  ".join(f"{name} {value:.3f}" for name, value in labels.items())
    if "predicted" in row:
        line = f"{', '.join(row['predicted']) or '(no label)'}\t{line}"
    if list(labels) == ["value"]:
        line = f"{labels['value']:.6g}"
    terminal.print(f"{line}\t{row['item']}")


def print_csv(row: dict[str, Any], first: bool, terminal: Terminal) -> None:
    """Print CSV: a line per label, most probable first, or one line without a label; the first item adds the header. A
    predicted number has one line with its value; multi-label models add a column for whether each label is predicted.
    """
    table = StringIO()
    header = ("item", "label", "probability")
    lines = [(row["item"], label, f"{share:.6g}") for label, share in row["labels"].items()] or [(row["item"], "", "")]
    if list(row["labels"]) == ["value"]:
        header, lines = ("item", "value"), [(line[0], line[2]) for line in lines]
    elif "predicted" in row:
        header = (*header, "predicted")
        lines = [(*line, "yes" if line[1] in row["predicted"] else "no") for line in lines]
    csv.writer(table, lineterminator="\n").writerows([header, *lines] if first else lines)
    terminal.print(table.getvalue(), end="")


def split_pair(line: str) -> tuple[str, str]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise UserError(f"{line!r} has no TAB; separate the two texts with a TAB")
    return first, second
