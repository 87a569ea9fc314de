"""GGUF between headway and llama.cpp: each reads what the other writes, in every number format.

    python benchmarks/llama_reads.py                       # with llama-cpp-python in this environment
    python benchmarks/llama_reads.py --python PYTHON       # or in another one
    python benchmarks/llama_reads.py gemma "llama, mixtral"  # some of the models, or of the tokenizers
    python benchmarks/llama_reads.py --folders DIR         # also the tokenizers in the folders of DIR

Models are stories260K and one of each architecture, drawn by transformers, with 256 features. headway writes each in
its formats, and llama.cpp its own from the file in F32; importances of columns, which its formats of 1 to 3 bits need,
are drawn. Models in neither ALL_FORMATS nor OUR_FORMATS are written in F32 and Q4_K_M only. Results are kept by model.

llama.cpp also decodes each file to F32. "tensors" counts those whose bits are other than headway's. "logits" is the
largest difference between llama.cpp's logits of the decoded file and headway's of the file, divided by the largest
logit: only the mathematics of the architecture is compared. "rounded" is the same with llama.cpp's logits of the file
itself, for which it also rounds activations; "greedy" are positions with the same likeliest token. "formats" counts
tensors for which llama.cpp chooses another number format in a mixture of the same name.

Tokenizers (that of stories260K, and those of --folders as in tokenizers_proof.py) are written to GGUF, where headway
and llama.cpp read them. Of 2,000 lines of tokenizers_proof.py, those are counted that have other ids then: "read
back" by headway, and "read" by llama.cpp. Where llama.cpp differs from the tokenizer's own library for a known reason,
"unexplained" counts the lines to which the reason does not apply.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from headway.codecs import TokenizerCodec, load_codec
from headway.errors import UserError
from headway.formats.gguf import GgufFile, load_gguf, load_gguf_codec, save_gguf
from headway.formats.gguf.mixtures import Precision
from headway.formats.open import OpenedModel, open_model
from headway.nn.models import build
from headway.nn.models.presets import decoder
from measure import RESULTS, ROOT, data_folder, write
from tokenizers_proof import drawn_lines

sys.path.append(str(ROOT / "tests" / "unit"))
ALL_FORMATS = ("stories260K", "llama", "llama, mixtral")
OUR_FORMATS = (*ALL_FORMATS, "qwen2", "gemma", "phi3")
THEIRS = """
    F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K
    IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4_MOE
    NVFP4 Q1_0 Q2_0
""".split()  # noqa: SIM905
OURS: tuple[Precision, ...] = get_args(Precision)
FEW: tuple[Precision, ...] = ("F32", "Q4_K_M")
TOKENS = 20
CONTEXT = 64  # for which both use the long factors of Phi-3
WIDTH = 256  # a block of a K-quant
WIDE = {
    "hidden_size": WIDTH, "n_embd": WIDTH, "intermediate_size": 2 * WIDTH, "n_inner": 2 * WIDTH,
    "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH, "head_dim": 64,
    "query_pre_attn_scalar": 64,
}  # fmt: skip
# Why llama.cpp has other ids than the library of a tokenizer, and which lines that concerns, by tokenizer.ggml.pre.
REASONS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "qwen2": ("llama.cpp does not compose to NFC", lambda line: not unicodedata.is_normalized("NFC", line)),
    "gpt-4o": (
        "llama.cpp's pattern has no combining marks in words",
        lambda line: any(unicodedata.category(letter).startswith("M") for letter in line),
    ),
    "": ("llama.cpp makes </s>, which is text in Gemma, a control token", lambda line: "</s>" in line),
}


def cases(folder: Path) -> dict[str, Callable[[], OpenedModel]]:
    """How the models are made: each is opened by headway, as `OpenedModel`."""
    from test_gguf_architectures import CASES, original

    def random(name: str) -> OpenedModel:
        settings = CASES[name][1]
        changes: dict[str, Any] = {key: value for key, value in WIDE.items() if key in settings}
        if "long" in name:  # llama.cpp warns that it disables the window of Phi-3
            changes |= {"rope_parameters": factors_of(settings), "sliding_window": None}
        original(name, **changes).save_pretrained(folder / name)
        return open_model(folder / name)

    def stories() -> OpenedModel:
        return open_model(data_folder() / "weights/stories260K.bin")

    return {"stories260K": stories, **{name: lambda name=name: random(name) for name in CASES}}


def factors_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Long and short factors for heads of 64 features, half of which are rotary."""
    rope = settings["rope_parameters"]
    return rope | {key: rope[key] * 8 for key in ("short_factor", "long_factor")}


def decoded(path: Path) -> Path:
    return path.with_suffix(".decoded.gguf")


