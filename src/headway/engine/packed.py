"""Weights in the engine's layout: fp32 as they are, int8 and int4 in tiles; as tensors, and on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headway.config import to_dict
from headway.engine.machine import announced
from headway.engine.pool import most_threads, pool
from headway.engine.products import ROOM, packed_product, unpack_rows
from headway.engine.tiles import FP32, GROUP, INT4, INT8, TILE, TILE4, TILE8
from headway.engine.tiling import pack_tiles
from headway.errors import UserError
from headway.formats.durable import write_tensors
from headway.formats.native import QUANTISED, check_tensors, config_of, named_tensors, undrawn
from headway.formats.native import Weights as Format
from headway.formats.tensorfile import read_tensors
from headway.nn.models.embeds import TokenEmbed
from headway.nn.parts.projection import Projection

CODES: dict[str, int] = {"fp32": FP32, "int8": INT8, "int4": INT4}


class PackedMatrix(NamedTuple):
    """A matrix of `rows` x `columns`. Quantised: value = scale of the group x code, in tiles (`engine/tiles.py`) whose
    last rows and columns are padded with zeros.
    """

    kind: int
    weights: Float[Tensor, "R C"] | Int[Tensor, "T G B"]
    scales: Float[Tensor, "T G 16"] | None
    rows: int
    columns: int

    @property
    def addresses(self) -> tuple[int, int]:
        """Addresses of the weights and their scales, 0 without scales."""
        return self.weights.data_ptr(), 0 if self.scales is None else self.scales.data_ptr()

    @property
    def bytes(self) -> int:
        held = (self.weights, self.scales)
        return sum(part.numel() * part.element_size() for part in held if part is not None)


def pack(matrix: Float[Tensor, "R C"], form: Format) -> PackedMatrix:
    """Raises UserError for weights that are NaN or infinite."""
    rows, columns = matrix.shape
    whole = matrix.detach().float().contiguous()
    if not bool(torch.isfinite(whole).all()):
        raise UserError("a weight is NaN or infinite; use a checkpoint with valid weights")
    if form == "fp32":
        return PackedMatrix(FP32, whole, None, rows, columns)
    tall, groups = -(-rows // TILE), -(-columns // GROUP)
    size, number = (TILE8, torch.int8) if form == "int8" else (TILE4, torch.uint8)
    codes, scales = torch.empty(tall, groups, size, dtype=number), torch.empty(tall, groups, TILE)
    fields = (CODES[form], whole.data_ptr(), rows, columns, codes.data_ptr(), scales.data_ptr())
    threads = pool(most_threads())
    with announced(pack_tiles):
        threads.run(lambda thread: pack_tiles(*fields, thread, threads.threads))
    return PackedMatrix(CODES[form], codes, scales, rows, columns)


def unpack(packed: PackedMatrix) -> Float[Tensor, "R C"]:
    """The weights as the engine's products use them."""
    if packed.scales is None:
        return packed.weights
    tall, groups = packed.scales.shape[:2]
    lines = packed.weights.view(tall, groups, -1, TILE, 4)
    if packed.kind == INT4:
        lines = torch.cat([lines & 15, lines >> 4], dim=2).to(torch.int16) - 8
    values = lines.permute(0, 3, 1, 2, 4).float().reshape(tall, TILE, groups, GROUP)
    values *= packed.scales.permute(0, 2, 1)[:, :, :, None]
    return values.view(tall * TILE, groups * GROUP)[: packed.rows, : packed.columns].contiguous()


