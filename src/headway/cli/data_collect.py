"""`headway data collect`: episodes of mixed quality, recorded in an environment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.cli.options import number, whole
from headway.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.data.episodes import Episodes
    from headway.environments import Recorder

EXAMPLE = """
headway data collect CartPole-v1 --episodes 200 --out random.npz
headway data collect Pendulum-v1 --policy good.npz --mix 0 0.3 1 --out mixed.npz
headway data collect my_module:MyEnv --policy my_module:act random --horizon 500 --out mine.npz
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("env", metavar="ENV", help="an id of gymnasium's, or module:Name of your own")
    add(
        "--policy",
        nargs="+",
        default=["random"],
        metavar="POLICY",
        help="random, the .npz of a network, or module:function from states [B, S] to actions (default: random)",
    )
    add(
        "--mix",
        nargs="+",
        type=number(0, 1),
        default=[0.0],
        metavar="SHARE",
        help="shares of actions that are random; episodes take every policy with every share in turn (default: 0)",
    )
    add("--episodes", type=whole(1), default=100, metavar="N", help="episodes to record (default: 100)")
    add("--at-once", type=whole(1), default=16, metavar="N", help="environments side by side (default: 16)")
    add("--horizon", type=whole(1), metavar="N", help="the most steps of an episode (default: the environment's)")
    add("--out", type=Path, required=True, metavar="FILE.npz", help="where the episodes go")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.environments import Copies, Mixture, Recorder, open_policy

    _check_out(args.out)
    with Copies(args.env, min(args.at_once, args.episodes)) as copies:
        policies = [open_policy(name, copies.spaces) for name in args.policy]
        mixtures = [Mixture(policy, share) for policy in policies for share in args.mix]
        recorder = Recorder(copies, mixtures, args.seed or 0, args.horizon)
        every = max(1, args.episodes // 10)
        try:
            recorder.run(
                args.episodes,
                len(copies),
                lambda done: terminal.note(f"{done:,} of {args.episodes:,} episodes") if done % every == 0 else None,
            )
        except BaseException as error:
            raise _kept(recorder, args.out, error) from error
    _show(_write(recorder, args.out), args.out, terminal)


def _check_out(path: Path) -> None:
    """UserError for a place that cannot take the episodes, before they are recorded."""
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path} is no name of an .npz file; end it with .npz")
    if path.exists():
        raise UserError(f"{path} is there already; choose another place with --out")


def _write(recorder: Recorder, path: Path) -> Episodes:
    from headway.data.recordings import write_episodes

    episodes = recorder.episodes()
    write_episodes(path, episodes)
    return episodes


def _kept(recorder: Recorder, path: Path, error: BaseException) -> BaseException:
    """What stopped a recording, after its finished episodes have been written."""
    if not recorder.finished:
        return error
    count = len(_write(recorder, path))
    text = str(error) or "stopped"
    kind = type(error) if isinstance(error, (UserError, KeyboardInterrupt)) else UserError
    return kind(f"{text}; {count:,} finished episodes are in {path}")


def _show(episodes: Episodes, path: Path, terminal: Terminal) -> None:
    returns = episodes.returns
    found: dict[str, Any] = {
        "path": path,
        "environment": episodes.environment,
        "episodes": len(episodes),
        "steps": len(episodes.rewards),
        "return_mean": float(returns.mean()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
    }
    for name, value in found.items():
        terminal.say(f"{name.replace('_', ' ')}: {value:,.5g}" if isinstance(value, float) else f"{name}: {value}")
    terminal.result(found)
