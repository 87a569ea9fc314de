"""What small GPTs learn by reward alone, after they have learned a little from examples: sums, and mate in one.

    python benchmarks/rewards.py sums  [--steps 2500] [--methods grpo,dr-grpo,reinforce] [--seed 1] [--name rewards]
    python benchmarks/rewards.py mates [--methods grpo]       # needs the extra chess

Sums: the numbers have two or three digits, half of the problems three in both. They are written with three, and the sum
with four from its last one, as carries go (Lee et al. 2023): 058+467=5250. No problem occurs twice. Examples are
learned by the cross-entropy of the sum, until sampled answers to held-out problems are correct with a probability of
40 %. Each method then starts from that model and gets other problems with the reward "exact".

Mates: the model learns to write legal moves from random positions of seven pieces without a mate in one, each with
random moves. The reward is "checkmate", in other positions that have a mate in one (mates.py).

Seconds are of the processor, with those of the process that computes rewards. Finished methods are not repeated, and
an interrupted one continues with --work; its seconds are then those of the last process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

import headway as hw
from headway.app import api
from headway.codecs import TokenizerCodec, train_codec
from headway.config import override
from headway.data import IGNORE_INDEX
from headway.formats.native import save_model
from headway.layout import Layout
from headway.nn.models import build
from headway.nn.models.presets import preset
from measure import RESULTS, write

SUMS, PROBLEMS = 30_000, 20_000  # sums to learn from, and rewarded or held out
MOVES, POSITIONS = 450_000, 20_000  # moves to learn from, and rewarded positions that have a mate in one
HELD_OUT = {"validation": 500, "test": 2000}  # further positions with a mate in one
LR, TARGET, PROBED = 3e-3, 0.4, 500
COMMON = {"task.max_new_tokens": 6, "task.prompts": 32, "task.group": 8, "train.batch_size": 256}
TUNED = {"train.evaluate_limit": 200, "optim.lr": 3e-4}


class Case(NamedTuple):
    """`examples` of prompts and answers to learn from first, in `steps` of `batch` or until held-out answers, which are
    `probed` each `check` steps, are as probable as TARGET; then `prompts` with a reward.
    """

    codec: TokenizerCodec
    model: dict[str, Any]
    examples: Sequence[tuple[str, str]]
    probed: Sequence[tuple[str, str]]
    steps: int
    check: int
    batch: int
    decay: bool  # of the learning rate, to zero over the second half
    prompts: Path
    settings: dict[str, Any]


def problems(count: int, seed: int) -> list[tuple[int, int]]:
    """Distinct pairs of numbers."""
    rng, pairs = random.Random(seed), {}
    while len(pairs) < count:
        low = 10 if rng.random() < 0.5 else 100
        pairs[rng.randrange(low, 1000), rng.randrange(low, 1000)] = None
    return list(pairs)


def problem(first: int, second: int) -> tuple[str, str]:
    return f"{first:03}+{second:03}=", f"{first + second:04}"[::-1]


def sums(folder: Path) -> Case:
    learned = problems(SUMS, 0)
    known = set(learned)
    others = [problem(*pair) for pair in problems(SUMS + PROBLEMS, 1) if pair not in known][:PROBLEMS]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in others))
    model = {"width": 64, "depth": 2, "heads": 4, "context": 16, "dropout": 0.0}
    examples = [problem(*pair) for pair in learned]
    settings = {**COMMON, **TUNED, "task.reward": "exact"}
    return Case(
        train_codec("char", iter(["0123456789+="])),
        model,
        examples,
        others[:PROBED],
        4000,
        5,
        256,
        False,
        path,
        settings,
    )


def mates(folder: Path) -> Case:
    from mates import VOCABULARY, positions, write_prompts

    found = positions(MOVES + PROBED, POSITIONS + sum(HELD_OUT.values()), 0)
    rows = iter(found.mates)
    parts = {split: list(islice(rows, count)) for split, count in {**HELD_OUT, "train": POSITIONS}.items()}
    path = write_prompts(folder / "prompts", parts)
    model = {"width": 128, "depth": 4, "heads": 4, "context": 24, "dropout": 0.0}
    settings = {**COMMON, **TUNED, "task.reward": "checkmate", "task.prompts": 16, "task.group": 16}
    codec = train_codec("word", iter([VOCABULARY]), split="space")
    return Case(codec, model, found.moves[PROBED:], found.moves[:PROBED], 5000, 100, 128, True, path, settings)


CASES = {"sums": sums, "mates": mates}


def processor_seconds() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def supervised(folder: Path, case: Case, seed: int) -> dict[str, Any]:
    """Write a model that has learned from the examples; how it got there."""
    codec = case.codec
    first = len(codec.encode(case.examples[0][0]))

    def encoded(pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        rows = [[codec.bos_id, *codec.encode(prompt), *codec.encode(answer), codec.eos_id] for prompt, answer in pairs]
        width = max(map(len, rows))
        return torch.tensor([row + [IGNORE_INDEX] * (width - len(row)) for row in rows])

    tokens, probed = encoded(case.examples), encoded(case.probed)
    config = override(preset("gpt2"), {**case.model, "vocab_size": codec.vocab_size})
    model, head = build(config, seed), "heads.vocabulary"
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    began, shares = processor_seconds(), []

    def scored(batch: torch.Tensor) -> tuple[Any, torch.Tensor]:
        labels = batch[:, 1:].clone()
        labels[:, :first] = IGNORE_INDEX
        return model(batch[:, :-1].clamp(min=0), Layout.full(len(batch), batch.shape[1] - 1)).x, labels

    for step in range(case.steps):
        chosen = torch.randint(len(tokens), (case.batch,), generator=generator)
        loss: Any = model.get_submodule(head).loss(*scored(tokens[chosen]))  # type: ignore[operator]
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        decay = min(1.0, 2 * (1 - step / case.steps)) if case.decay else 1.0
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 50) * decay
        optimizer.step()
        if (step + 1) % case.check == 0:
            with torch.no_grad():
                log_probs = model.get_submodule(head).log_probabilities(*scored(probed))  # type: ignore[operator]
            shares.append(round(float(log_probs.sum(1).exp().mean()), 4))
            print(f"step {step + 1}: {shares[-1]:.1%}, loss {float(loss.total.detach()) / loss.count:.3f}", flush=True)
            if shares[-1] >= TARGET:
                break
    save_model(model, config, folder / "start")
    codec.save(folder / "start")
    seconds = round(processor_seconds() - began, 1)
    return {
        "examples": len(case.examples),
        "batch": case.batch,
        "steps_per_share": case.check,
        "pass_at_1": shares,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--methods", default="grpo,dr-grpo,reinforce")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", help="of the results (rewards, rewards-mates)")
    parser.add_argument("--work", type=Path, help="keep the runs in this folder")
    args = parser.parse_args()
    name = args.name or {"sums": "rewards"}.get(args.case, f"rewards-{args.case}")
    path = RESULTS / f"{name}.json"
    api.available = lambda: False  # reports take as long as these runs
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"methods": {}}
    folder = args.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    case = CASES[args.case](folder)
    if (folder / "start.json").is_file():
        told = json.loads((folder / "start.json").read_text())
    else:
        told = supervised(folder, case, args.seed)
        (folder / "start.json").write_text(json.dumps(told))
    result |= {"seed": args.seed, "supervised": told}
    for method in args.methods.split(","):
        if method in result["methods"]:
            continue
        began = processor_seconds()
        settings = {**case.settings, "task.method": method, "train.steps": args.steps}
        fixed: dict[str, Any] = {"seed": args.seed, "samples": 0, "resume": True}
        run = hw.train("reward", data=case.prompts, set=settings, run=folder / method, start=folder / "start", **fixed)
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
        write(name, result)


if __name__ == "__main__":
    main()
