"""`load`: load a trained or published model for inference."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from headway.app.model import Model
from headway.app.runs import open_recipe
from headway.errors import UserError
from headway.formats.native import QUANTISED, Weights, total_bytes
from headway.formats.open import OpenedModel, open_model, usage_and_codec
from headway.io.arguments import check_types
from headway.io.hub import find_folder
from headway.io.machine_memory import check_free_memory
from headway.lazy_imports import gc_paused
from headway.learn.recipe import check_model
from headway.learn.run import RunDirectory
from headway.nn.models import CacheDtype
from headway.predict.model_handle import Backend


@check_types
def load(
    path: str | Path,
    device: str = "auto",
    weights: Weights | None = None,
    backend: Backend = "auto",
    cache: CacheDtype | None = None,
    draft: str | Path | None = None,
) -> Model:
    """Load a model for inference: a run by its directory, or a published model by its folder, its GGUF file or its
    name on the hub, such as hf:owner/name.

    device: "auto" (the first CUDA GPU, otherwise the CPU), "cpu", "cuda", "cuda:1", "mps".
    weights: "int8" or "int4" quantises the matrices for the CPU engine; None keeps the int8 or int4 of a
    folder that headway quantised and loads all others as fp32; "fp32" converts those, too.
    backend: the generation backend: "cpu" is the compiled engine, "torch" the torch module, and "auto" uses the
    engine for all models that it supports.
    cache: the data type of the KV cache; "fp16" takes half the memory of "fp32" and "int8" a quarter, and both
    need the CPU engine. None is fp16 for quantised weights on the engine, otherwise fp32.
    draft: a smaller model with the same tokenizer, for speculative decoding.

    Raises UserError for a path without a model, and for incompatible options.
    """
    if weights is not None and weights not in get_args(Weights):
        raise UserError(f"unknown number format {weights!r} for weights; use {' or '.join(get_args(Weights))}")
    if backend not in get_args(Backend):
        raise UserError(f"unknown backend {backend!r}; use {' or '.join(get_args(Backend))}")
    if cache is not None and cache not in get_args(CacheDtype):
        raise UserError(f"unknown number format {cache!r} for the KV cache; use {' or '.join(get_args(CacheDtype))}")
    torch_device = find_device(device)
    if cache not in (None, "fp32") and (torch_device.type != "cpu" or backend == "torch"):
        conflict = f"device {torch_device}" if torch_device.type != "cpu" else "backend torch"
        raise UserError(
            f"the {cache} cache needs the CPU engine, which cannot be used with {conflict}; remove one of them"
        )
    if torch_device.type != "cpu" and (backend == "cpu" or weights not in (None, "fp32")):
        conflict = "backend cpu" if backend == "cpu" else f"inference with {weights} weights"
        raise UserError(f"{conflict} needs a CPU, not device {torch_device}; use device=cpu")
    with gc_paused():
        source = find_folder(path)
        recipe = None
        if RunDirectory(source).exists():
            recipe = open_recipe(source)
        is_quantised = (source / QUANTISED).is_file()
        if not is_quantised and weights in (None, "fp32"):
            opened = open_model(source)
        else:
            from headway.engine import load_quantised, quantise, use_programs  # imports LLVM, which is rarely needed

            if is_quantised:
                opened = OpenedModel(load_quantised(source, weights), *usage_and_codec(source))
            else:
                opened = open_model(source, None)  # in the stored dtype: the whole model is never in memory in fp32
                assert weights is not None
                opened = opened._replace(model=quantise(opened.model, weights))
            if backend != "torch":
                use_programs(opened.model)
        if recipe is not None:
            check_model(recipe, opened.model.config, source)  # type: ignore[arg-type]
    if torch_device.type != "cpu":
        size = total_bytes(opened.model.parameters())
        check_free_memory(str(path), {"weights": size}, torch_device, "use --device cpu, or a smaller model")
    draft_model = None
    if draft is not None:
        quantised = (find_folder(draft) / QUANTISED).is_file()
        draft_model = load(draft, device, None if quantised else weights)
    return Model(opened._replace(model=opened.model.to(torch_device)), source, recipe, backend, cache, draft_model)


def find_device(name: str) -> torch.device:
    """A torch device by name; `auto` is the first CUDA GPU, otherwise the CPU. Raises UserError if it is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises one or the other
        reason = str(error).split("\n")[0]
        raise UserError(f"device {name!r} is not available here ({reason}); use --device cpu") from None
    return device
