"""`headway bench`: how fast this machine runs a shape, beside other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from headway.app.cli.options import add_cache_form, whole
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway bench decode --weights int8 --against transformers,llama.cpp
headway bench translate --against ctranslate2 --json
"""
KINDS = ("decode", "prefill", "train", "translate", "load")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kind", choices=KINDS, metavar="|".join(KINDS), help="what to measure, on random weights and tokens")
    add("--shape", metavar="NAME", help="a preset, recipe, run or model, of which only the shape is used")
    add("--weights", choices=("fp32", "int8", "int4"), help="number format of the weights (default: all)")
    add_cache_form(parser)
    add(
        "--against",
        default=[],
        type=_names,
        metavar="A,B",
        help="programs to measure beside: transformers, ctranslate2, llama.cpp",
    )
    add("--rows", type=whole(1), metavar="N", help="sequences, sentences, or rows of a training batch at once")
    add("--timeline", type=Path, metavar="FILE", help="decode: when each thread ran each instruction of 8 more steps")
    add("--repeats", type=whole(1), default=3, metavar="N", help="processes of each program, in turn (default: 3)")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.bench.run import BenchRequest
    from headway.bench.run import run as measure

    if args.device not in ("auto", "cpu"):
        raise UserError(f"bench measures processors, not device {args.device}; leave --device out")
    request = BenchRequest(
        args.kind,
        args.shape,
        () if args.weights is None else (args.weights,),
        tuple(args.against),
        args.rows,
        args.threads,
        args.seed or 0,
        args.repeats,
        args.backend,
        args.deterministic,
        args.cache,
        args.timeline,
    )
    found = measure(request, terminal.note)
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    terminal.say(f"{args.kind}, {found['shape']}, {threads}, medians of {found['repeats']}")
    terminal.table(table(found))
    for name, bound in found["bounds"].items():
        unit = "GB/s read by a plain sum" if name.startswith("read") else "GFLOP/s of fp32 matrix products"
        terminal.say(f"the machine: {bound['median'] / 1e9:.1f} {unit}")
    terminal.result(found)


def table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each program: its speed, what part of the machine's it is, its memory, and how headway compares."""
    goal, rows = found["goal"], []
    for title, each in found["programs"].items():
        speed = each[goal]
        row: dict[str, Any] = {"program": title, goal.replace("_", " "): speed["median"]}
        row |= {"least": speed["min"], "most": speed["max"]}
        if any("share_of_bound" in other for other in found["programs"].values()):
            row["of the machine's"] = f"{100 * each['share_of_bound']:.0f} %" if "share_of_bound" in each else None
        row["peak MB"] = round(each["peak_bytes"] / 1e6)
        faster = [
            f"{peers[title]:.2f} x in {own.split()[-1]}" for own, peers in found["times"].items() if title in peers
        ]
        row["headway is"] = ", ".join(faster) or None
        rows.append(row)
    return rows