class PackedTensor(torch.Tensor):
    """A matrix [R, C] stored in 8 or 4 bits that looks like one in fp32. Linear layers and embeddings use it directly;
    any other operation unpacks it first, which is slow but correct.
    """

    packed: PackedMatrix

    @staticmethod
    def __new__(cls, packed: PackedMatrix) -> PackedTensor:
        made = torch.Tensor._make_wrapper_subclass(cls, (packed.rows, packed.columns), dtype=torch.float32)
        made.packed = packed
        return made

    def __init__(self, packed: PackedMatrix) -> None:
        return None

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PackedTensor({self.packed.rows} x {self.packed.columns}, {self.packed.bytes} bytes)"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], PackedTensor):
            return _linear(*args, **kwargs)
        if func is F.embedding and isinstance(args[1], PackedTensor):
            return look_up(args[1].packed, args[0])  # the other arguments are for training
        if func is torch.Tensor.detach:  # otherwise torch imports its distributed tensors, 37 MB
            return PackedTensor(args[0].packed)
        if torch.is_inference_mode_enabled() and func.__name__ not in ("__get__", "detach"):
            # Views of tensors created outside this mode cannot be made below.
            args, kwargs = tree_map(_plain, args), tree_map(_plain, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return PackedTensor(args[0].packed)
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs or {}))


def _plain(item: Any) -> Any:
    return unpack(item.packed) if isinstance(item, PackedTensor) else item


def quantise(model: nn.Module, form: Format) -> nn.Module:
    """Convert the matrices of a model's linear layers, embedding and heads to `dtype`, in place; tied ones once.

    Positions, norms, biases and the state matrices of recurrences are unchanged. Afterwards the model is for inference
    only.
    """
    if form == "fp32":
        return model
    made: dict[int, nn.Parameter] = {}
    for module, name, weight in list(_matrices(model)):
        if isinstance(weight, PackedTensor):
            raise UserError(f"the weights are in int8 or int4 already; load the model again for {form}")
        if id(weight) not in made:
            with torch.no_grad():
                made[id(weight)] = parameter_of(PackedTensor(pack(weight, form)))
        setattr(module, name, made[id(weight)])
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, PackedTensor):
            check_numbers(name, parameter)
            parameter.data = parameter.data.float()  # unpacked weights of an fp16 file
    return model


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raise UserError for a tensor with NaN or infinity, which quantised products could hide."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{name} contains NaN or infinity; use a checkpoint with valid weights")


def parameter_of(tensor: Tensor) -> nn.Parameter:
    """A parameter for inference only. In inference mode a tensor subclass cannot become a parameter."""
    with torch.inference_mode(False):
        return nn.Parameter(tensor, requires_grad=False)


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    tables = {id(m.table) for m in model.modules() if isinstance(m, TokenEmbed)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if (isinstance(module, Projection) and name == "weight") or id(parameter) in tables:
                yield module, name, parameter


def look_up(packed: PackedMatrix, ids: Int[Tensor, "..."]) -> Float[Tensor, "... C"]:
    """Rows of a packed matrix."""
    rows = ids.reshape(-1).long().contiguous()
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= packed.rows):
        raise IndexError(f"index out of range: a table has rows 0 to {packed.rows - 1}")
    out = torch.empty(rows.numel(), packed.columns)
    fields = (packed.kind, *packed.addresses, rows.data_ptr(), rows.numel(), packed.columns)
    threads = _threads(rows.numel() * packed.columns)
    threads.run(lambda thread: unpack_rows(*fields, out.data_ptr(), thread, threads.threads))
    return out.view(*ids.shape, packed.columns)


def _linear(x: Tensor, weight: PackedTensor, bias: Tensor | None = None) -> Tensor:
    packed, rows = weight.packed, x.reshape(-1, x.shape[-1]).float().contiguous()
    return _product(packed, rows, bias).view(*x.shape[:-1], packed.rows)


