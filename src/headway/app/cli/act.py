"""`headway act`: choose the next action of an episode."""

from __future__ import annotations

import argparse

from headway.app.cli.options import add_server, add_verb, load, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError
from headway.io.json_files import parse_json

EXAMPLE = """
headway act runs/cartpole "[0.01, -0.2, 0.03, 0.4]"
headway act runs/robot '{"state": [0.1, 0.2, 0.3, 0.4], "task": "reach"}' --json
headway act cartpole "[0.01, -0.2, 0.03, 0.4]" --server http://127.0.0.1:8000
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="run of a ppo, trajectory or robotics recipe")
    parser.add_argument("observation", metavar="JSON", help="observation: a list of numbers, or a robot's object")
    add_verb(parser, "act", omit=["history"])
    add_server(parser)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    try:
        observation = parse_json(args.observation)
    except (ValueError, RecursionError):
        raise UserError(f"{args.observation[:60]!r} is not JSON; pass the observation as [0.1, 0.2]") from None
    with torch_options(args):
        action = load(args).act(observation, **verb_options(args, "act"))
    values = action if isinstance(action, int) else action.tolist()
    terminal.print(str(values))
    terminal.print_result({"action": values})
