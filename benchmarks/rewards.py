"""Addition by reward alone: a small GPT learns sums from examples to about 40 % and then only from rewards.

    python benchmarks/rewards.py [--steps 2500] [--methods grpo,dr-grpo,reinforce] [--seed 1] [--name rewards]

The numbers have two or three digits, half of the problems three in both. They are written with three, and the sum with
four from its last one, as carries go (Lee et al. 2023): 058+467=5250. No problem occurs twice. Examples are learned by
the cross-entropy of the sum, until sampled answers to held-out problems are correct with a probability of 40 %. Each
method then starts from that model and gets other problems with the reward "exact". Seconds are of the processor, with
those of the process that computes rewards. Finished methods are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

import headway as hw
from headway.app import api
from headway.codecs import train_codec
from headway.config import override
from headway.data import IGNORE_INDEX
from headway.formats.native import save_model
from headway.layout import Layout
from headway.nn.models import build
from headway.nn.models.presets import preset
from measure import RESULTS, write

EXAMPLES, PROBLEMS = 30_000, 20_000  # learned from, and rewarded or held out
MODEL = {"width": 64, "depth": 2, "heads": 4, "context": 16, "dropout": 0.0}
BATCH, LR, MAX_STEPS, CHECK, TARGET, PROBED = 256, 3e-3, 4000, 5, 0.4, 500
REWARD = {"task.reward": "exact", "task.max_new_tokens": 6, "task.prompts": 32, "task.group": 8}
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


def supervised(folder: Path, prompts: list[dict[str, str]], seed: int) -> dict[str, Any]:
    """Write a model that answers correctly with the target probability; how it got there."""
    codec = train_codec("char", iter(["0123456789+="]))
    rows = [[codec.bos_id, *codec.encode("".join(problem(*pair))), codec.eos_id] for pair in problems(EXAMPLES, 0)]
    held_out = [[codec.bos_id, *codec.encode(row["prompt"] + row["answer"]), codec.eos_id] for row in prompts[:PROBED]]
    tokens, probed = torch.tensor(rows), torch.tensor(held_out)
    config = override(preset("gpt2"), {**MODEL, "vocab_size": codec.vocab_size})
    model, head = build(config, seed), "heads.vocabulary"
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    first, generator = len(codec.encode(prompts[0]["prompt"])), torch.Generator().manual_seed(seed)
    began, shares = processor_seconds(), []

    def scored(batch: torch.Tensor) -> tuple[Any, torch.Tensor]:
        labels = batch[:, 1:].clone()
        labels[:, :first] = IGNORE_INDEX
        return model(batch[:, :-1], Layout.full(len(batch), batch.shape[1] - 1)).x, labels

    for step in range(MAX_STEPS):
        chosen = torch.randint(len(tokens), (BATCH,), generator=generator)
        loss: Any = model.get_submodule(head).loss(*scored(tokens[chosen]))  # type: ignore[operator]
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 50)
        optimizer.step()
        if (step + 1) % CHECK == 0:
            with torch.no_grad():
                log_probs = model.get_submodule(head).log_probabilities(*scored(probed))  # type: ignore[operator]
            shares.append(round(float(log_probs.sum(1).exp().mean()), 4))
            print(f"step {step + 1}: {shares[-1]:.1%}, loss {float(loss.total.detach()) / loss.count:.3f}", flush=True)
            if shares[-1] >= TARGET:
                break
    save_model(model, config, folder / "start")
    codec.save(folder / "start")
    seconds = round(processor_seconds() - began, 1)
    return {"examples": EXAMPLES, "batch": BATCH, "steps_per_share": CHECK, "pass_at_1": shares, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
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
        told = json.loads((folder / "start.json").read_text())
    else:
        told = supervised(folder, rows, args.seed)
        (folder / "start.json").write_text(json.dumps(told))
    result |= {"seed": args.seed, "supervised": told}
    for method in args.methods.split(","):
        if method in result["methods"]:
            continue
        began = processor_seconds()
        settings = {**REWARD, **TUNED, "task.method": method, "train.steps": args.steps}
        fixed: dict[str, Any] = {"seed": args.seed, "samples": 0, "progress": False}
        run = hw.train("reward", data=prompts, set=settings, run=folder / method, start=folder / "start", **fixed)
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
