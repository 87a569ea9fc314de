"""`headway train`: train a recipe on its own data or on the user's."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from headway.app.cli.launcher import check_processes, launch
from headway.app.cli.main import run_job
from headway.app.cli.options import add_fine_tuning, add_recipe, integer, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.config import parse_settings
from headway.errors import UserError

EXAMPLE = """
headway train shakespeare --minutes 5
headway train text --data my-books/ --set model.width=256 train.steps=2000
headway train translation --data train.en train.de --run runs/en-de --resume
headway train text --data my-books/ --from runs/shakespeare --run runs/my-books
headway train classification --data few.csv --pretrain unlabelled.txt --minutes 20
"""
MAX_SAMPLES = 3  # samples to print; the report has more


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name from `headway recipes`, or path of a recipe.json")
    add_training(parser)
    add_fine_tuning(parser)
    parser.add_argument(
        "--pretrain",
        nargs="+",
        action="extend",
        type=Path,
        metavar="PATH",
        help="unlabelled data of the same kind to train the model on first; both stages share --minutes",
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/RECIPE)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run, or start it; continue a finished run for more --minutes",
    )
    parser.add_argument(
        "--finish",
        action="store_true",
        help="with --resume: decay the learning rate and finish within a tenth of the steps so far",
    )
    parser.add_argument(
        "--processes",
        type=integer(1),
        metavar="N",
        help="train with N processes on this machine, which share each step; on GPUs, one per GPU (default: 1)",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options that `train` and `compare` share."""
    add_recipe(parser)
    parser.add_argument("--minutes", type=number(0, above=True), metavar="M", help="train for M minutes")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    if args.finish and (not args.resume or args.minutes is not None):
        raise UserError("--finish ends an interrupted run; use it with --resume, and without --minutes")
    if args.processes is not None:
        check_processes(args)
        number, args.processes = args.processes, None
        if number > 1:
            code = launch(number, partial(run_job, partial(run, args, terminal), args.debug))
            if code:
                raise SystemExit(code)
            return
    import headway as hw
    from headway.learn import measure_of
    from headway.learn.run_report import expected_sentence, notes, scores

    with torch_options(args):
        result = hw.train(
            args.recipe,
            data=args.data,
            set=parse_settings(args.set),
            minutes=args.minutes,
            run=args.run,
            resume=args.resume,
            start=args.start,
            lora=args.lora,
            pretrain=args.pretrain,
            device=args.device,
            threads=args.threads,
            seed=args.seed,
            finish=args.finish,
            spent=terminal.seconds(),
        )
    summary = result.summary
    terminal.print_table(scores(summary.get("scores", {}), summary.get("best") or {}, measure_of(result.task)))
    for note in (*notes((), summary), expected_sentence(summary)):
        if note:
            terminal.print(note)
    for sample in summary.get("samples", [])[:MAX_SAMPLES]:
        terminal.print()
        for name, text in sample.items():
            terminal.print(f"{name}: {text}" if name else text)
    terminal.print(f"\nrun: {result.directory}")
    if summary.get("report"):
        terminal.print(f"report: {summary['report']}")
    terminal.print_result({"run": result.directory, **result.summary})
