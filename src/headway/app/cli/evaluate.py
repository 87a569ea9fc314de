"""`headway evaluate`: compute the standard metrics of the domain."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import add_data, add_verb, add_weights, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal, format_cell
from headway.errors import UserError

EXAMPLE = """
headway evaluate runs/shakespeare                                   # also writes the scores into its report
headway evaluate runs/en-de --data newstest.en newstest.de --json
headway evaluate runs/photos --data more-photos/                    # its test split, or all of it
headway evaluate models/gpt2 --data wiki.test.raw --stride 512
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|MODEL", help="run directory or published model")
    add_data(parser, "your own files or folders: their test or val folder if there is one, otherwise all of them")
    parser.add_argument("--split", help="validation, test or all (default: test, or the split found in --data)")
    add_verb(parser, "evaluate")
    add_weights(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        from headway.predict.model_evaluation import scores_and_task

        model, task = load(args), None
        if model.recipe is None:
            scores = model.evaluate(**verb_options(args, "evaluate"))
        else:
            scores, task = scores_and_task(model, **verb_options(args, "evaluate"))
    if args.data and args.split is None and scores["split"] != "all":
        terminal.note(
            f"evaluated on the {scores['split']} split of {', '.join(map(str, args.data))}; --split all uses all of it"
        )
    from headway.learn.report.charts import format_interval

    if "note" in scores:
        terminal.note(scores["note"])
    for name, value in scores.items():
        if name != "note":
            terminal.print(f"{name}: {format_interval(*value) if name.endswith('_interval') else format_cell(value)}")
    overrides = (args.data, args.limit, args.stride, args.weights)
    if task is not None and scores["split"] == task.final_split and all(override is None for override in overrides):
        from headway.app.api import record_evaluation

        try:  # write the scores into the report of the run
            report = record_evaluation(model, task, scores)
            if report is not None:
                terminal.print(f"report: {report}")
        except UserError as error:
            terminal.note(f"the scores in the run's report are unchanged: {error}")
    terminal.print_result(scores)
