"""`headway data collect`: episodes of mixed quality or demonstrations, recorded in environments."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.app.cli.options import number, torch_options, whole
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.environments import Copies, Recorder, RowPolicy, Shots

EXAMPLE = """
headway data collect CartPole-v1 --episodes 200 --out random.npz
headway data collect CartPole-v1 --policy runs/ppo random --mix 0 0.5 --out mixed.npz
headway data collect Pendulum-v1 --policy good.npz --mix 0 0.3 1 --out levels.npz
headway data collect my_module:MyEnv --policy my_module:act random --horizon 500 --out mine.npz
headway data collect metaworld/reach-v3 metaworld/door-open-v3 --episodes 50 --out arm
headway data collect metaworld/reach-v3 --episodes 50 --cameras corner2 gripperPOV --out seen
"""
_AT_ONCE = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("env", nargs="+", metavar="ENV", help="ids of gymnasium's, metaworld/NAME-v3, or module:Name of your own")
    add(
        "--policy",
        nargs="+",
        metavar="POLICY",
        help="random, expert (Meta-World's, of which only episodes that succeed are kept), the folder of a run of ppo "
        "or trajectories, the .npz of a network, or module:function from states [B, S] to actions (default: expert "
        "where there is one, else random)",
    )
    add(
        "--mix",
        nargs="+",
        type=number(0, 1),
        default=[0.0],
        metavar="SHARE",
        help="shares of actions that are random; episodes take every policy with every share in turn (default: 0)",
    )
    add("--episodes", type=whole(1), default=100, metavar="N", help="episodes to record of each (default: 100)")
    add(
        "--at-once",
        type=whole(1),
        metavar="N",
        help=f"environments side by side (default: {_AT_ONCE}; of Meta-World's, and with cameras, 1)",
    )
    add("--horizon", type=whole(1), metavar="N", help="the most steps of an episode (default: the environment's)")
    add("--cameras", nargs="+", default=[], metavar="NAME", help="cameras of MuJoCo's that are filmed")
    add(
        "--size",
        nargs=2,
        type=whole(2),
        default=[96, 96],
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of their pictures, even (default: 96 96)",
    )
    add("--out", type=Path, required=True, metavar="PLACE", help="a file NAME.npz, or a folder: a LeRobotDataset")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.environments import Copies, Shots, check_together, default_policy

    _check_out(args)
    recorders: list[Recorder] = []
    every = max(1, args.episodes // 10)

    def progress(recorder: Recorder, done: int) -> None:
        if done % every == 0:
            failed = f", {recorder.failed:,} failed" if recorder.failed else ""
            terminal.note(f"{recorder.copies.name}: {done:,} of {args.episodes:,} episodes{failed}")

    with ExitStack() as stack:
        if any(map(_is_run, args.policy or ())):
            stack.enter_context(torch_options(args))
        shots = stack.enter_context(Shots(args.out.parent)) if args.cameras else None
        copies = []
        for name in args.env:
            heavy = args.cameras or default_policy(name) == "expert"  # whose simulation takes 28 MB a copy
            at_once = min(args.at_once or (1 if heavy else _AT_ONCE), args.episodes)
            opened = Copies(name, at_once, cameras=args.cameras, size=tuple(args.size))
            copies.append(stack.enter_context(opened))
        recorders = [_recorder(args, each, task, shots) for task, each in enumerate(copies)]
        if not args.out.suffix:
            check_together(recorders)
        try:
            for recorder in recorders:
                recorder.run(args.episodes, len(recorder.copies), partial(progress, recorder))
            _write(recorders, args, shots)
        except BaseException as error:
            raise _kept(recorders, args, shots, error) from error
        _show(recorders, args.out, terminal)


def _check_out(args: argparse.Namespace) -> None:
    """UserError for a place that cannot take the episodes, before they are recorded."""
    from headway.data.lerobot_writing import check_lerobot
    from headway.data.store import check_out
    from headway.environments import SEEDS, TRIES

    path, folder = args.out, not args.out.suffix
    if not folder and path.suffix.lower() != ".npz":
        raise UserError(f"{path} is not the name of an .npz file; end it with .npz, or name a folder without an ending")
    if path.exists():
        raise UserError(f"{path} already exists; choose another place with --out")
    if not folder and args.cameras:
        raise UserError(f"{path} holds no pictures; name a folder with --out, without .npz, or leave --cameras out")
    if not folder and len(args.env) > 1:
        raise UserError(f"{path} holds one environment, and {len(args.env)} are given; name a folder, without .npz")
    if folder:
        check_lerobot(path, films=bool(args.cameras))
    if len(set(args.env)) < len(args.env):
        raise UserError("an environment is given twice; name each once")
    # No episode, nor one in place of a failure, is to start as those by which models are judged.
    tries = TRIES if any(_successes_alone(args, name) for name in args.env) else 1
    starts, judged = tries * args.episodes, SEEDS["validation"]
    if starts > judged:
        raise UserError(
            f"--episodes {args.episodes}, which may take {starts:,} starts, reaches those from which models are "
            f"judged, {judged:,} and on; give {judged // tries:,} at most"
        )
    if (args.seed or 0) + starts > judged:
        raise UserError(
            f"--seed {args.seed} with {args.episodes:,} episodes, which may take {starts:,} starts, reaches those from "
            f"which models are judged, {judged:,} and on; give a number below {judged - starts + 1:,}"
        )
    check_out(path)
    if args.cameras and any(side % 2 for side in args.size):
        raise UserError(f"videos have even sides, and --size is {args.size[0]} {args.size[1]}; give even numbers")


def _policies(args: argparse.Namespace, environment: str) -> list[str]:
    """Who acts in an environment, by name."""
    from headway.environments import default_policy

    return args.policy or [default_policy(environment)]


def _successes_alone(args: argparse.Namespace, environment: str) -> bool:
    """Whether only episodes are kept in which the task is done: where the expert alone acts."""
    return set(_policies(args, environment)) == {"expert"}


def _recorder(args: argparse.Namespace, copies: Copies, task: int, shots: Shots | None) -> Recorder:
    from headway.environments import Demonstrating, Mixture, Recorder, check_demonstrable, open_policy

    policies = [
        _policy_of_run(name, args, copies) if _is_run(name) else open_policy(name, copies.spaces, copies.name)
        for name in _policies(args, copies.name)
    ]
    mixtures = [Mixture(policy, share) for policy in policies for share in args.mix]
    demonstrating = Demonstrating() if _successes_alone(args, copies.name) else None
    recorder = Recorder(copies, mixtures, args.seed or 0, args.horizon, demonstrating)
    if shots is not None:
        recorder.keep = lambda number, pictures: shots.keep(task, number, pictures)
    if not args.out.suffix:
        check_demonstrable(recorder)
    return recorder


def _is_run(policy: str) -> bool:
    return Path(policy).expanduser().is_dir()


def _policy_of_run(name: str, args: argparse.Namespace, copies: Copies) -> RowPolicy:
    """The agent that a run trained. UserError for a run of another kind, and for one that does not fit."""
    import headway as hw
    from headway.domains.agents import predictors as agents
    from headway.domains.trajectories import predictors as trajectories
    from headway.nn.models import kinds

    model = hw.load(Path(name).expanduser(), args.device)
    if kinds.is_agent(model.module):
        return agents.recording_policy(model, copies, args.horizon)
    if kinds.is_trajectories(model.module):
        return trajectories.recording_policy(model, copies, args.horizon)
    raise UserError(
        f"the policy {name} is {kinds.kind_of(model.module.config)}; give a run of ppo or trajectories, random, the "
        ".npz of a network, or module:function"
    )


def _write(recorders: Sequence[Recorder], args: argparse.Namespace, shots: Shots | None) -> int:
    """Write what is finished; how many episodes that is."""
    from headway.data.lerobot_writing import write_lerobot
    from headway.data.recordings import write_episodes
    from headway.environments import demonstrations, robot_numbers

    if args.out.suffix:
        write_episodes(args.out, recorders[0].episodes())
    else:
        write_lerobot(args.out, demonstrations(recorders, args.cameras, shots), robot_numbers(args.env))
    return sum(len(recorder.finished) for recorder in recorders)


def _kept(
    recorders: Sequence[Recorder], args: argparse.Namespace, shots: Shots | None, error: BaseException
) -> BaseException:
    """What stopped a recording, after its finished episodes have been written."""
    if not any(recorder.finished for recorder in recorders):
        return error
    if args.out.exists():  # it was written just before all was stopped
        count = sum(len(recorder.finished) for recorder in recorders)
    else:
        try:
            count = _write(recorders, args, shots)
        except Exception:  # what is finished is lost if it is written nowhere: a new folder for what is temporary
            args.out = Path(tempfile.mkdtemp(prefix="headway-")) / args.out.name
            count = _write(recorders, args, shots)
    text = str(error) or "stopped"
    kind = type(error) if isinstance(error, (UserError, KeyboardInterrupt)) else UserError
    return kind(f"{text}; {count:,} finished episodes are in {args.out}")


def _show(recorders: Sequence[Recorder], path: Path, terminal: Terminal) -> None:
    rows = []
    for recorder in recorders:
        episodes = recorder.episodes()
        returns, tries = episodes.returns, len(episodes) + recorder.failed
        row: dict[str, Any] = {
            "environment": episodes.environment,
            "episodes": len(episodes),
            "steps": len(episodes.rewards),
            "return_mean": float(returns.mean()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
        }
        if recorder.demonstrating is not None:
            row |= {"failed": recorder.failed, "success_rate": len(episodes) / tries}
        rows.append(row)
    found: dict[str, Any] = {"path": path, **rows[0]} if len(rows) == 1 else {"path": path, "tasks": rows}
    if len(rows) > 1:
        terminal.say(f"path: {path}")
        terminal.table(rows)
    else:
        for name, value in found.items():
            told = f"{value:,.5g}" if isinstance(value, float) else value
            terminal.say(f"{name.replace('_', ' ')}: {told}")
    terminal.result(found)
