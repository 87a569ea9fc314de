"""`headway show`: show the parameters, memory and blocks of a recipe, preset, run or model."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from headway.app.cli.terminal import Terminal

EXAMPLE = """
headway show transformer-base
headway show runs/shakespeare --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|RUN|MODEL", help="recipe, preset, run directory or published model")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    import torch

    from headway.app.predictors import verbs
    from headway.app.quantization import layer_formats
    from headway.app.recipes import find_model_config, find_usage
    from headway.engine import refusal
    from headway.io.files import user_path
    from headway.nn.models import describe
    from headway.nn.models.kinds import generates

    config = find_model_config(args.name)
    facts: dict[str, Any] = {**describe(config), "generates": None}
    if generates(config):  # the backend that generates on a CPU, and why
        with torch.device("meta"):
            model: Any = config.build(None)
        missing = refusal(model)
        facts["generates"] = (
            "the compiled engine" if missing is None else f"torch: the engine has no instruction for {missing}"
        )
    facts["weights"] = layer_formats(user_path(args.name), config)
    facts["verbs"] = verbs(config, *find_usage(args.name))
    terminal.print(args.name)
    for key, value in facts.items():
        if isinstance(value, int):
            terminal.print(f"  {key.replace('_', ' '):<24}{value:>20,}")
    if facts["generates"] is not None:
        terminal.print(f"  generates on a CPU with {facts['generates']}")
    if facts["weights"]:
        counts = Counter(facts["weights"].values())
        terminal.print(f"  weights: {', '.join(f'{dtype} ({count} layers)' for dtype, count in counts.items())}")
    if facts["verbs"]:
        terminal.print(f"  verbs: {', '.join(facts['verbs'])}")
    terminal.print()
    terminal.print("\n".join(facts["tree"]))
    terminal.print_result({"name": args.name, **facts})
