"""Addition by reward alone: a small GPT learns sums from examples to about 40 % and then only from rewards.

    python benchmarks/rewards.py [--steps 400] [--methods grpo,dr-grpo,reinforce] [--seed 1] [--name rewards]

The numbers have two or three digits, half of the problems three in both. They are written with three, and the sum with
four from its last one, as carries go (Lee et al. 2023): 058+467=5250. No problem occurs twice.
Examples are learned in stages, each of which starts from the one before, until at least 40 % of a stage's sampled
answers to held-out problems are correct. Each method then starts from that model and gets other problems with the
reward "exact". Seconds are of the processor, with those of the process that computes rewards. Finished methods are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import headway as hw
from headway.app import api
from measure import RESULTS, write

EXAMPLES, PROBLEMS = 30_000, 3000  # learned from, and rewarded or held out
MODEL = {"model.width": 64, "model.depth": 2, "model.heads": 4, "model.context": 32}
SUPERVISED = {"task.codec": "char", "task.context": 32, "train.batch_tokens": 2048, "train.precision": "fp32"}
SUPERVISED |= {"train.evaluate_limit": 100, "optim.lr": 0.02, "schedule.decay": 0.1}
STAGE, MAX_STAGES, TARGET, PROBED = 400, 12, 0.4, 500
REWARD = {"task.reward": "exact", "task.max_new_tokens": 6, "task.prompts": 16, "task.group": 16}
TUNED = {"train.batch_size": 256, "train.evaluate_limit": 200, "optim.lr": 3e-4}


def problems(count: int, seed: int) -> list[tuple[int, int]]:
    """Distinct pairs of numbers."""
    rng, pairs = random.Random(seed), {}
    while len(pairs) < count:
        low = 10 if rng.random() < 0.5 else 100
        pairs[rng.randrange(low, 1000), rng.randrange(low, 1000)] = None
    return list(pairs)


def problem(first: int, second: int) -> tuple[str, str]:
    return f"{first:03}+{second:03}=", f"{first + second:04}"[::-1]


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def processor_seconds() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def train(recipe: str, data: Path, run: Path, start: Path | None, settings: dict[str, Any], seed: int) -> hw.Run:
    return hw.train(recipe, data=data, run=run, start=start, set=settings, seed=seed, samples=0, progress=False)


def supervised(folder: Path, prompts: Path, args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The first stage whose answers are correct often enough, and the share after each stage."""
    pairs = problems(EXAMPLES, 0)
    examples = write_lines(folder / "examples.jsonl", [{"text": "".join(problem(*pair))} for pair in pairs])
    began, start, shares = processor_seconds(), folder, []
    for stage in range(MAX_STAGES):
        settings = {**SUPERVISED, **({} if stage else MODEL), "train.steps": STAGE, "train.evaluate_every": STAGE}
        start = train(
            "text", examples, folder / f"stage-{stage}", start if stage else None, settings, args.seed + stage
        ).directory
        rows = [json.loads(line) for line in prompts.read_text().splitlines()][:PROBED]
        outputs = hw.load(start).generate([row["prompt"] for row in rows], max_new_tokens=6, seed=args.seed)
        shares.append(sum(output == row["answer"] for output, row in zip(outputs, rows)) / PROBED)
        print(f"stage {stage}: {shares[-1]:.1%} after {processor_seconds() - began:.0f} s", flush=True)
        if shares[-1] >= TARGET:
            break
    seconds = round(processor_seconds() - began, 1)
    return start, {"examples": EXAMPLES, "steps_per_stage": STAGE, "pass_at_1": shares, "processor_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--methods", default="grpo,dr-grpo,reinforce")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="rewards")
    parser.add_argument("--work", type=Path, help="keep the runs in this folder")
    args = parser.parse_args()
    path = RESULTS / f"{args.name}.json"
    api.available = lambda: False  # reports take as long as these runs
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"methods": {}}
    folder = args.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    learned = set(problems(EXAMPLES, 0))
    others = [pair for pair in problems(EXAMPLES + PROBLEMS, 1) if pair not in learned][:PROBLEMS]
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in (problem(*pair) for pair in others)]
    prompts = write_lines(folder / "prompts.jsonl", rows)
    if args.work and (folder / "start.json").is_file():
        start, told = json.loads((folder / "start.json").read_text())
    else:
        start, told = supervised(folder, prompts, args)
        (folder / "start.json").write_text(json.dumps([str(start), told]))
    result |= {"seed": args.seed, "supervised": told}
    for method in args.methods.split(","):
        if method in result["methods"]:
            continue
        began = processor_seconds()
        settings = {**REWARD, **TUNED, "task.method": method, "train.steps": args.steps}
        run = train("reward", prompts, folder / method, Path(start), settings, args.seed)
        curve = [
            {name: line[name] for name in ("step", "pass_at_1", "pass_at_4", "answer_tokens", "equal_rewards_rate")}
            for line in run.metrics
            if line.get("split") == "validation"
        ]
        difference = max(line.get("sampler_difference", 0.0) for line in run.metrics)
        result["methods"][method] = {
            "processor_seconds": round(processor_seconds() - began, 1),
            "seconds": run.summary["elapsed"],
            "answers": run.summary["tokens"],
            "sampler_difference": difference,
            "validation": curve,
            "test": run.summary["scores"],
        }
        print(method, result["methods"][method]["test"], flush=True)
        write(args.name, result)


if __name__ == "__main__":
    main()
