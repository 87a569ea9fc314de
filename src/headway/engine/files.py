"""Quantised models on disk: quantized.safetensors, with codes and scales in the place of each packed matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from headway.checkpoints.durable import write_tensors
from headway.checkpoints.native import QUANTISED, check_tensors, config_of, named_tensors
from headway.checkpoints.undrawn import undrawn
from headway.config import to_dict
from headway.engine.packed import PackedTensor, check_numbers, parameter_of
from headway.engine.packing import CODES, Format, Packed
from headway.engine.tiles import GROUP, INT4, TILE, TILE4, TILE8
from headway.errors import UserError

VERSION = "2"
_CODES, _SCALES = ".codes", ".scales"


def save_quantised(model: nn.Module, form: Format, directory: Path) -> int:
    """Write `directory`/quantized.safetensors in one step; the bytes of its weights."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model):
        if isinstance(tensor, PackedTensor):
            assert tensor.packed.scales is not None  # fp32 is no packed tensor
            tensors[name + _CODES], tensors[name + _SCALES] = tensor.packed.weights, tensor.packed.scales
        else:
            tensors[name] = tensor.data
    config: Any = model.config
    header = {
        "format": "headway-quantized",
        "version": VERSION,
        "weights": form,
        "group": str(GROUP),
        "numbers": str(_numbers(model)),
        "config": json.dumps(to_dict(config)),
    }
    write_tensors(directory / QUANTISED, tensors, header)
    return sum(t.numel() * t.element_size() for t in tensors.values())


def load_quantised(directory: Path, wanted: Format | None = None) -> nn.Module:
    """The model of `directory`, in evaluation mode. UserError for a file that is damaged, of another version, or of
    other weights than the `wanted` ones.
    """
    path = Path(directory) / QUANTISED
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            form = _check(header, path)
            if wanted not in (None, form):
                raise UserError(f"{path} has weights in {form}, not {wanted}; quantize the model itself to {wanted}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}; quantize the model again") from error
    model = undrawn(config_of(header, path), path.stat().st_size, str(path))
    if header.get("numbers") != str(_numbers(model)):  # tiles are padded, so their shapes do not tell
        raise UserError(
            f"{path} has {header.get('numbers')} numbers, and its configuration asks for {_numbers(model)}; "
            "quantize the model again"
        )
    own = dict(named_tensors(model))
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name + _CODES in tensors:
            codes, scales = tensors.pop(name + _CODES), tensors.pop(name + _SCALES, None)
            found[name] = _packed(form, name, codes, scales, tensor.shape, path)
        elif name in tensors:
            found[name] = tensors.pop(name)
            check_numbers(f"{path}: {name!r}", found[name])
    check_tensors(own, {**found, **tensors}, path)
    _put(model, own, found)
    return model.eval().requires_grad_(False)


def _numbers(model: nn.Module) -> int:
    """How many a model has, tied ones once, as if none were packed."""
    return sum(tensor.numel() for _, tensor in named_tensors(model))


def _check(header: dict[str, str], path: Path) -> Format:
    if header.get("format") != "headway-quantized":
        raise UserError(
            f"{path} has format {header.get('format')!r}, not 'headway-quantized'; quantize the model again"
        )
    if header.get("version") != VERSION or header.get("group") != str(GROUP):
        raise UserError(
            f"{path} has version {header.get('version')} with groups of {header.get('group')}, this headway reads "
            f"{VERSION} with {GROUP}; quantize the model again"
        )
    form = header.get("weights")
    if form not in get_args(Format) or form == "fp32":
        raise UserError(f"{path} has weights {form!r}; this headway reads int8 and int4, quantize the model again")
    return form  # type: ignore[return-value]


def _packed(
    form: Format, name: str, codes: Tensor, scales: Tensor | None, shape: torch.Size, path: Path
) -> PackedTensor:
    """UserError for codes or scales that are not those of a matrix of this shape."""
    if len(shape) != 2:
        raise UserError(
            f"{path}: {name!r} has codes, but its shape is {tuple(shape)} and only matrices are rounded; "
            "quantize the model again"
        )
    rows, columns = shape
    tall, groups = -(-rows // TILE), -(-columns // GROUP)
    kind, size = (torch.uint8, TILE4) if CODES[form] == INT4 else (torch.int8, TILE8)
    sound = (
        scales is not None
        and (tuple(codes.shape), codes.dtype) == ((tall, groups, size), kind)
        and (tuple(scales.shape), scales.dtype) == ((tall, groups, TILE), torch.float32)
    )
    if not sound:
        raise UserError(
            f"{path}: {name!r} has codes of {codes.dtype} {tuple(codes.shape)}, which are no {form} weights of "
            f"{rows} x {columns} with their scales; quantize the model again"
        )
    assert scales is not None
    if not bool(torch.isfinite(scales).all()):
        raise UserError(f"{path}: {name!r} has a scale that is NaN or infinite; quantize the model again")
    return PackedTensor(Packed(CODES[form], codes, scales, rows, columns))


def _put(model: nn.Module, own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Set each tensor wherever the model has its own one, so that ties hold."""
    made = {id(own[name]): parameter_of(tensor) for name, tensor in found.items()}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) in made:
                setattr(module, name, made[id(buffer)].data)
