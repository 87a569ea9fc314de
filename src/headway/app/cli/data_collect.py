"""`headway data collect`: record episodes of mixed quality or demonstrations in environments."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.app.cli.options import integer, number, torch_options
from headway.app.cli.terminal import Terminal
from headway.errors import UserError

if TYPE_CHECKING:
    from headway.environments.recording import EpisodeImages, Recorder
    from headway.environments.vector_env import VectorEnv

EXAMPLE = """
headway data collect CartPole-v1 --episodes 200 --out random.npz
headway data collect CartPole-v1 --policy runs/ppo random --mix 0 0.5 --out mixed.npz
headway data collect Pendulum-v1 --policy good.npz --mix 0 0.3 1 --out levels.npz
headway data collect my_module:MyEnv --policy my_module:act random --horizon 500 --out mine.npz
headway data collect metaworld/reach-v3 metaworld/door-open-v3 --episodes 50 --out arm
headway data collect metaworld/reach-v3 --episodes 50 --cameras corner2 gripperPOV --out filmed
"""
_NUM_ENVS = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("env", nargs="+", metavar="ENV", help="Gymnasium id, metaworld/NAME-v3, or module:Name of your own class")
    add(
        "--policy",
        nargs="+",
        metavar="POLICY",
        help="policies: random, expert (Meta-World's; stores only successful episodes), a run of ppo or trajectories, "
        "a network's .npz file, or module:function from states [B, S] to actions (default: expert if available, "
        "otherwise random)",
    )
    add(
        "--mix",
        nargs="+",
        type=number(0, 1),
        default=[0.0],
        metavar="SHARE",
        help="fractions of random actions; episodes cycle through all policies and fractions (default: 0)",
    )
    add(
        "--episodes",
        type=integer(1),
        default=100,
        metavar="N",
        help="episodes to record per environment (default: 100)",
    )
    add(
        "--at-once",
        type=integer(1),
        metavar="N",
        help=f"number of parallel environments (default: {_NUM_ENVS}; 1 for Meta-World or with cameras)",
    )
    add("--horizon", type=integer(1), metavar="N", help="maximum steps per episode (default: the environment's limit)")
    add("--cameras", nargs="+", default=[], metavar="NAME", help="MuJoCo cameras to record")
    add(
        "--size",
        nargs=2,
        type=integer(2),
        default=[96, 96],
        metavar=("HEIGHT", "WIDTH"),
        help="height and width of the camera images in pixels, both even (default: 96 96)",
    )
    add("--out", type=Path, required=True, metavar="PATH", help="file NAME.npz, or folder for a LeRobotDataset")


def run(args: argparse.Namespace, terminal: Terminal) -> None:
    from headway.environments.recording import EpisodeImages, check_same_format, default_policy
    from headway.environments.vector_env import VectorEnv

    _check_output(args)
    recorders: list[Recorder] = []
    every = max(1, args.episodes // 10)

    def progress(recorder: Recorder, done: int) -> None:
        if done % every == 0:
            failed = f", {recorder.failed:,} failed" if recorder.failed else ""
            terminal.note(f"{recorder.envs.name}: {done:,} of {args.episodes:,} episodes{failed}")

    with ExitStack() as stack:
        if any(map(_is_run, args.policy or ())):
            stack.enter_context(torch_options(args))
        episode_images = stack.enter_context(EpisodeImages(args.out.parent)) if args.cameras else None
        vector_envs = []
        for name in args.env:
            is_heavy = args.cameras or default_policy(name) == "expert"  # each simulation takes 28 MB
            num_envs = min(args.at_once or (1 if is_heavy else _NUM_ENVS), args.episodes)
            vector_env = VectorEnv(name, num_envs, cameras=args.cameras, size=tuple(args.size))
            vector_envs.append(stack.enter_context(vector_env))
        recorders = [_recorder(args, envs, task, episode_images) for task, envs in enumerate(vector_envs)]
        if not args.out.suffix:
            check_same_format(recorders)
        try:
            for recorder in recorders:
                recorder.run(args.episodes, len(recorder.envs), partial(progress, recorder))
            _write(recorders, args, episode_images)
        except BaseException as error:
            raise _save_finished(recorders, args, episode_images, error) from error
        rows: list[dict[str, Any]] = []
        for recorder in recorders:
            episodes = recorder.episodes()
            returns, tries = episodes.returns, len(episodes) + recorder.failed
            row = {
                "environment": episodes.environment,
                "episodes": len(episodes),
                "steps": len(episodes.rewards),
                "return_mean": float(returns.mean()),
                "return_min": float(returns.min()),
                "return_max": float(returns.max()),
            }
            if recorder.success_filter is not None:
                row |= {"failed": recorder.failed, "success_rate": len(episodes) / tries}
            rows.append(row)
        summary: dict[str, Any] = {"path": args.out, **rows[0]} if len(rows) == 1 else {"path": args.out, "tasks": rows}
        if len(rows) > 1:
            terminal.print(f"path: {args.out}")
            terminal.print_table(rows)
        else:
            for name, value in summary.items():
                formatted = f"{value:,.5g}" if isinstance(value, float) else value
                terminal.print(f"{name.replace('_', ' ')}: {formatted}")
        terminal.print_result(summary)


def _check_output(args: argparse.Namespace) -> None:
    """Raise UserError before recording if --out cannot take the episodes."""
    from headway.data.array_store import check_output_path
    from headway.data.lerobot_writer import check_lerobot_packages
    from headway.environments.recording import MAX_TRIES
    from headway.environments.rollouts import SEEDS

    path, folder = args.out, not args.out.suffix
    if not folder and path.suffix.lower() != ".npz":
        raise UserError(f"{path} is not an .npz file; use a name ending in .npz, or a folder name without a suffix")
    if path.exists():
        raise UserError(f"{path} already exists; choose another path with --out")
    if not folder and args.cameras:
        raise UserError(f"{path} cannot store images; pass a folder to --out, or remove --cameras")
    if not folder and len(args.env) > 1:
        raise UserError(f"{path} can store only one environment, not {len(args.env)}; pass a folder to --out")
    if folder:
        check_lerobot_packages(path, videos=bool(args.cameras))
    if len(set(args.env)) < len(args.env):
        raise UserError("an environment is listed twice; list each one once")
    # No episode, nor the retry of a failed one, may use the seeds of evaluation episodes.
    tries = MAX_TRIES if any(_only_successes(args, name) for name in args.env) else 1
    num_seeds, first_eval_seed = tries * args.episodes, SEEDS["validation"]
    if num_seeds > first_eval_seed:
        raise UserError(
            f"--episodes {args.episodes} may need {num_seeds:,} *seeds and run into those of evaluation episodes, from "
            f"{first_eval_seed:,} on; use at most {first_eval_seed // tries:,} episodes"
        )
    if (args.seed or 0) + num_seeds > first_eval_seed:
        raise UserError(
            f"--seed {args.seed} with {args.episodes:,} episodes may need {num_seeds:,} *seeds and run into those of "
            f"evaluation episodes, from {first_eval_seed:,} on; use a seed below {first_eval_seed - num_seeds + 1:,}"
        )
    check_output_path(path)
    if args.cameras and any(length % 2 for length in args.size):
        raise UserError(
            f"videos need an even height and width, but --size is {args.size[0]} {args.size[1]}; use even numbers"
        )


def _policy_names(args: argparse.Namespace, environment: str) -> list[str]:
    """The names of the policies to record in an environment."""
    from headway.environments.recording import default_policy

    return args.policy or [default_policy(environment)]


def _only_successes(args: argparse.Namespace, environment: str) -> bool:
    """Whether only successful episodes are stored: if the expert is the only policy."""
    return set(_policy_names(args, environment)) == {"expert"}


def _recorder(args: argparse.Namespace, envs: VectorEnv, task: int, episode_images: EpisodeImages | None) -> Recorder:
    from headway.environments.recording import Mixture, Recorder, SuccessFilter, check_demonstrable, open_policy

    policies = []
    for name in _policy_names(args, envs.name):
        if not _is_run(name):
            policies.append(open_policy(name, envs.spaces, envs.name))
            continue
        import headway as hw  # with torch, which other policies do not need
        from headway.domains.agents import predictors as agents
        from headway.domains.trajectories import predictors as trajectories
        from headway.nn.models import kinds

        model = hw.load(Path(name).expanduser(), args.device)
        if kinds.is_agent(model.module):
            policies.append(agents.recording_policy(model, envs, args.horizon))
        elif kinds.is_trajectories(model.module):
            policies.append(trajectories.recording_policy(model, envs, args.horizon))
        else:
            raise UserError(
                f"policy {name} is {kinds.kind_of(model.module.config)}; pass a run of ppo or trajectories, random, a "
                "network's .npz file, or module:function"
            )
    mixtures = [Mixture(policy, share) for policy in policies for share in args.mix]
    demonstrating = SuccessFilter() if _only_successes(args, envs.name) else None
    recorder = Recorder(envs, mixtures, args.seed or 0, args.horizon, demonstrating)
    if episode_images is not None:
        recorder.on_finished = lambda number, pictures: episode_images.add(task, number, pictures)
    if not args.out.suffix:
        check_demonstrable(recorder)
    return recorder


def _is_run(policy: str) -> bool:
    return Path(policy).expanduser().is_dir()


def _write(recorders: Sequence[Recorder], args: argparse.Namespace, episode_images: EpisodeImages | None) -> int:
    """Write the finished episodes and return their number."""
    from headway.data.episode_files import write_episodes
    from headway.data.lerobot_writer import write_lerobot
    from headway.environments.recording import collect_demonstrations, robot_state_size

    if args.out.suffix:
        write_episodes(args.out, recorders[0].episodes())
    else:
        write_lerobot(
            args.out, collect_demonstrations(recorders, args.cameras, episode_images), robot_state_size(args.env)
        )
    return sum(len(recorder.finished) for recorder in recorders)


def _save_finished(
    recorders: Sequence[Recorder], args: argparse.Namespace, episode_images: EpisodeImages | None, error: BaseException
) -> BaseException:
    """Write the finished episodes, and return the error that stopped the recording with their path."""
    if not any(recorder.finished for recorder in recorders):
        return error
    if args.out.exists():  # written just before the interruption
        count = sum(len(recorder.finished) for recorder in recorders)
    else:
        try:
            count = _write(recorders, args, episode_images)
        except Exception:  # rather than lose the episodes, write them to a temporary folder
            args.out = Path(tempfile.mkdtemp(prefix="headway-")) / args.out.name
            count = _write(recorders, args, episode_images)
    text = str(error) or "stopped"
    kind = type(error) if isinstance(error, (UserError, KeyboardInterrupt)) else UserError
    return kind(f"{text}; {count:,} finished episodes are in {args.out}")
