"""`headway demo`: train the 2017 encoder-decoder to pronounce English words."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from headway.app.cli.options import number, torch_options
from headway.app.cli.terminal import Terminal

EXAMPLE = "headway demo --minutes 2"
RECIPE = "pronounce"
NUM_SAMPLES = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=number(0.5), default=5.0, metavar="M", help="total minutes (default: 5)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: a new one in runs/)")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw
    from headway.learn import UserInterrupt
    from headway.learn.run import free_directory

    program = "headway" if shutil.which("headway") else sys.argv[0]
    directory = args.run or free_directory(Path("runs/pronounce"))
    terminal.note("Training a 2017 transformer to pronounce English words from the CMU dictionary.")
    try:
        with torch_options(args):
            result = hw.train(
                RECIPE,
                minutes=args.minutes,
                run=directory,
                device=args.device,
                threads=args.threads,
                seed=args.seed,
                samples=NUM_SAMPLES,
                spent=terminal.seconds(),
            )
    except UserInterrupt as interrupt:
        options = ["--deterministic"] if args.deterministic else []
        command = shlex.join([program, "train", RECIPE, "--run", str(directory), "--resume", *options])
        raise UserInterrupt(interrupt.where, f"continue with: {command}", interrupt.number) from interrupt
    terminal.print("\nWords that were not in the training data:\n")
    terminal.print_table(result.summary["samples"])
    scores = result.summary["scores"]
    terminal.print(f"\nword error rate {scores['wer']:.1%}, phoneme error rate {scores['per']:.1%}")
    if result.summary.get("report"):
        terminal.print(f"report: {result.summary['report']}")
    terminal.print(f"next: echo headway | {program} translate {directory}")
    terminal.print_result({"run": directory, **result.summary, "seconds": terminal.seconds()})
