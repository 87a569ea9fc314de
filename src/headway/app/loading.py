"""`load`: load a trained or published model for inference."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

import torch

from headway.app.model import Model
from headway.app.runs import open_recipe
from headway.errors import UserError
from headway.formats.native import QUANTISED, LoadedWeights, Weights, total_bytes
from headway.formats.open import OpenedModel, open_config, open_model, usage_and_codec
from headway.io.arguments import check_types
from headway.io.hub import find_folder
from headway.io.machine_memory import check_free_memory
from headway.lazy_imports import gc_paused
from headway.learn.recipe import check_model
from headway.learn.run import RunDirectory
from headway.nn.models import CacheDtype
from headway.nn.models.kinds import generates
from headway.predict.model_handle import Backend


@check_types
def load(
    path: str | Path,
    device: str = "auto",
    weights: LoadedWeights | None = None,
    backend: Backend = "auto",
    cache: CacheDtype | None = None,
    draft: str | Path | None = None,
) -> Model:
    """Load a model for inference: a run by its directory, or a published model by its folder, its GGUF file or its
    name on the hub, such as hf:owner/name.

    device: "auto" (the first CUDA GPU, otherwise the CPU), "cpu", "cuda", "cuda:1", "mps".
    weights: "int8" or "int4" quantises the matrices, for the CPU engine or torch's kernels on a CUDA GPU; "bf16" rounds
    them for torch. None keeps the int8 or int4 of a folder that headway quantised. It loads all others as fp32, or as
    bf16 if they generate tokens on a GPU that has it. "fp32" converts all.
    backend: the generation backend: "cpu" is the compiled engine, "torch" the torch module, and "auto" uses the
    engine for all models that it supports.
    cache: the data type of the KV cache; "fp16" takes half the memory of "fp32" and "int8" a quarter, and both
    need the CPU engine. None is fp16 for quantised weights on the engine, otherwise fp32.
    draft: a smaller model with the same tokenizer, for speculative decoding.

    Raises UserError for a path without a model, and for incompatible options.
    """
    if weights is not None and weights not in get_args(LoadedWeights):
        raise UserError(f"unknown number format {weights!r} for weights; use {' or '.join(get_args(LoadedWeights))}")
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
    if weights == "bf16" and torch_device.type == "cpu" and backend != "torch":
        raise UserError("bf16 weights need torch on a CPU; use backend=torch (--backend torch), or weights int8")
    if torch_device.type != "cpu" and backend == "cpu":
        raise UserError(f"backend cpu needs a CPU, not device {torch_device}; use device=cpu")
    with gc_paused():
        source = find_folder(path)
        recipe = None
        if RunDirectory(source).exists():
            recipe = open_recipe(source)
        opened = open_in_format(source, weights, torch_device, use_engine=backend != "torch")
        if recipe is not None:
            check_model(recipe, opened.model.config, source)  # type: ignore[arg-type]
    if torch_device.type != "cpu":
        size = total_bytes(part for part in opened.model.parameters() if part.device != torch_device)
        check_free_memory(str(path), {"weights": size}, torch_device, "use --device cpu, or a smaller model")
    model = opened.model.to(torch_device)
    if torch_device.type != "cpu":
        from headway.generate.torch_weights import join_experts

        join_experts(model)
    draft_model = None
    if draft is not None:
        quantised = (find_folder(draft) / QUANTISED).is_file()
        draft_model = load(draft, device, None if quantised else weights)
    return Model(opened._replace(model=model), source, recipe, backend, cache, draft_model)


def open_in_format(source: Path, weights: LoadedWeights | None, device: torch.device, use_engine: bool) -> OpenedModel:
    """The model with its weights in a number format; None: as stored, or bf16 for generation on a GPU.

    A file is read in its stored dtype, so that the whole model is never in memory in fp32 unless it stays so.
    """
    is_quantised = (source / QUANTISED).is_file()
    if weights is None and not is_quantised and device.type == "cuda" and generates(open_config(source)):
        weights = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if not is_quantised and weights in (None, "fp32"):
        return open_model(source)
    if not is_quantised and weights == "bf16":
        from headway.generate.torch_weights import store_in_bf16

        opened = open_model(source, None)
        store_in_bf16(opened.model)
        return opened
    if weights == "bf16":
        raise UserError(f"{source} has int8 or int4 weights; load the original model in bf16, or remove weights=bf16")
    if device.type in ("mps", "meta"):
        raise UserError(f"int8 and int4 weights need a CPU or a CUDA GPU, not device {device}; use device=cpu")
    from headway.engine import load_quantised, quantise, use_programs  # imports LLVM, which is rarely needed

    if is_quantised:
        opened = OpenedModel(load_quantised(source, cast(Weights, weights)), *usage_and_codec(source))
    else:
        opened = open_model(source, None)
    if device.type != "cpu":
        from headway.generate.kernel_weights import store_for_kernels

        store_for_kernels(opened.model, None if is_quantised else cast(Weights, weights), device)
        return opened
    if not is_quantised:
        opened = opened._replace(model=quantise(opened.model, cast(Weights, weights)))
    if use_engine:
        use_programs(opened.model)
    return opened


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
