"""Policies of robots in Meta-World: five tasks from 50 demonstrations each, and what the parts of the method bring.

    python benchmarks/robotics.py collect --data DIR          # 50 demonstrations of each task, of one with pictures
    python benchmarks/robotics.py tasks --data DIR --runs DIR [--minutes M --threads 2]       # a policy for each task
    python benchmarks/robotics.py together --data DIR --runs DIR           # one policy of all, told the task's name
    python benchmarks/robotics.py ablation --data DIR --runs DIR           # chunk size, and how chunks are carried out
    python benchmarks/robotics.py heads --data DIR --runs DIR              # with a latent, and diffusion
    python benchmarks/robotics.py cameras --data DIR --runs DIR             # from pictures and the state of the robot
    python benchmarks/robotics.py cameras reach --data DIR --runs DIR --threads 1     # half an hour
    python benchmarks/robotics.py train reach --data DIR --runs DIR        # one task alone, printed

A run is a folder in --runs that goes on where it was stopped. Success is at any step of 500, over 50 episodes from
seeds that no demonstration and no evaluation during training has. Settings were chosen by the seeds of validation.
What compares (`ablation`, `heads`) trains for --steps with each of --seeds, which play the same 50 episodes.
`seconds` count the whole of a training with its evaluations, on --threads cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from measure import child, report, since_start, write

TASKS = ("reach", "drawer-open", "door-open", "button-press-topdown", "window-open")
DEMONSTRATIONS = 50
CHUNKS = (1, 5, 10, 20, 50)
WAYS = ("ensembled", "newest", "half", "whole")  # what is carried out of a chunk, before another is asked for
HEADS: dict[str, dict[str, Any]] = {
    "no latent": {},
    "latent": {"model.head.latent": 16},
    "diffusion": {"model.head": {"kind": "diffusion"}},
}
CAMERAS = ("corner2", "gripperPOV")  # and 50 demonstrations, for tasks with large objects
CAMERA = {"task.state": 4, "task.size": [96, 96], "task.episodes": 5, "train.batch_size": 32}
FILMED = 600  # demonstrations of reach with pictures
GOAL_CAMERAS = ("corner", "topview")  # which show the small goal of reach
KEYPOINTS = {
    "task.state": 4,
    "task.starts": 15,
    "task.episodes": 10,
    "task.final": 50,
    "model.observation.images": "keypoints",
    "model.state_loss": 10.0,
    "train.batch_size": 32,
    "train.steps": 36_000,
    "train.evaluate_every": 12_000,
}


def environment(task: str) -> str:
    return f"metaworld/{task}-v3"


def data_of(args: argparse.Namespace, task: str) -> Path:
    return Path(args.data) / task


def collect(args: argparse.Namespace) -> None:
    from headway.app.cli.main import main

    filmed, count = (GOAL_CAMERAS, FILMED) if args.name == "reach" else (CAMERAS, DEMONSTRATIONS)
    seen = ["--cameras", *filmed, "--size", "96", "96"]
    wanted = [(task, task, DEMONSTRATIONS, []) for task in TASKS] + [(args.name, f"{args.name}-cameras", count, seen)]
    for task, name, episodes, cameras in wanted:
        if not data_of(args, name).exists():
            words = ["data", "collect", environment(task), "--policy", "expert", "--episodes", str(episodes)]
            assert main([*words, *cameras, "--out", str(data_of(args, name))]) == 0


def train(
    args: argparse.Namespace,
    name: str,
    tasks: tuple[str, ...],
    settings: dict[str, Any],
    minutes: float | None = None,
) -> dict[str, Any]:
    """A run of its name, from where it is, and what it came to; without `minutes` by the steps in its settings."""
    import headway as hw

    folder = Path(args.runs) / name
    seconds = folder.with_suffix(".seconds")  # of the processor, for each part of a run that was stopped
    seconds.parent.mkdir(parents=True, exist_ok=True)
    try:
        run = hw.train(
            "metaworld",
            data=[data_of(args, task) for task in tasks],
            run=folder,
            set=settings,
            minutes=minutes,
            seed=args.seed,
            threads=args.threads,
            resume=True,
            spent=since_start(),
        )
    finally:
        with open(seconds, "a", encoding="utf-8") as file:
            file.write(f"{time.process_time():.1f}\n")
    return {
        "settings": settings,
        "minutes_asked": minutes,
        "threads": run.summary["threads"],
        "parameters": run.summary["parameters"],
        "steps": run.summary["steps"],
        "seconds": run.summary["elapsed"],
        "seconds_training": run.summary["seconds"],
        "core_seconds": sum(map(float, seconds.read_text().split())),
        "validation": run.summary["best"],
        "test": run.summary["scores"],
    }


def whole(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over tasks, and the interval of all their episodes."""
    from headway.metrics import wilson_interval

    scores = [result["test"] for result in results]
    count = sum(score["samples"] for score in scores)
    right = round(sum(score["success_rate"] * score["samples"] for score in scores))
    return {
        "success_rate": statistics.mean(score["success_rate"] for score in scores),
        "success_rate_interval": wilson_interval(right, count),
        "episodes": count,
    }


