"""Characters of Shakespeare at nanoGPT's size for a CPU: loss against time, beside transformers' GPT-2 of that size.

    python benchmarks/shakespeare.py            # all of it, about 15 minutes on 2 cores
    python benchmarks/shakespeare.py headway --steps 290   # one part

Loss is that of the whole validation split in consecutive windows of 64. Times run from the start of the process and
leave evaluation out. The peer trains with AdamW on nanoGPT's schedule for that size: batches of 12, learning rate
1e-3 to 1e-4 by cosine after 100 steps of warm-up, betas 0.9 and 0.99, weight decay 0.1, clipping at 1, 2,000 steps.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, data_folder, report, since_start, spread, timeline, write

TARGET, CONTEXT = 1.88, 64


def headway(steps: int, batch: int, seed: int, curve: int) -> dict[str, Any]:
    """Train the recipe for a number of steps; with `curve`, evaluate so many times on the way."""
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "train.steps": steps,
            "train.batch_tokens": batch,
            "train.evaluate_every": max(1, steps // curve),
        }
        spent = since_start()
        run = hw.train("shakespeare", set=settings, run=Path(folder) / "run", seed=seed, samples=1, spent=spent)
        before, points = timeline(run)
    return {
        "steps": steps,
        "batch_tokens": batch,
        "seed": seed,
        "precision": run.summary["precision_reason"],
        "seconds_before_training": round(before, 2),
        "curve": [[round(before + point["seconds"], 2), round(point["loss"], 4)] for point in points],
    }


def transformers(steps: int, evaluations: int, seed: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    text = (data_folder() / "lm" / "tinyshakespeare.txt").read_text()
    symbols = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([symbols[c] for c in text])
    train, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    config = GPT2Config(
        vocab_size=len(symbols),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    random = np.random.default_rng(seed)
    offsets, excluded, curve = torch.arange(CONTEXT), 0.0, []
    windows = held[: (len(held) - 1) // CONTEXT * CONTEXT + 1]
    for step in range(1, steps + 1):
        share = (step - 100) / (steps - 100)
        rate = 1e-3 * step / 100 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.from_numpy(random.integers(0, len(train) - CONTEXT - 1, 12))
        x, y = (train[starts[:, None] + offsets + shift] for shift in (0, 1))
        logits = model(x).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % (steps // evaluations) == 0:
            begun = time.time()
            total = 0.0
            with torch.no_grad():
                rows, labels = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
                for part, wanted in zip(rows.split(256), labels.split(256)):
                    scores = model(part).logits.flatten(0, 1)
                    total += torch.nn.functional.cross_entropy(scores, wanted.flatten(), reduction="sum").item()
            excluded += time.time() - begun
            curve.append([round(since_start() - excluded, 2), round(total / labels.numel(), 4)])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seed": seed,
        "curve": curve,
    }


def first_below(curve: list[list[float]], loss: float) -> float | None:
    return next((seconds for seconds, value in curve if value <= loss), None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["headway", "transformers"])
    parser.add_argument("--steps", type=int, default=290)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--curve", type=int, default=1)
    parser.add_argument("--quick", type=int, default=290, help="steps of the run that is to reach the target")
    parser.add_argument("--long", type=int, default=1350, help="steps of the run of a minute")
    args = parser.parse_args()
    if args.part == "headway":
        report(headway(args.steps, args.batch, args.seed, args.curve))
    elif args.part == "transformers":
        report(transformers(args.steps, args.curve, args.seed))
    else:
        quick = [child("shakespeare.py", "headway", "--steps", str(args.quick), "--seed", str(s)) for s in (1, 2, 3)]
        minute = [
            child("shakespeare.py", "headway", "--steps", str(args.long), "--seed", str(s), "--curve", "10")
            for s in (1, 2, 3)
        ]
        peer = child("shakespeare.py", "transformers", "--steps", "2000", "--curve", "10")
        reached = first_below(peer["curve"], TARGET)
        times = spread([run["curve"][-1][0] for run in quick])
        write(
            "shakespeare",
            {
                "what": f"seconds from the start of the process to validation loss {TARGET}, evaluation left out",
                "quick": {"seconds": times, "loss": spread([run["curve"][-1][1] for run in quick]), "runs": quick},
                "minute": {
                    "seconds": spread([run["curve"][-1][0] for run in minute]),
                    "loss": spread([run["curve"][-1][1] for run in minute]),
                    "runs": minute,
                },
                "transformers": {"seconds_to_target": reached, "last": peer["curve"][-1], **peer},
                "times_faster": None if reached is None else reached / times["median"],
            },
        )


if __name__ == "__main__":
    main()
