"""Rows of agents: chess, and episodes in environments."""

from __future__ import annotations

from collections.abc import Iterator

from rows.cells import Result, Row, millions, percent


def chess(result: Result) -> Iterator[Row]:
    what = f"chess, {millions(result['run'])}"
    searches = ("policy only", "one move ahead", "tree of 200 nodes")
    for search, part in zip(searches, result["puzzles"].values(), strict=True):
        yield (
            f"{what}: Lichess puzzles solved, {search}",
            f"{percent(part['puzzle_accuracy'])} of {part['samples']:,}",
            "",
        )
    opponents = (
        ("random", "random moves"),
        ("elo", "Stockfish at UCI_Elo 1320"),
        ("elo-1500", "Stockfish at UCI_Elo 1500"),
    )
    for kind, opponent in opponents:
        match = result[kind]["matches"][0]
        games = f"{match['wins']} won, {match['draws']} drawn, {match['losses']} lost"
        yield (
            f"{what}: {match['games']} games, 0.1 s per move, points",
            f"{percent(match['score'])} ({games})",
            opponent,
        )


def trajectories(result: Result) -> Iterator[Row]:
    """The return for the first target, over seeds."""

    def spread(kind: str) -> str:
        values = result[f"{kind}_return"]
        return f"{values['median']:,.0f} ({values['low']:,.0f} to {values['high']:,.0f})"

    data = result["data"]
    cloning = f"behaviour cloning: {spread('cloning')}; " if "cloning" in result else ""
    yield (
        f"{result['environment']}, Decision Transformer, {len(result['conditioned'])} seeds: mean return",
        spread("conditioned"),
        f"{cloning}{data['episodes']:,} recorded episodes: {data['return_mean']:,.0f}",
    )


def robotics(result: Result) -> Iterator[Row]:
    """Success on average over the tasks, and per task."""
    tasks = result["tasks"]
    low, high = (percent(edge) for edge in result["success_rate_interval"])
    longest = max(part["seconds"] for part in tasks.values())
    what = f"Meta-World, 50 demonstrations per task, policy per task of {millions(next(iter(tasks.values())))}: success"
    reached = f"{percent(result['success_rate'])} ({low} to {high}); {longest / 60:.1f} core-minutes per task or less"
    yield f"{what}, mean of {len(tasks)} tasks", reached, ""
    each = ", ".join(f"{task} {percent(part['test']['success_rate'], 0)}" for task, part in tasks.items())
    yield f"{what}, per task", each, ""


def _share(scores: Result) -> str:
    low, high = (percent(edge, 0) for edge in scores["success_rate_interval"])
    return f"{percent(scores['success_rate'], 0)} ({low} to {high})"


def _time(part: Result) -> str:
    return f"{part['seconds'] / 60:.0f} {'core-minutes' if part['threads'] == 1 else 'min on 2 cores'}"


def _spread(scores: Result) -> str:
    """Over seeds, in %: one number if all seeds have the same."""
    median, low, high = (round(100 * scores["success_rate"][name]) for name in ("median", "low", "high"))
    return f"{median}%" if low == high else f"{median}% ({low} to {high})"


def _trained(parts: Result) -> str:
    runs = [run for part in parts.values() for run in part["runs"]]
    seeds = len({run["seed"] for run in runs})
    return f"{seeds} seeds of {runs[0]['steps']:,} steps"


def robotics_together(result: Result) -> Iterator[Row]:
    """One policy for all tasks, with the task's name as an input."""
    scores = result["test"]
    rates = {
        name: value for name, value in scores.items() if name.startswith("success_rate_") and "interval" not in name
    }
    each = ", ".join(
        f"{name.removeprefix('success_rate_').replace('_', '-')} {percent(value, 0)}" for name, value in rates.items()
    )
    what = f"Meta-World, one policy for these {len(rates)} tasks, task name as input: success"
    yield f"{what}, mean", f"{_share(scores)}; {_time(result)}", ""
    yield f"{what}, per task", each, ""


def robotics_chunks(result: Result) -> Iterator[Row]:
    """Success by the size of chunks, with overlapping predictions averaged and with chunks executed one by one."""
    parts = result["chunks"]
    for size, part in parts.items():
        rates = {way: _spread(part["carried_out"][way]) for way in ("ensembled", "whole")}
        yield (
            f"{result['task']}, chunks of {size}, {_trained(parts)}: success, overlapping chunks averaged",
            rates["ensembled"],
            f"one chunk after another: {rates['whole']}",
        )


def robotics_heads(result: Result) -> Iterator[Row]:
    parts = result["heads"]
    rates = ", ".join(f"{name} {_spread(part)}" for name, part in parts.items())
    yield f"{result['task']}, by head, {_trained(parts)}: success", rates, ""


def robotics_cameras(result: Result) -> Iterator[Row]:
    what = f"{result['task']} from two cameras and the state of the hand: success"
    spent = result.get("core_seconds")  # the machine had other work
    yield what, f"{_share(result['test'])}; {f'{spent / 60:.0f} core-minutes' if spent else _time(result)}", ""


def online(result: Result) -> Iterator[Row]:
    """Agents that learn by PPO, seed by seed, and after how many steps they reached the goal in training."""
    for name, programs in result["results"].items():
        goal, count = result["goals"][name], result["steps"][name]
        what = f"`ppo`, {name}, {count:,} steps"
        figures = {program: _ppo(list(seeds.values())) for program, seeds in programs.items()}
        ours, peer = figures["headway"], figures.get("stable-baselines3")
        titles = (f"test return per seed (goal {goal:g})", "steps until the goal", "longest time of a seed")
        for index, title in enumerate(titles):
            yield f"{what}: {title}", ours[index], f"stable-baselines3: {peer[index]}" if peer else ""


def _ppo(seeds: list[Result]) -> tuple[str, str, str]:
    returns = ", ".join(f"{one['test_return_mean']:.0f}" for one in seeds)
    reached = [one["goal_reached_after_steps"] for one in seeds]
    steps = ", ".join("not reached" if one is None else f"{one:,.0f}" for one in reached)
    return returns, steps, f"{max(one['cpu_seconds'] for one in seeds):.0f} core-seconds"
