"""`headway compare`: train variants on the same data, budget and size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.app.cli.options import add_shares, integer, torch_options
from headway.app.cli.terminal import Terminal
from headway.app.cli.train import add_training
from headway.config import parse_value
from headway.errors import ConfigError

if TYPE_CHECKING:
    from headway.app.compare import Comparison

EXAMPLE = """
headway compare shakespeare --set model.mixer=attention,lstm,gru --minutes 2
headway compare text --data mine.txt --set train.batch_tokens=2048,8192 --tokens 2000000
headway compare pronounce --set optim.lr=0.001,0.004 model.depth=2,4 --minutes 1 --seeds 3
headway compare pronounce --set model.mixer=lstm,gru --minutes 5 --run runs/cells --resume
headway compare pronounce --set model.mixer=lstm,gru --tokens 1000000 --seeds 3 --run runs/cells --part 1/3   # or auto
headway compare --join runs/cells
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name from `headway recipes`, or path of a recipe.json")
    add_training(parser)
    parser.add_argument(
        "--tokens",
        type=integer(1),
        metavar="N",
        help="train each run for about N tokens (images, audio clips, ...) instead of minutes",
    )
    parser.add_argument(
        "--seeds", type=integer(1), default=1, metavar="N", help="runs per variant, with different seeds (default: 1)"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="comparison directory (default: a new one in runs/)")
    parser.add_argument("--resume", action="store_true", help="continue the comparison in --run DIR, or start it")
    add_shares(parser, out=None)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        comparison = _compare(args, terminal)
    terminal.print_table(comparison.formatted())
    terminal.print()
    for note in comparison.notes:
        terminal.print(note)
    if comparison.report is not None:
        terminal.print(f"report: {comparison.report}")
    if args.part is not None:
        terminal.print(f"part {args.part} is complete; join all parts with headway compare --join {args.run}")
    terminal.print_result(
        {
            "goal": comparison.goal,
            "better": comparison.better,
            "variants": comparison.table(),
            "report": comparison.report,
        }
    )


def _compare(args: argparse.Namespace, terminal: Terminal) -> Comparison:
    if args.join is not None:
        from headway.app.compare import join_comparison

        return join_comparison(args.join)
    grid = parse_grid(args.set)
    import headway as hw

    return hw.compare(
        args.recipe,
        grid,
        args.data,
        args.minutes,
        args.seeds,
        args.resume,
        run=args.run,
        tokens=args.tokens,
        device=args.device,
        threads=args.threads,
        seed=args.seed,
        spent=terminal.seconds(),
        part=None if args.part is None else str(args.part),
    )


def parse_grid(pairs: list[str]) -> dict[str, list[Any]]:
    """`["a.b=1,2", "c=x"]` as `{"a.b": [1, 2], "c": ["x"]}`; commas inside brackets or quotes do not split values."""
    grid: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key or not text:
            raise ConfigError(f"setting {pair!r} has no values; write key=A,B, for example: model.mixer=attention,lstm")
        parts: list[str] = []
        is_complete = True
        for segment in text.split(","):
            parts = [*parts, segment] if is_complete else [*parts[:-1], f"{parts[-1]},{segment}"]
            try:
                json.loads(parts[-1])
                is_complete = True
            except json.JSONDecodeError:
                is_complete = parts[-1].lstrip()[:1] not in ("[", "{", '"')
        grid[key.strip()] = [parse_value(part.strip()) for part in parts]
    return grid
