"""`headway plan`: estimate a training run on the user's data without training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headway.app.cli.options import add_fine_tuning, add_recipe, integer, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.config import parse_settings
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.learn.plan.ranks import RankPlan

EXAMPLE = """
headway plan text --data my-books/ --minutes 5,30,120
headway plan classification --data questions.csv --minutes 2,10 --from path/to/all-MiniLM-L6-v2
headway plan translation --data train.en train.de --minutes 30 --set model.width=256
headway plan text --gpus 8 --gpu h100 --set model=llama-1.1b task.context=2048 train.batch_tokens=8192
"""
_DEFAULT_MINUTES = [5.0, 30.0, 120.0]
_MAX_CLASSES = 20  # classes listed
_COLUMNS = ("minutes", "parameters", "width", "layers", "batch", "steps", "epochs")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name from `headway recipes`, or path of a recipe.json")
    add_recipe(parser, "settings to keep fixed")
    add_fine_tuning(parser)
    parser.add_argument(
        "--minutes",
        type=_minutes_list,
        default=_DEFAULT_MINUTES,
        metavar="M,M,...",
        help="minutes to plan for (default: 5,30,120)",
    )
    parser.add_argument(
        "--gpus",
        type=integer(1, 100_000),
        metavar="N",
        help="plan a step on N GPUs: memory of each, traffic and time",
    )
    parser.add_argument("--gpu", metavar="NAME", help="GPU to plan for, with --gpus (default: h100)")


def _minutes_list(text: str) -> list[float]:
    """Positive numbers separated by commas."""
    parse = number(0, above=True)
    return [parse(part) for part in text.split(",")]


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import headway as hw

    if args.gpus is not None:
        fine_tuning = {"start": args.start, "lora": args.lora}
        settings, gpu = parse_settings(args.set), args.gpu or "h100"
        _print_ranks(hw.plan_gpus(args.recipe, args.gpus, gpu, args.data, settings, **fine_tuning), terminal)
        return
    if args.gpu is not None:
        raise UserError(f"--gpu {args.gpu} needs the number of GPUs; add --gpus N")
    with torch_options(args):
        plans = hw.plan(
            args.recipe,
            data=args.data,
            minutes=args.minutes,
            set=parse_settings(args.set),
            start=args.start,
            lora=args.lora,
            device=args.device,
            threads=args.threads,
            seed=args.seed,
            spent=terminal.seconds(),
        )
    data = next((plan.data for plan in plans if plan.data is not None), None)
    if data is not None:
        splits = ", ".join(f"{count:,} in {split}" for split, count in data.samples.items())
        terminal.print(f"{sum(data.samples.values()):,} {data.noun}: {splits}")
        if data.classes:
            listed = list(data.classes.items())[:_MAX_CLASSES]
            more = ", ..." if len(listed) < len(data.classes) else ""
            terminal.print(f"{len(data.classes):,} classes: {', '.join(f'{n} ({c:,})' for n, c in listed)}{more}")
        for remark in data.remarks:
            terminal.print(remark)
        terminal.print()
    memory_texts = ["" if plan.memory is None else f"{plan.memory / 2**20:,.0f} MiB" for plan in plans]
    rows = ({name: getattr(plan, name) for name in _COLUMNS} for plan in plans)
    terminal.print_table([{**row, "memory": memory} for row, memory in zip(rows, memory_texts)])
    for plan in plans:
        terminal.print(f"\n{plan.minutes:g} minutes")
        for reason in plan.reasons:
            terminal.print(f"  {reason}")
    rows = [
        {
            **{name: value for name, value in plan._asdict().items() if name != "data"},
            "expected": None if plan.expected is None else plan.expected.result(),
        }
        for plan in plans
    ]
    terminal.print_result({"plans": rows, "data": None if data is None else data._asdict()})


def _print_ranks(plan: RankPlan, terminal: Terminal) -> None:
    from headway.learn.plan.ranks import UTILISATION

    rows = [{"each GPU": name, "amount": f"{size / 2**30:,.2f} GiB"} for name, size in plan.memory.items()]
    total = sum(plan.memory.values())
    rows.append({"each GPU": "memory", "amount": f"{total / 2**30:,.2f} of {plan.available / 2**30:,.1f} GiB"})
    rows += [
        {"each GPU": f"receives {name}", "amount": f"{size / 2**30:,.2f} GiB a step"}
        for name, size in plan.traffic.items()
        if size
    ]
    rows += [
        {"each GPU": f"time for {name}", "amount": f"{1000 * size:,.1f} ms"} for name, size in plan.seconds.items()
    ]
    terminal.print_table(rows)
    rate = plan.tokens / plan.step_seconds
    terminal.print(
        f"{plan.processes} GPUs: replicas {plan.replicas}, shards {plan.shard}, micro-batches per process "
        f"{plan.micro_batches}; {plan.tokens:,} tokens in {1000 * plan.step_seconds:,.0f} ms, "
        f"{rate / plan.processes:,.0f} per second and GPU if products reach {100 * UTILISATION:.0f} % of the peak rate"
    )
    for reason in plan.reasons:
        terminal.print(reason)
    terminal.print_result({"plan": {**plan._asdict(), "step_seconds": plan.step_seconds}})
