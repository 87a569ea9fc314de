"""Rows of agents: chess, and episodes in environments."""

from __future__ import annotations

from collections.abc import Iterator

from rows.told import Found, Row


def chess(found: Found) -> Iterator[Row]:
    what = f"chess, {found['run']['parameters'] / 1e6:.1f}M parameters"
    yield (
        f"{what}: puzzles of Lichess solved by policy, one move ahead, a tree of 200 nodes",
        ", ".join(
            f"{100 * part['puzzle_accuracy']:.1f} % of {part['samples']:,}" for part in found["puzzles"].values()
        ),
        "",
    )
    opponents = (
        ("random", "random moves"),
        ("elo", "Stockfish at UCI_Elo 1320"),
        ("elo-1500", "Stockfish at UCI_Elo 1500"),
    )
    for kind, beside in opponents:
        match = found[kind]["matches"][0]
        games = f"{match['wins']} won, {match['draws']} drawn, {match['losses']} lost"
        yield (
            f"{what}: {match['games']} games at 0.1 s a move against {beside}",
            f"{100 * match['score']:.1f} % of the points ({games})",
            "",
        )


def trajectories(found: Found) -> Iterator[Row]:
    """The first return that is asked for, over seeds."""

    def told(kind: str) -> str:
        spread = found[f"{kind}_return"]
        return f"{spread['median']:,.0f} ({spread['low']:,.0f} to {spread['high']:,.0f})"

    data = found["data"]
    cloning = f"behaviour cloning: {told('cloning')}; " if "cloning" in found else ""
    yield (
        f"{found['environment']}: mean return over {len(found['conditioned'])} seeds of a Decision Transformer",
        told("conditioned"),
        f"{cloning}the {data['episodes']:,} recorded episodes: {data['return_mean']:,.0f} in the mean",
    )


def robotics(found: Found) -> Iterator[Row]:
    """Success in each task, and the mean."""
    low, high = found["success_rate_interval"]
    each = ", ".join(f"{task} {100 * part['test']['success_rate']:.0f}" for task, part in found["tasks"].items())
    longest = max(part["seconds"] for part in found["tasks"].values())
    reached = f"{100 * found['success_rate']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    yield (
        f"Meta-World, {len(found['tasks'])} tasks from 50 demonstrations each, policies of "
        f"{next(iter(found['tasks'].values()))['parameters'] / 1e6:.1f}M parameters: success",
        f"{reached} after {longest / 60:.1f} minutes of one core a task at most: {each}",
        "",
    )


def _share(scores: Found) -> str:
    low, high = scores["success_rate_interval"]
    return f"{100 * scores['success_rate']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def _time(part: Found) -> str:
    return f"{part['seconds'] / 60:.0f} minutes of {'one core' if part['threads'] == 1 else '2 cores'}"


def _spread(scores: Found) -> str:
    """Over seeds, in %: one number where all came to the same."""
    median, low, high = (round(100 * scores["success_rate"][name]) for name in ("median", "low", "high"))
    return str(median) if low == high else f"{median} ({low} to {high})"


def _trained(parts: Found) -> str:
    runs = [run for part in parts.values() for run in part["runs"]]
    seeds = len({run["seed"] for run in runs})
    return f"{seeds} seeds of {runs[0]['steps']:,} steps"


def robotics_together(found: Found) -> Iterator[Row]:
    """One policy of all tasks, told their names."""
    scores = found["test"]
    marks = {
        name: value for name, value in scores.items() if name.startswith("success_rate_") and "interval" not in name
    }
    each = ", ".join(
        f"{name.removeprefix('success_rate_').replace('_', '-')} {100 * value:.0f}" for name, value in marks.items()
    )
    yield (
        f"one policy of these {len(marks)} tasks, told their names",
        f"{_share(scores)} after {_time(found)}: {each}",
        "",
    )


def robotics_chunks(found: Found) -> Iterator[Row]:
    """Success by the size of chunks, ensembled and carried out whole."""
    parts = found["chunks"]
    rates = {
        way: ", ".join(f"{size}: {_spread(part['carried_out'][way])}" for size, part in parts.items())
        for way in ("ensembled", "whole")
    }
    yield (
        f"{found['task']}, success in % by the size of chunks, {_trained(parts)}",
        f"all that speak of a step averaged: {rates['ensembled']}",
        f"one after the other as a whole: {rates['whole']}",
    )


def robotics_heads(found: Found) -> Iterator[Row]:
    parts = found["heads"]
    told = ", ".join(f"{name} {_spread(part)}" for name, part in parts.items())
    yield f"{found['task']}, success in % by head, {_trained(parts)}", told, ""


def robotics_cameras(found: Found) -> Iterator[Row]:
    yield f"{found['task']} from two cameras and the hand's state", f"{_share(found['test'])} after {_time(found)}", ""


def online(found: Found) -> Iterator[Row]:
    """Agents that learn by PPO, seed by seed, and after how many steps the goal was reached in training."""
    for name, programs in found["results"].items():
        told = {}
        for program, seeds in programs.items():
            returns = ", ".join(f"{one['test_return_mean']:.0f}" for one in seeds.values())
            reached = [one["goal_reached_after_steps"] for one in seeds.values()]
            steps = ", ".join("never" if one is None else f"{one:,.0f}" for one in reached)
            seconds = max(one["cpu_seconds"] for one in seeds.values())
            told[program] = f"{returns} (goal after {steps} steps; {seconds:.0f} core-seconds)"
        goal, count = found["goals"][name], found["steps"][name]
        what = f"`ppo`, {name}, {count:,} steps: return of each seed in test, goal {goal:g}"
        peer = told.get("stable-baselines3")
        yield what, told.get("headway", "not run"), f"stable-baselines3 {peer}" if peer else ""
