"""`headway show`: what a recipe, preset, run or model is made of."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headway.cli.terminal import Terminal

if TYPE_CHECKING:
    from headway.models import ModelConfig

EXAMPLE = """
headway show transformer-base
headway show runs/shakespeare --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME|RUN|MODEL", help="a recipe, a preset, a run directory or a published model"
    )


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.models import describe
    from headway.recipes import find_model

    config = find_model(args.name)
    facts = describe(config)
    facts["generates"] = _writer(config)
    terminal.say(args.name)
    for key, value in facts.items():
        if isinstance(value, int):
            terminal.say(f"  {key.replace('_', ' '):<24}{value:>20,}")
    if facts["generates"] is not None:
        terminal.say(f"  generates on a CPU by {facts['generates']}")
    terminal.say()
    terminal.say("\n".join(facts["tree"]))
    terminal.result({"name": args.name, **facts})


def _writer(config: ModelConfig) -> str | None:
    """What generates on a CPU, and why; None for a model that does not generate."""
    import torch

    from headway.engine import refusal
    from headway.models import Captioner, EncoderDecoder, Transformer

    with torch.device("meta"):
        model = config.build(None)
    if isinstance(model, Transformer) and not (model.config.stack.causal and "vocabulary" in model.heads):
        return None
    if not isinstance(model, (EncoderDecoder, Captioner, Transformer)):
        return None
    missing = refusal(model)
    return "the compiled engine" if missing is None else f"torch: the engine has no instruction for {missing}"
