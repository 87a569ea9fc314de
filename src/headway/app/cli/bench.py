"""`headway bench`: measure the speed of a model shape, compared with other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from headway.app.cli.options import add_cache_dtype, integer
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway bench decode --weights int8 --against transformers,llama.cpp
headway bench translate --against ctranslate2 --json
"""
KINDS = ("decode", "prefill", "train", "translate", "load")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kind", choices=KINDS, metavar="|".join(KINDS), help="benchmark to run, on random weights and tokens")
    add(
        "--shape",
        metavar="NAME",
        help="preset, recipe, run or model whose shape to use (default: depends on the benchmark)",
    )
    add("--weights", choices=("fp32", "int8", "int4"), help="number format of the weights (default: all)")
    add_cache_dtype(parser)
    add(
        "--against",
        default=[],
        type=_names,
        metavar="A,B",
        help="programs to compare with: transformers, ctranslate2, llama.cpp",
    )
    add("--rows", type=integer(1), metavar="N", help="batch size in sequences or sentences")
    add(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="decode: output file with the times of every instruction on every thread, over 8 extra steps",
    )
    add(
        "--repeats",
        type=integer(1),
        default=3,
        metavar="N",
        help="number of processes per program, run in turn (default: 3)",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.bench.benchmark import BenchRequest
    from headway.bench.benchmark import run as measure

    if args.device not in ("auto", "cpu"):
        raise UserError(f"bench measures CPUs only, not device {args.device}; remove --device")
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
    report = measure(request, terminal.note)
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    terminal.print(f"{args.kind}, {report['shape']}, {threads}, medians of {report['repeats']} runs")
    terminal.print_table(table(report))
    for name, bound in report["bounds"].items():
        unit = "GB/s reading memory" if name.startswith("read") else "GFLOP/s in fp32 matrix products"
        terminal.print(f"this machine: {bound['median'] / 1e9:.1f} {unit}")
    terminal.print_result(report)


def table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per program: its speed, also as a share of the machine's limit, its memory, and headway's speedup."""
    goal, rows = report["goal"], []
    for title, stats in report["programs"].items():
        speed = stats[goal]
        row: dict[str, Any] = {"program": title, goal.replace("_", " "): speed["median"]}
        row |= {"min": speed["min"], "max": speed["max"]}
        if any("share_of_bound" in program for program in report["programs"].values()):
            row["of the limit"] = f"{100 * stats['share_of_bound']:.0f} %" if "share_of_bound" in stats else None
        row["peak MB"] = round(stats["peak_bytes"] / 1e6)
        faster = [
            f"{peers[title]:.2f} x in {headway_title.split()[-1]}"
            for headway_title, peers in report["times"].items()
            if title in peers
        ]
        row["headway is"] = ", ".join(faster) or None
        rows.append(row)
    return rows
