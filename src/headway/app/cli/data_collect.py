"""`headway data collect`: record episodes of mixed quality or demonstrations in environments."""

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
headway data collect metaworld/reach-v3 --episodes 50 --cameras corner2 gripperPOV --out filmed
"""
_AT_ONCE = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("env", nargs="+", metavar="ENV", help="Gymnasium id, metaworld/NAME-v3, or module:Name of your own class")
    add(
        "--policy",
        nargs="+",
        metavar="POLICY",
        help="policies: random, expert (Meta-World's; stores only successful episodes), a run of ppo or trajectories, "
        "the .npz of a network, or module:function from states [B, S] to actions (default: expert if available, "
        "otherwise random)",
    )
    add(
        "--mix",
        nargs="+",
        type=number(0, 1),
        default=[0.0],
        metavar="SHARE",
        help="shares of random actions; episodes cycle through all policies and shares (default: 0)",
    )
    add("--episodes", type=whole(1), default=100, metavar="N", help="episodes to record per environment (default: 100)")
    add(
        "--at-once",
        type=whole(1),
        metavar="N",
        help=f"number of parallel environments (default: {_AT_ONCE}; 1 for Meta-World or with cameras)",
    )
    add("--horizon", type=whole(1), metavar="N", help="maximum steps per episode (default: the environment's limit)")
    add("--cameras", nargs="+", default=[], metavar="NAME", help="MuJoCo cameras to record")
    add(
        "--size",
        nargs=2,
        type=whole(2),
        default=[96, 96],
        metavar=("HEIGHT", "WIDTH"),
        help="height and width of the camera images in pixels, both even (default: 96 96)",
    )
    add("--out", type=Path, required=True, metavar="PATH", help="file NAME.npz, or folder for a LeRobotDataset")


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
            heavy = args.cameras or default_policy(name) == "expert"  # each simulation takes 28 MB
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
    """Raise UserError before recording if --out cannot take the episodes."""
    from headway.data.lerobot_writing import check_lerobot
    from headway.data.store import check_out
    from headway.environments import SEEDS, TRIES

    path, folder = args.out, not args.out.suffix
    if not folder and path.suffix.lower() != ".npz":
        raise UserError(f"{path} is not an .npz file; use a name ending in .npz, or a folder name without a suffix")
    if path.exists():
        raise UserError(f"{path} already exists; choose another path with --out")
    if not folder and args.cameras:
        raise UserError(f"{path} cannot store images; pass a folder to --out, or remove --cameras")
    if not folder and len(args.env) > 1:
        raise UserError(f"{path} can store one environment, not {len(args.env)}; pass a folder to --out")
    if folder:
        check_lerobot(path, films=bool(args.cameras))
    if len(set(args.env)) < len(args.env):
        raise UserError("an environment is repeated; name each one once")
    # No episode, nor the retry of a failed one, may use the seeds of evaluation episodes.
    tries = TRIES if any(_successes_alone(args, name) for name in args.env) else 1
    starts, judged = tries * args.episodes, SEEDS["validation"]
    if starts > judged:
        raise UserError(
            f"--episodes {args.episodes} may need {starts:,} seeds and reach those of evaluation episodes, from "
            f"{judged:,} on; use at most {judged // tries:,} episodes"
        )
    if (args.seed or 0) + starts > judged:
        raise UserError(
            f"--seed {args.seed} with {args.episodes:,} episodes may need {starts:,} seeds and reach those of "
            f"evaluation episodes, from {judged:,} on; use a seed below {judged - starts + 1:,}"
        )
    check_out(path)
    if args.cameras and any(side % 2 for side in args.size):
        raise UserError(
            f"videos need an even height and width, and --size is {args.size[0]} {args.size[1]}; use even numbers"
        )


def _policies(args: argparse.Namespace, environment: str) -> list[str]:
    """The names of the policies to record in an environment."""
    from headway.environments import default_policy

    return args.policy or [default_policy(environment)]


def _successes_alone(args: argparse.Namespace, environment: str) -> bool:
    """Whether only successful episodes are stored: if the expert is the only policy."""
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
    """The policy of a trained run. Raises UserError for other kinds of runs, and for mismatched spaces."""
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
        f"policy {name} is {kinds.kind_of(model.module.config)}; pass a run of ppo or trajectories, random, the .npz "
        "of a network, or module:function"
    )


def _write(recorders: Sequence[Recorder], args: argparse.Namespace, shots: Shots | None) -> int:
    """Write the finished episodes and return their number."""
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
    """Write the finished episodes, and return the error that stopped the recording with their path."""
    if not any(recorder.finished for recorder in recorders):
        return error
    if args.out.exists():  # written just before the interruption
        count = sum(len(recorder.finished) for recorder in recorders)
    else:
        try:
            count = _write(recorders, args, shots)
        except Exception:  # rather than lose the episodes, write them to a temporary folder
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
