"""Log probabilities under the model that a preference run starts from: computed once, so that it need not stay."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn

from headway.checkpoints.durable import write_tensors
from headway.checkpoints.native import named_tensors
from headway.config import to_dict
from headway.data.marked import MarkedCache
from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column
from headway.domains.chat.batches import Choices
from headway.domains.chat.task import head_of
from headway.models import ModelConfig, build
from headway.train.start import open_start

FILE = "reference.safetensors"
_NAME = "log_probabilities"
_FORMAT = 1
_AT_ONCE = 8192  # tokens


def saved_reference(cache: MarkedCache, directory: Path) -> Float[Tensor, "N 2"] | None:
    """What a run keeps of them, if it is of these choices."""
    path = directory / FILE
    tensors = load_file(path) if path.is_file() else {}
    return tensors.get(cache.directory.name)


def save_reference(cache: MarkedCache, reference: Float[Tensor, "N 2"], directory: Path) -> None:
    """Keep them with a run, which then needs the start no more."""
    write_tensors(directory / FILE, {cache.directory.name: reference}, {"format": "headway"})


def open_reference(
    cache: MarkedCache, start: str | None, model: ModelConfig, seed: int, context: int
) -> Float[Tensor, "N 2"]:
    """log p of the chosen and the rejected ending of each choice by the model at `start`, or by the one that `seed`
    draws; from the cache where they have been computed before. Choices that do not fit `context` have 0.
    """
    module = build(model, seed).eval() if start is None else open_start(start).model
    key = cache_key("reference", _FORMAT, cache.directory.name, context, _fingerprint(module))
    folder = open_or_build(cache_root() / key, lambda part: _build(part, cache, module, context))
    found = read_column(folder, _NAME, np.float32, 2 * len(cache))
    return torch.from_numpy(np.array(found)).view(len(cache), 2)


def log_probabilities(model: nn.Module, x: Float[Tensor, "R T D"], labels: Int[Tensor, "R T"]) -> Float[Tensor, "2 B"]:
    """log p of each ending, summed over its labels; the logits of all rows never exist at once."""
    head = head_of(model)
    return torch.stack([-head.loss(*row).total for row in zip(x, labels)]).view(2, -1)


@torch.no_grad()
def _build(part: Path, cache: MarkedCache, model: nn.Module, context: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fitting = np.flatnonzero(cache.lengths.max(1) <= context + 1)
    choices, found = Choices(cache, fitting), torch.zeros(len(cache), 2)
    model.to(device)
    plan = choices.plan(max(_AT_ONCE, 2 * context), seed=0).in_order()
    shown = "log probabilities of the model that training starts from"
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    for places in track(plan, shown, console=console, transient=True, disable=hidden):
        batch = choices.batch(places, found).to(device)
        x = model(batch.inputs, batch.layout).x
        found[torch.from_numpy(fitting[places])] = log_probabilities(model, x, batch.labels).T.float().cpu()
    with Columns(part, {_NAME: np.float32}) as columns:
        columns.append(_NAME, found.numpy())


def _fingerprint(model: nn.Module) -> str:
    """Of configuration and weights."""
    digest = hashlib.blake2b(json.dumps(to_dict(model.config)).encode(), digest_size=16)
    for name, tensor in named_tensors(model):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