def _product(packed: PackedMatrix, x: Float[Tensor, "B C"], bias: Tensor | None) -> Float[Tensor, "B R"]:
    """The product with inputs quantised to 8 bits, from the packed weights."""
    offset = None if bias is None else bias.detach().float().contiguous()
    batch, groups = x.shape[0], -(-packed.columns // GROUP)
    threads = _threads(batch * packed.rows * packed.columns)
    q, scales = np.empty((batch, groups * GROUP), np.int8), np.empty((batch, groups), np.float32)
    corrections, y = np.empty((batch, groups), np.int32), torch.empty(batch, packed.rows)
    room = np.empty(ROOM * threads.threads, np.uint8)
    places = (x.data_ptr(), q.ctypes.data, scales.ctypes.data, corrections.ctypes.data, y.data_ptr())
    start = 0 if offset is None else offset.data_ptr()
    fields = (
        packed.kind,
        *packed.addresses,
        start,
        *places,
        packed.rows,
        packed.columns,
        batch,
    )
    threads.run(lambda thread: packed_product(*fields, room.ctypes.data, threads.counter, thread, threads.threads))
    return y


def _threads(work: int) -> Any:
    """A single thread for work that is done before a second one would wake up."""
    return pool(most_threads() if work > 1 << 16 else 1)


VERSION = "2"
_CODES, _SCALES = ".codes", ".scales"


def save_quantised(model: nn.Module, form: Format, directory: Path) -> int:
    """Write `directory`/quantized.safetensors atomically; return the bytes of its weights."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model):
        if isinstance(tensor, PackedTensor):
            assert tensor.packed.scales is not None  # fp32 is never packed
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
    """The model in `directory`, in evaluation mode. Raises UserError for a file that is damaged, of another version, or
    not in the `wanted` format.
    """
    path = Path(directory) / QUANTISED
    tensors, header = read_tensors(path, "quantize the model again")
    form = _check(header, path)
    if wanted not in (None, form):
        raise UserError(f"{path} has weights in {form}, not {wanted}; quantize the original model to {wanted}")
    model = undrawn(config_of(header, path, len(tensors)), path.stat().st_size, str(path))
    if header.get("numbers") != str(_numbers(model)):  # tiles are padded, so their shapes do not show it
        raise UserError(
            f"{path} has {header.get('numbers')} parameters, but its configuration needs {_numbers(model)}; "
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
    """The number of a model's parameters, tied ones once, as if none were packed."""
    return sum(tensor.numel() for _, tensor in named_tensors(model))


def _check(header: dict[str, str], path: Path) -> Format:
    if header.get("format") != "headway-quantized":
        raise UserError(
            f"{path} has format {header.get('format')!r}, not 'headway-quantized'; quantize the model again"
        )
    if header.get("version") != VERSION or header.get("group") != str(GROUP):
        raise UserError(
            f"{path} has version {header.get('version')} with groups of {header.get('group')}, but this headway reads "
            f"{VERSION} with {GROUP}; quantize the model again"
        )
    form = header.get("weights")
    if form not in get_args(Format) or form == "fp32":
        raise UserError(f"{path} has weights in {form!r}, not in int8 or int4; quantize the model again")
    return form  # type: ignore[return-value]


def _packed(
    form: Format, name: str, codes: Tensor, scales: Tensor | None, shape: torch.Size, path: Path
) -> PackedTensor:
    """Raises UserError for codes or scales that do not match this shape."""
    if len(shape) != 2:
        raise UserError(
            f"{path}: {name!r} has codes, but its shape is {tuple(shape)} and only matrices are quantized; "
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
            f"{path}: {name!r} has codes of {codes.dtype} {tuple(codes.shape)}, which do not match {form} weights of "
            f"{rows} x {columns} and their scales; quantize the model again"
        )
    assert scales is not None
    if not bool(torch.isfinite(scales).all()):
        raise UserError(f"{path}: {name!r} has a scale that is NaN or infinite; quantize the model again")
    return PackedTensor(PackedMatrix(CODES[form], codes, scales, rows, columns))


def _put(model: nn.Module, own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Set each tensor wherever the model has its counterpart, so that ties are kept."""
    made = {id(own[name]): parameter_of(tensor) for name, tensor in found.items()}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) in made:
                setattr(module, name, made[id(buffer)].data)
