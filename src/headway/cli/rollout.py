"""`headway rollout`: a model of trajectories plays episodes in an environment."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.cli.options import load, torch_options, whole
from headway.cli.terminal import Terminal

EXAMPLE = """
headway rollout runs/cartpole
headway rollout runs/cartpole --target-return 100 300 500 --episodes 20 --json
headway rollout runs/mine --env my_module:MyEnv --render episode.mp4
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help="a run of the recipes trajectories, cartpole, pendulum or hopper")
    add("--env", metavar="NAME", help="an id of gymnasium's, or module:Name of your own (default: that of the run)")
    add("--episodes", type=whole(1), default=10, metavar="N", help="episodes for each return (default: 10)")
    add(
        "--target-return",
        nargs="+",
        type=float,
        default=[],
        metavar="R",
        help="returns to ask for (default: the run's, the best of its data)",
    )
    add(
        "--draw",
        action="store_true",
        default=None,
        help="draw choices by their probabilities (default: as the run says)",
    )
    add("--render", type=Path, metavar="FILE.mp4", help="a video of the first episode")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    with torch_options(args):
        model = load(args)
        found = model.rollout(args.env, args.episodes, args.target_return, args.seed, args.render, args.draw)
    terminal.say(f"{found['environment']}, episodes from seed {found['seed']:,}\n")
    terminal.table([_row(result) for result in found["results"]])
    if args.render is not None:
        terminal.say(f"\nvideo: {args.render}")
    terminal.result(found)


def _row(result: dict) -> dict:
    low, high = result["return_mean_interval"]
    hundredths = result.get("return_normalised")
    return {
        "asked for": result["target_return"],
        "return": result["return_mean"],
        "95 % interval": f"{low:.5g} to {high:.5g}",
        **({} if hundredths is None else {"D4RL's scale": hundredths}),
        "steps": result["length_mean"],
        "episodes": result["samples"],
    }
