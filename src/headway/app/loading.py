"""`load`: a model that is ready to be used, from a run or from wherever it was published."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from headway.app.model import Model
from headway.app.runs import recipe_of
from headway.errors import UserError
from headway.formats.hub import find_folder
from headway.formats.native import QUANTISED, Weights
from headway.formats.open import Opened, open_model, use_of
from headway.given import typed
from headway.handle import Backend
from headway.lazily import resting
from headway.learn.recipe import check_model
from headway.learn.run import RunDirectory
from headway.memory import check_room
from headway.nn.models import Cache


@typed
def load(
    path: str | Path,
    device: str = "auto",
    weights: Weights | None = None,
    backend: Backend = "auto",
    cache: Cache | None = None,
    draft: str | Path | None = None,
) -> Model:
    """Load a model that is ready to be used: from the directory of a run, or a published model from its folder, its
    GGUF file or by its name on a hub, as in hf:owner/name.

    device: "auto" (the first GPU, or else the CPU), "cpu", "cuda", "cuda:1", "mps".
    weights: "int8" or "int4" quantises the matrices for the CPU engine; None leaves them as they are stored.
    backend: what generates text: "cpu" is the compiled engine, "torch" the torch module, "auto" the engine for all
    models that it can run.
    cache: the number format of the KV cache; "fp16" takes half of the memory of "fp32" and "int8" a quarter, and both
    need the CPU engine. None is fp16 for quantised weights there, and otherwise fp32.
    draft: a smaller model with the same tokenizer, for speculative decoding.

    Raises UserError for a path that holds no model, and for choices that do not go together.
    """
    if weights is not None and weights not in get_args(Weights):
        raise UserError(f"weights {weights!r} are unknown; use {' or '.join(get_args(Weights))}")
    if backend not in get_args(Backend):
        raise UserError(f"backend {backend!r} is unknown; use {' or '.join(get_args(Backend))}")
    if cache is not None and cache not in get_args(Cache):
        raise UserError(f"cache {cache!r} is unknown; use {' or '.join(get_args(Cache))}")
    where = find_device(device)
    if cache not in (None, "fp32") and (where.type != "cpu" or backend == "torch"):
        asked = f"device {where}" if where.type != "cpu" else "backend torch"
        raise UserError(f"a cache of {cache} is the CPU engine's, which {asked} is not; leave one of them out")
    if where.type != "cpu" and (backend == "cpu" or weights not in (None, "fp32")):
        asked = "the CPU engine" if backend == "cpu" else f"weights in {weights}"
        raise UserError(f"{asked} runs on a processor, not on device {where}; add --device cpu")
    with resting():
        place = find_folder(path)
        recipe = None
        if RunDirectory(place).exists():
            recipe = recipe_of(place)
        opened = _open(place, weights, backend)
        if recipe is not None:
            check_model(recipe, opened.model.config, place)  # type: ignore[arg-type]
    if where.type != "cpu":
        size = sum(parameter.nbytes for parameter in opened.model.parameters())
        check_room(str(path), {"weights": size}, where, "use --device cpu, or a smaller model")
    guessing = None
    if draft is not None:
        quantised = (find_folder(draft) / QUANTISED).is_file()
        guessing = load(draft, device, None if quantised else weights)
    return Model(opened._replace(model=opened.model.to(where)), place, recipe, backend, cache, guessing)


def _open(place: Path, weights: Weights | None, backend: Backend) -> Opened:
    if not (place / QUANTISED).is_file() and weights in (None, "fp32"):
        return open_model(place)
    from headway.engine import load_quantised, quantise, use_programs  # with LLVM, which models without it do not need

    if (place / QUANTISED).is_file():
        opened = Opened(load_quantised(place, weights), *use_of(place))
    else:
        opened = open_model(place, None)  # as they are stored: never all of them in fp32 at once
        assert weights is not None
        opened = opened._replace(model=quantise(opened.model, weights))
    if backend != "torch":
        use_programs(opened.model)
    return opened


def find_device(name: str) -> torch.device:
    """A torch device by name; `auto` is the first GPU, or else the processor. UserError for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        reason = str(error).split("\n")[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from None
    return device
