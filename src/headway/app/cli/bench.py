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
headway bench --device cuda --against transformers
"""
KINDS = ("decode", "prefill", "train", "translate", "load")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "benchmark to run, on random weights and tokens (default: all)"
    add("kind", nargs="?", choices=KINDS, metavar="|".join(KINDS), help=kinds)
    add(
        "--shape",
        metavar="NAME",
        help="preset, recipe, run or model whose shape to use (default: depends on the benchmark)",
    )
    dtypes = ("fp32", "bf16", "int8", "int4")
    add("--weights", choices=dtypes, help="number format of the weights (default: all that the device supports)")
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
    from headway.bench.benchmark import BenchRequest, check
    from headway.bench.benchmark import run as measure

    for option in ("shape", "weights", "cache", "rows", "timeline") if args.kind is None else ():
        if getattr(args, option) is not None:
            raise UserError(f"--{option} needs one benchmark; choose {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    requests = [
        BenchRequest(
            kind,
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
            args.device,
        )
        for kind in (KINDS if args.kind is None else (args.kind,))
    ]
    for request in requests:  # before the first one starts
        check(request)
    reports = [_measured(measure(request, terminal.note), terminal) for request in requests]
    terminal.print_result(reports[0] if args.kind is not None else {"benchmarks": reports})


def _measured(report: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
    """Print a report's table and limits, and return the report."""
    machine, is_gpu = report["machine"], report["device"] != "cpu"
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    place = ", ".join(filter(None, (machine["gpu"], machine.get("driver")))) if is_gpu else threads
    terminal.print(f"{report['kind']}, {report['shape']}, {place}, medians of {report['repeats']} runs")
    terminal.print_table(table(report))
    for name, bound in report["bounds"].items():
        dtype = "bf16" if name.startswith("bf16") else "fp32"
        unit = "GB/s reading memory" if name.startswith("read") else f"GFLOP/s in {dtype} matrix products"
        terminal.print(f"this {'GPU' if is_gpu else 'machine'}: {bound['median'] / 1e9:.1f} {unit}")
    return report


def table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per program: its speed, also as a share of the machine's limit, its memory, and headway's speedup."""
    goal, rows = report["goal"], []
    for title, stats in report["programs"].items():
        speed = stats[goal]
        row: dict[str, Any] = {"program": title, goal.replace("_", " "): speed["median"]}
        row |= {"min": speed["min"], "max": speed["max"]}
        if any("share_of_bound" in program for program in report["programs"].values()):
            row["of the limit"] = f"{100 * stats['share_of_bound']:.0f} %" if "share_of_bound" in stats else None
        row["peak GPU MB" if report["device"].startswith("cuda") else "peak MB"] = round(stats["peak_bytes"] / 1e6)
        faster = [
            f"{peers[title]:.2f} x in {headway_title.split()[-1]}"
            for headway_title, peers in report["times"].items()
            if title in peers
        ]
        row["headway is"] = ", ".join(faster) or None
        rows.append(row)
    return rows
