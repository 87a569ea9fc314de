"""Facts for `same.py`: digests of tensors, runs and files, and the cleaned output of commands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

Facts = dict[str, Any]

# JSON keys whose values differ between two runs of the same code: times, random ids and folders.
VOLATILE = re.compile(
    r"(.*_)?(seconds|duration|created|created_at|elapsed|date|per_second)|tokens/s|id|system_fingerprint|path|file|report"
)


def digest(value: Any) -> str:
    """16 hexadecimal digits, equal for equal bits of tensors, arrays, numbers, strings and containers of them."""
    result = hashlib.sha256()
    for chunk in chunks(value):
        result.update(chunk)
        result.update(b"\0")
    return result.hexdigest()[:16]


def chunks(value: Any) -> Iterable[bytes]:
    if isinstance(value, torch.Tensor):
        value = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, float):
        yield value.hex().encode()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key).encode()
            yield from chunks(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from chunks(getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from chunks(item)
    else:
        yield repr(value).encode()


def weight_facts(path: Path) -> dict[str, str]:
    """The digest of each tensor of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: digest(file.get_tensor(name)) for name in sorted(file.keys())}


def run_facts(run: Path) -> Facts:
    """The weights, metrics of each step and final scores of a finished run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = {f"{line.get('split', 'train')} {line['step']}": digest(without_volatile(line)) for line in lines}
    scores = json.loads((run / "run.json").read_text())["scores"]
    weights = weight_facts(run / "model.safetensors")
    return {"weights": weights, "metrics": metrics, "scores": digest(without_volatile(scores))}


def file_facts(folder: Path) -> dict[str, str]:
    """The digest of each file below a folder, without locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}


def without_volatile(value: Any) -> Any:
    """JSON data without the keys of VOLATILE, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_volatile(item) for key, item in value.items() if not VOLATILE.fullmatch(key)}
    return [without_volatile(item) for item in value] if isinstance(value, list) else value


def command(*words: str | Path) -> list[str]:
    """The command line of a headway command in a process of its own."""
    return [sys.executable, "-m", "headway", *map(str, words)]


def command_output(*words: str | Path, text: str | None = None) -> str:
    """Run a headway command on one thread, with `text` on stdin, and return its stdout."""
    done = subprocess.run(command(*words, "--threads", "1"), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"headway {words[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def command_result(*words: str | Path) -> Any:
    """The JSON result of a headway command, without the keys of VOLATILE."""
    return without_volatile(json.loads(command_output(*words, "--json").splitlines()[-1]))


def settings_words(settings: Mapping[str, Any]) -> Sequence[str]:
    """Settings as arguments of `--set`."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