def run_worker(python: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What llama.cpp says of a job; its death is a failure of all that it has not done."""
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, str(Path(__file__).parent / "llama_worker.py"), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"version": "", "failures": {}, "died": f"{done.returncode}: {done.stderr[-300:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def compared(path: Path, prompt: list[int]) -> dict[str, Any]:
    """What headway reads from a file, next to what llama.cpp does."""
    ours, theirs = GgufFile(path), GgufFile(decoded(path))
    names = set(ours.names())
    found = [[file.get(name).float().flatten() for file in (ours, theirs)] for name in names & set(theirs.names())]
    tensors = sum(not torch.equal(*pair) for pair in found)
    with torch.no_grad():
        model: Any = load_gguf(path, context=CONTEXT).model
        logits = model.logits(torch.tensor([prompt]))[0].numpy()
    exact, rounded = (np.load(f"{each}.npy") for each in (decoded(path), path))
    largest = float(np.abs(logits).max())
    return {
        "tensors": tensors + len(set(theirs.names()) ^ names),
        "logits": float(np.abs(exact - logits).max()) / largest,
        "rounded": float(np.abs(rounded - logits).max()) / largest,
        "greedy": int((rounded.argmax(-1) == logits.argmax(-1)).sum()),
    }


def check_tokenizer(codec: TokenizerCodec, lines: list[str], folder: Path, python: str) -> dict[str, Any]:
    """Lines whose ids change when a tokenizer is written to GGUF and read by headway, and by llama.cpp."""
    path = folder / "tokenizer.gguf"
    config = decoder(8, 1, 1, 1, 8, codec.vocab_size, 16)
    try:
        save_gguf(build(config), config, path, codec)
    except UserError as error:
        return {"refused": str(error).replace(str(folder), "FOLDER")[:200]}
    again: Any = load_gguf_codec(path)
    wanted = [codec.encode(line) for line in lines]
    job = {"prompt": [], "made": [], "read": [], "tokenizer": str(path), "texts": lines}
    said = run_worker(python, job, folder)
    if said.get("ids") is None:
        return {"failed": said.get("died", "")}
    others = [each for each in zip(lines, said["ids"], wanted) if each[1] != each[2]]
    row: dict[str, Any] = {
        "read back": sum(again.encode(line) != ids for line, ids in zip(lines, wanted)),
        "read": len(others),
    }
    if others:
        reason, applies = REASONS.get(GgufFile(path).values.get("tokenizer.ggml.pre", ""), ("", lambda _: False))
        row |= {"reason": reason, "unexplained": sum(not applies(each[0]) for each in others)}
        row["example"] = [part[:40] for part in others[0]]
    return row


def other_formats(ours: Path, theirs: Path) -> int:
    """Tensors of the same name in another number format."""
    files = GgufFile(ours), GgufFile(theirs)
    return sum(files[0].kind(name) != files[1].kind(name) for name in files[0].names())


def check(name: str, opened: OpenedModel, folder: Path, python: str) -> dict[str, Any]:
    """Rows of a model by the writer and the format, and the version of llama.cpp."""
    config: Any = opened.model.config
    prompt = torch.randint(3, config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    rows: dict[str, dict[str, Any]] = {}
    ours: dict[str, Path] = {}
    for precision in OURS if name in OUR_FORMATS else FEW:
        path = folder / f"ours-{precision}.gguf"
        try:
            save_gguf(opened.model, config, path, opened.codec, opened.usage, precision)
            ours[precision] = path
        except UserError as error:
            rows[f"headway {precision}"] = {"refused": str(error)[:200]}
    if "F32" not in ours:
        return rows
    chosen = THEIRS if name in ALL_FORMATS else list(ours)[1:]
    theirs = {kind: folder / f"theirs-{kind}.gguf" for kind in chosen}
    stored = GgufFile(ours["F32"])
    shapes = {each: stored.shape(each) for each in stored.names()}
    made = [(ours["F32"], path, f"MOSTLY_{kind}") for kind, path in theirs.items()]
    made += [(path, decoded(path), "ALL_F32") for path in (*ours.values(), *theirs.values())]
    job = {
        "prompt": prompt,
        "sizes": {
            each: shape[-1] * (shape[0] if len(shape) == 3 else 1) for each, shape in shapes.items() if len(shape) > 1
        },
        "made": [(str(source), str(target), kind) for source, target, kind in made],
        "read": [str(each) for path in (*ours.values(), *theirs.values()) for each in (path, decoded(path))],
    }
    said = run_worker(python, job, folder)
    for writer, files in (("headway", ours), ("llama.cpp", theirs)):
        for precision, path in files.items():
            failures = [said["failures"].get(str(each), said.get("died")) for each in (path, decoded(path))]
            reason = next((each for each in failures if each), None)
            try:
                row: dict[str, Any] = compared(path, prompt) if reason is None else {"failed": reason}
            except UserError as error:
                row = {"refused": str(error).replace(str(folder), "FOLDER")[:200]}
            if writer == "headway" and precision in theirs and theirs[precision].exists():
                row["formats"] = other_formats(path, theirs[precision])
            rows[f"{writer} {precision}"] = row
    return {"llama-cpp-python": said["version"], **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--folders", type=Path, metavar="DIR")
    args = parser.parse_args()
    path = RESULTS / "llama-reads.json"
    found = json.loads(path.read_text()) if path.exists() else {"models": {}, "tokenizers": {}}
    result: dict[str, Any] = {key: found[key] for key in ("models", "tokenizers")}
    with tempfile.TemporaryDirectory() as scratch:
        makers, lines = cases(Path(scratch)), drawn_lines()[0][::5]
        sources = {each.name: each for each in sorted(args.folders.iterdir() if args.folders else ())}
        for name in args.names or [*makers, *(each for each in sources if each not in makers)]:
            with tempfile.TemporaryDirectory() as folder:
                opened = makers[name]() if name in makers else None
                if opened is not None:
                    result["models"][name] = check(name, opened, Path(folder), args.python)
                codec = load_codec(sources[name]) if name in sources else opened and opened.codec
                if isinstance(codec, TokenizerCodec):
                    result["tokenizers"][name] = check_tokenizer(codec, lines, Path(folder), args.python)
            for kind, row in result["models"].get(name, {}).items():
                print(f"{name:24} {kind:24} {row}", flush=True)
            print(f"{name:24} {'tokenizer':24} {result['tokenizers'].get(name)}", flush=True)
            write("llama-reads", {"lines": len(lines), "tokens": TOKENS, **result})


if __name__ == "__main__":
    main()
