"""`headway rollout`: play episodes in an environment with an agent, trajectory model or robot policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from headway.app.cli.options import add_verb, integer, load, number, torch_options, verb_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

EXAMPLE = """
headway rollout runs/cartpole
headway rollout runs/cartpole --target-return 100 300 500 --episodes 20 --json
headway rollout runs/mine --env my_module:MyEnv --render episodes.mp4 --render-episodes 5 --speed 2
headway rollout runs/robot --env metaworld/reach-v3 metaworld/door-open-v3 --episodes 50
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help="run of a ppo, trajectory or robotics recipe")
    add(
        "--env",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Gymnasium id, metaworld/NAME, or module:Name of your own class; several for a robot policy (default: "
        "the run's environments)",
    )
    add(
        "--target-return",
        nargs="+",
        type=number(-1e12, 1e12),
        default=[],
        metavar="R",
        help="target returns of a trajectory model (default: the run's, or the best return in its data)",
    )
    add(
        "--ensemble",
        type=_weight,
        default="run",
        metavar="M|none",
        help="robot policy: temporal ensembling coefficient (default: as in the run)",
    )
    add_verb(parser, "rollout", omit=["target_return", "render", "render_episodes", "speed"])
    add(
        "--render",
        type=Path,
        metavar="FILE.mp4",
        help="output file for a video of the first episodes and their returns",
    )
    add("--render-episodes", type=integer(1), metavar="N", help="episodes in the video (default: 3)")
    add(
        "--speed",
        type=number(0, above=True),
        metavar="X",
        help="speed of the video; 1 is the environment's render_fps (default: 1)",
    )


def _weight(text: str) -> float | str | None:
    """The argparse type of --ensemble."""
    if text in ("run", "none"):
        return None if text == "none" else text
    return number(0)(text)


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.learn.run_report import drop_empty_columns

    for name in ("render_episodes", "speed"):
        if getattr(args, name) is None:
            delattr(args, name)  # the default is that of the method
        elif args.render is None:
            raise UserError(f"--{name.replace('_', '-')} needs a video; add --render FILE.mp4, or remove this option")
    with torch_options(args):
        model = load(args)
        report = model.rollout(**verb_options(args, "rollout"))
    is_robot = "task" in report["results"][0]
    where = "" if is_robot else f"{report['environment']}, "
    terminal.print(f"{where}episodes from seed {report['seed']:,}\n")
    rows = []
    for result in report["results"]:
        has_success = "success_rate" in result
        low, high = result["success_rate_interval" if has_success else "return_mean_interval"]
        interval = f"{100 * low:.1f} to {100 * high:.1f} %" if has_success else f"{low:.5g} to {high:.5g}"
        success = f"{100 * result['success_rate']:.1f} %" if has_success else None
        if is_robot:
            row = {"task": result["task"], "environment": result["environment"], "success": success}
        else:
            row = {"target return": result.get("target_return")}
        row |= {"return": None if has_success else result["return_mean"], "95 % interval": interval}
        if not is_robot:
            row["D4RL score"] = result.get("return_normalised")
        row["steps"] = result["steps_mean" if has_success else "length_mean"]
        rows.append({**row, "episodes": result["samples"]})
    terminal.print_table(drop_empty_columns(rows))
    if args.render is not None:
        terminal.print(f"\nvideo: {args.render}")
    terminal.print_result(report)