def spread(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Success and steps over seeds of training, which play the same episodes: median, lowest and highest."""
    told = {}
    for name in ("success_rate", "steps_mean"):
        values = [score[name] for score in scores]
        told[name] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {**told, "episodes": scores[0]["samples"]}


def over_seeds(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What a part comes to with each seed, as the run carries its chunks out and, for sizes of them, in other ways."""
    runs = [{"seed": seed, **run_part(args, name, seed)} for seed in args.seeds]
    ways = runs[0].get("carried_out", ())
    told = {way: spread([run["carried_out"][way] for run in runs]) for way in ways}
    return {**spread([run["test"] for run in runs]), **({"carried_out": told} if told else {}), "runs": runs}


def ablation(args: argparse.Namespace, task: str, chunk: int) -> dict[str, Any]:
    """One chunk size; the same model carries its chunks out in several ways."""
    import headway as hw

    name = f"{task}-chunk-{chunk}-{args.seed}"
    settings = {"model.chunk": chunk, "task.ensemble": None if chunk == 1 else 0.01, "train.steps": args.steps}
    found = train(args, name, (task,), settings)
    model = hw.load(Path(args.runs) / name)
    ways = {}
    for way in WAYS:
        execute = {"half": max(1, chunk // 2), "whole": chunk}.get(way, 1)
        ensemble = 0.01 if way == "ensembled" else None
        scores = model.rollout(episodes=found["test"]["samples"], execute=execute, ensemble=ensemble)
        ways[way] = {key: scores[key] for key in ("success_rate", "success_rate_interval", "steps_mean", "samples")}
    return {**found, "carried_out": ways}


def part(args: argparse.Namespace) -> dict[str, Any]:
    """What runs in a process of its own: TASK, TASK with a chunk size, a head or a camera, or all tasks."""
    kind, _, task = args.name.partition(":")
    if kind == "together":
        return train(args, "together", TASKS, {"task.ensemble": 0.01}, args.minutes)
    if kind == "task":
        return train(args, task, (task,), {}, args.minutes)
    if kind == "cameras":
        settings, minutes = (KEYPOINTS, None) if task == "reach" else (CAMERA, args.minutes)
        return train(args, f"{task}-cameras", (f"{task}-cameras",), settings, minutes)
    task, _, variant = task.partition(":")
    if kind == "chunk":
        return ablation(args, task, int(variant))
    return train(
        args, f"{task}-{variant.replace(' ', '-')}-{args.seed}", (task,), {**HEADS[variant], "train.steps": args.steps}
    )


def run_part(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    words = ["--data", args.data, "--runs", args.runs, "--minutes", str(args.minutes), "--seed", str(seed)]
    return child("robotics.py", "part", name, *words, "--threads", str(args.threads), "--steps", str(args.steps))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "what", choices=("collect", "tasks", "together", "ablation", "heads", "cameras", "train", "part")
    )
    parser.add_argument("name", nargs="?", default="reach", help="a task, for what is tried on one")
    parser.add_argument("--data", required=True, help="folder of the demonstrations")
    parser.add_argument("--runs", default="runs/robotics", help="folder that keeps the runs and lets them go on")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each training (default: 8)")
    parser.add_argument("--steps", type=int, default=2400, help="of each training that is compared (default: 2,400)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235, 1236], help="of what is compared")
    args = parser.parse_args()
    if args.what == "collect":
        collect(args)
    elif args.what == "part":
        report(part(args))
    elif args.what == "train":
        print(run_part(args, f"task:{args.name}", args.seed))
    elif args.what == "tasks":
        results = {task: run_part(args, f"task:{task}", args.seed) for task in TASKS}
        write("robotics", {**whole(list(results.values())), "seed": args.seed, "tasks": results})
    elif args.what == "together":
        write("robotics-together", run_part(args, "together", args.seed))
    elif args.what == "ablation":
        chunks = {chunk: over_seeds(args, f"chunk:{args.name}:{chunk}") for chunk in CHUNKS}
        write("robotics-chunks", {"task": args.name, "chunks": chunks})
    elif args.what == "heads":
        heads = {head: over_seeds(args, f"head:{args.name}:{head}") for head in HEADS}
        write("robotics-heads", {"task": args.name, "heads": heads})
    else:
        write(f"robotics-cameras-{args.name}", {"task": args.name, **run_part(args, f"cameras:{args.name}", args.seed)})


if __name__ == "__main__":
    main()
