"""transformers' Trainer on sets of benchmarks/scores.py: BERT and ViT from scratch, in the minutes of headway's run.

Texts have the tokens of headway's run, and images its pixels. Each learning rate has all minutes; the best one by the
validation split is scored on the test split. The model has the width and the layers of headway's run.
"""

from __future__ import annotations

import time
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

RATES = (3e-4, 1e-3, 3e-3)
BATCH, TIMED, EVALUATIONS = 32, 30, 5
Result = dict[str, Any]


def collated(splits: dict[str, Any], items: list[tuple[str, int]]) -> dict[str, Any]:
    """Samples of one split as a batch of transformers."""
    batch = splits[items[0][0]].take(np.array([index for _, index in items]))
    if hasattr(batch.inputs, "tokens"):
        tokens = batch.inputs.tokens
        found = {"input_ids": tokens.ids.long(), "attention_mask": batch.inputs.layout.mask.long()}
        segments = {} if tokens.types is None else {"token_type_ids": tokens.types.long()}
        return {**found, **segments, "labels": batch.targets}
    return {"pixel_values": batch.inputs[0], "labels": batch.targets}


def built(task: Any, width: int, layers: int, heads: int) -> Any:
    """A model from scratch."""
    from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

    examples = task.examples
    shared: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_labels": len(examples.labels),
    }
    if hasattr(examples, "codec"):
        longest = int(examples.rows.lengths.max())
        return BertForSequenceClassification(
            BertConfig(vocab_size=examples.codec.vocab_size, max_position_embeddings=longest, **shared)
        )
    pixels = examples.of("train").take(np.arange(1)).inputs[0]
    size = pixels.shape[-1]
    patch = max(side for side in (2, 4, 8, 16) if size % side == 0 and size // side >= 4)
    return ViTForImageClassification(
        ViTConfig(image_size=size, patch_size=patch, num_channels=pixels.shape[1], **shared)
    )


def steps_of(task: Any, items: list[tuple[str, int]], minutes: float, shape: tuple[int, int, int]) -> int:
    """The steps that fit in nine tenths of the minutes; the rest is for evaluations."""
    import torch

    model, order = built(task, *shape).train(), np.random.default_rng(0)
    optimizer, splits, started = torch.optim.AdamW(model.parameters()), {"train": task.examples.of("train")}, 0.0
    for step in range(TIMED):
        if step == 1:
            started = time.process_time()
        model(**collated(splits, [items[row] for row in order.choice(len(items), BATCH)])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return int(0.9 * 60 * minutes * (TIMED - 1) / (time.process_time() - started))


def trained(task: Any, minutes: float, rate: float, shape: tuple[int, int, int]) -> Result:
    """The accuracies of a learning rate whose best checkpoint was chosen by the validation split."""
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(1)
    splits = {split: task.examples.of(split) for split in ("train", "validation", "test")}
    items = {split: [(split, index) for index in range(len(samples))] for split, samples in splits.items()}
    steps, started = steps_of(task, items["train"], minutes, shape), time.process_time()
    interval = max(1, steps // EVALUATIONS)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            learning_rate=rate,
            warmup_steps=steps // 20,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=128,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=interval,
            save_steps=interval,
            metric_for_best_model="accuracy",
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        given: dict[str, Any] = {"train_dataset": items["train"], "eval_dataset": items["validation"]}
        run = Trainer(
            built(task, *shape),
            arguments,
            data_collator=partial(collated, splits),
            compute_metrics=lambda found: {
                "accuracy": float((np.asarray(found.predictions).argmax(1) == found.label_ids).mean())
            },
            **given,
        )
        run.train()
        # Trainer leaves the names of ViT's layers in a checkpoint unconverted, so it would keep their last weights.
        run.model = run.model.from_pretrained(run.state.best_model_checkpoint)
        test: Any = items["test"]
        accuracies = [run.evaluate()["eval_accuracy"], run.evaluate(test)["eval_accuracy"]]
    return {
        "rate": rate,
        "validation": accuracies[0],
        "test": accuracies[1],
        "steps": steps,
        "core_seconds": round(time.process_time() - started, 1),
    }


def peer(task: Any, minutes: float, shape: tuple[int, int, int]) -> Result:
    """The best of three learning rates by the validation split."""
    tried = [trained(task, minutes, rate, shape) for rate in RATES]
    best = max(tried, key=lambda row: row["validation"])
    return {"score": best["test"], "chosen": best["rate"], "shape": shape, "tried": tried}
