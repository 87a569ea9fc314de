"""Multi30k, English to German: speed of training and translating, time to a BLEU score, and the best score in an hour.

    python benchmarks/translation.py speed      # about 8 minutes on 2 cores
    python benchmarks/translation.py score      # an hour

`speed` trains JoeyNMT's small size (4+4 layers, width 128, F 256, 8,000 symbols) for 600 steps and translates the
test split greedily. JoeyNMT 2.3's figures (1,230 target tokens a second, validation BLEU 10.7 after 890 s, 13
sentences a second) were measured on a 2-core machine with AVX2; it does not install beside a current torch, so it is
not in the run. `score` trains the recipe and translates with a beam of 5; `core_seconds` are those of all threads, so
that a run of one thread (OMP_NUM_THREADS=1) compares with 2 cores for an hour. Nothing is chosen by the test split.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import child, report, since_start, spread, timeline, write


def train(recipe: str, seed: int, settings: dict[str, Any], minutes: float | None, keep: str | None) -> dict[str, Any]:
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        place = Path(keep) if keep else Path(folder) / "run"
        run = hw.train(recipe, set=settings, run=place, seed=seed, minutes=minutes, resume=True, spent=since_start())
        before, evaluations = timeline(run)
        model = hw.load(place)
        found = {
            "seed": seed,
            "parameters": run.summary["parameters"],
            "precision": run.summary["precision_reason"],
            "steps": run.summary["steps"],
            "seconds_before_training": round(before, 2),
            "seconds_training": run.summary["seconds"],
            "threads": run.summary["threads"],
            "core_seconds": round(time.process_time(), 1),
            "target_tokens_a_second": round(run.summary["tokens"] / run.summary["seconds"]),
            "curve": [
                {"seconds": round(before + e["seconds"], 1), "bleu": e["bleu"], "loss": e["loss"]} for e in evaluations
            ],
            "test": {k: v for k, v in run.summary["scores"].items() if not k.endswith("samples")},
            "greedy_sentences_a_second": sentences_a_second(model),
        }
    return found


def sentences_a_second(model: Any) -> float:
    """The 1,000 sentences of test_2016, text in and text out, greedy; the best of three."""
    lines = test_sources()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model.translate(lines, beam=1)
        times.append(time.perf_counter() - start)
    return round(len(lines) / min(times), 1)


def test_sources() -> list[str]:
    import gzip

    from measure import data_folder

    path = data_folder() / "translation" / "multi30k-test_2016_flickr.en.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["speed", "score", "train"])
    parser.add_argument("--recipe", default="multi30k-en-de-small")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--every", type=int)
    parser.add_argument("--run", help="directory that keeps the run and lets it go on")
    args = parser.parse_args()
    if args.part == "train":
        settings = {"train.steps": args.steps, "train.evaluate_every": args.every}
        chosen = {key: value for key, value in settings.items() if value}
        report(train(args.recipe, args.seed, chosen, args.minutes, args.run))
        return
    if args.part == "speed":
        runs = [
            child("translation.py", "train", "--steps", "600", "--every", "100", "--seed", str(seed))
            for seed in (1, 2, 3)
        ]
        rates = spread([run["target_tokens_a_second"] for run in runs])
        sentences = spread([run["greedy_sentences_a_second"] for run in runs])
        reached = [next((p["seconds"] for p in run["curve"] if p["bleu"] >= 10.7), None) for run in runs]
        result = {
            "target_tokens_a_second": rates,
            "seconds_to_bleu_10.7": reached,
            "greedy_sentences_a_second": sentences,
            "runs": runs,
        }
        write("translation-speed", result)
    else:
        keep = ["--run", args.run] if args.run else []
        write("translation-score", child("translation.py", "train", "--recipe", "multi30k-en-de", *keep))


if __name__ == "__main__":
    main()
