"""Weights in the engine's layout: fp32 as they are, int8 and int4 in tiles; as tensors, and on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headway.config import to_dict
from headway.engine.machine import announce_compilation
from headway.engine.pool import max_threads, pool
from headway.engine.products import SCRATCH_BYTES, packed_product, unpack_rows
from headway.engine.tiles import FP32, GROUP, INT4, INT8, TILE, TILE4, TILE8
from headway.engine.tiling import pack_tiles, unpack_tiles
from headway.errors import UserError
from headway.formats.deferred import DeferredTensor, computed, deferred_parts
from headway.formats.native import (
    QUANTISED,
    check_tensors,
    config_of,
    named_tensors,
    parameter_of,
    quantisable,
    replace_parameters,
    total_bytes,
    uninitialized_model,
)
from headway.formats.native import Weights as Format
from headway.formats.tensorfile import read_tensors, write_tensors
from headway.io.outputs import check_free_disk

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
        tensors = (self.weights, self.scales)
        return sum(part.numel() * part.element_size() for part in tensors if part is not None)


def pack(matrix: Float[Tensor, "R C"], dtype: Format, name: str = "a weight") -> PackedMatrix:
    """Raises UserError, with `name`, for weights that are NaN or infinite."""
    rows, columns = matrix.shape
    values = computed(matrix.detach()).float().contiguous()
    check_finite(name, values)
    if dtype == "fp32":
        return PackedMatrix(FP32, values, None, rows, columns)
    codes, scales = _unset_parts(matrix.shape, dtype)
    fields = (CODES[dtype], values.data_ptr(), rows, columns, codes.data_ptr(), scales.data_ptr())
    threads = pool(max_threads())
    with announce_compilation(pack_tiles):
        threads.run(lambda thread: pack_tiles(*fields, thread, threads.threads))
    return PackedMatrix(CODES[dtype], codes, scales, rows, columns)


def _unset_parts(shape: torch.Size, dtype: Format, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Memory for the codes and scales of a matrix."""
    tile_rows, groups = -(-shape[0] // TILE), -(-shape[1] // GROUP)
    size, code_dtype = (TILE8, torch.int8) if dtype == "int8" else (TILE4, torch.uint8)
    codes = torch.empty(tile_rows, groups, size, dtype=code_dtype, device=device)
    return codes, torch.empty(tile_rows, groups, TILE, device=device)


def unpack(packed: PackedMatrix) -> Float[Tensor, "R C"]:
    """The weights as the engine's products use them."""
    if packed.scales is None:
        return packed.weights
    tile_rows, groups = packed.scales.shape[:2]
    values = torch.empty(tile_rows * TILE, groups * GROUP)
    unpack_block(packed, slice(0, tile_rows), slice(0, groups), values)
    return values[: packed.rows, : packed.columns].contiguous()


def unpack_block(packed: PackedMatrix, tile_rows: slice, groups: slice, out: Float[Tensor, "R C"]) -> None:
    """Unpack rows of tiles and groups of columns of a quantised matrix into `out`, with their padding."""
    assert packed.scales is not None  # fp32 is never packed
    first, count = tile_rows.start, tile_rows.stop - tile_rows.start
    codes, scales, all_groups = packed.weights[first], packed.scales[first], packed.scales.shape[1]
    fields = (packed.kind, codes.data_ptr(), scales.data_ptr(), all_groups, count)
    fields += (groups.start, groups.stop - groups.start, out.data_ptr())
    threads = _threads(out.numel())
    threads.run(lambda thread: unpack_tiles(*fields, thread, threads.threads))


class PackedTensor(DeferredTensor):
    """A matrix [R, C] stored in 8 or 4 bits that looks like one in fp32. Linear layers and embeddings use it directly;
    any other operation unpacks it first, which is slow but correct.
    """

    packed: PackedMatrix

    @staticmethod
    def __new__(cls, packed: PackedMatrix) -> PackedTensor:
        shape = packed.rows, packed.columns
        tensor = super().__new__(cls, shape, torch.float32, partial(unpack, packed))  # type: ignore[call-arg]
        tensor.packed = packed  # type: ignore[attr-defined]
        return tensor  # type: ignore[return-value]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PackedTensor({self.packed.rows} x {self.packed.columns}, {self.packed.bytes} bytes)"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], PackedTensor):
            return args[1].linear(args[0], *args[2:], **kwargs)
        if func is F.embedding and isinstance(args[1], PackedTensor):
            return look_up(args[1].packed, args[0])  # the other arguments are for training
        if func is torch.Tensor.detach:  # otherwise torch imports its distributed tensors, 37 MB
            return args[0].alias()
        if torch.is_inference_mode_enabled() and func.__name__ not in ("__get__", "detach"):
            # Views of tensors created outside this mode cannot be made below.
            args, kwargs = tree_map(computed, args), tree_map(computed, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def alias(self) -> PackedTensor:
        return type(self)(self.packed)

    def linear(self, x: Float[Tensor, "... C"], bias: Tensor | None = None) -> Float[Tensor, "... R"]:
        """The linear layer with this weight, whose inputs are quantised to 8 bits."""
        return _linear(x, self, bias)


def quantise(model: nn.Module, formats: Format | Mapping[str, Format]) -> nn.Module:
    """Convert the `quantisable` matrices of a model in place: all to one format, or each to that of its name (default:
    fp32). Afterwards the model is for inference only.
    """
    if formats == "fp32":
        return model
    packed_parameters: dict[int, nn.Parameter] = {}
    for name, weight in quantisable(model).items():
        dtype = formats if isinstance(formats, str) else formats.get(name, "fp32")
        if isinstance(weight, PackedTensor):
            raise UserError(f"the weights are already in int8 or int4; load the model again for {dtype}")
        if dtype != "fp32":
            with torch.no_grad():
                packed_parameters[id(weight)] = parameter_of(PackedTensor(pack(weight, dtype, name)))
    replace_parameters(model, packed_parameters)
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, PackedTensor):
            parameter.data = _finite_floats(name, parameter.data)  # unpacked weights of an fp16 file
    return model


def packed_bytes(matrix: Tensor, dtype: Format) -> int:
    """Bytes of a matrix in a number format, with its scales and padding."""
    if dtype == "fp32":
        return 4 * matrix.numel()
    return sum(part.nbytes for part in _unset_parts(matrix.shape, dtype, "meta"))


def _finite_floats(name: str, tensor: Tensor) -> Tensor:
    values = computed(tensor)
    check_finite(name, values)
    return values.float()


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise UserError for a tensor with NaN or infinity, which quantised products could hide."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):  # isfinite of the tensor would copy it
        raise UserError(f"{name} contains NaN or infinity; use a checkpoint with valid weights")


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


def _linear(x: Float[Tensor, "... C"], weight: PackedTensor, bias: Tensor | None = None) -> Float[Tensor, "... R"]:
    """The product with inputs quantised to 8 bits, from the packed weights."""
    packed, rows = weight.packed, x.reshape(-1, x.shape[-1]).float().contiguous()
    offset = None if bias is None else bias.detach().float().contiguous()
    batch, groups = rows.shape[0], -(-packed.columns // GROUP)
    threads = _threads(batch * packed.rows * packed.columns)
    q, scales = np.empty((batch, groups * GROUP), np.int8), np.empty((batch, groups), np.float32)
    corrections, y = np.empty((batch, groups), np.int32), torch.empty(batch, packed.rows)
    scratch = np.empty(SCRATCH_BYTES * threads.threads, np.uint8)
    addresses = (rows.data_ptr(), q.ctypes.data, scales.ctypes.data, corrections.ctypes.data, y.data_ptr())
    start = 0 if offset is None else offset.data_ptr()
    fields = (packed.kind, *packed.addresses, start, *addresses, packed.rows, packed.columns, batch)
    threads.run(lambda thread: packed_product(*fields, scratch.ctypes.data, threads.counter, thread, threads.threads))
    return y.view(*x.shape[:-1], packed.rows)


def _threads(work: int) -> Any:
    """A single thread, for work that it finishes before a second one would wake up."""
    return pool(max_threads() if work > 1 << 16 else 1)


VERSION = "2"
_CODES, _SCALES = ".codes", ".scales"
_MIXED = "mixed"  # number format of a file whose matrices have several


def save_quantised(model: nn.Module, formats: Format | Mapping[str, Format], directory: Path) -> int:
    """Write `directory`/quantized.safetensors atomically; return the bytes of its weights.

    Matrices that are not quantised yet are converted to their formats, as by `quantise`, one by one while the file is
    written. Raises UserError before that if the disk is too small.
    """
    matrices = quantisable(model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model):
        dtype = formats if isinstance(formats, str) else formats.get(name, "fp32")
        if isinstance(tensor, PackedTensor):
            assert tensor.packed.scales is not None  # fp32 is never packed
            tensors[name + _CODES], tensors[name + _SCALES] = tensor.packed.weights, tensor.packed.scales
        elif name in matrices and dtype != "fp32":
            like = _unset_parts(tensor.shape, dtype, "meta")
            parts = deferred_parts(like, partial(_pack_parts, tensor, dtype, name))
            tensors[name + _CODES], tensors[name + _SCALES] = parts
        elif isinstance(tensor, nn.Parameter):
            tensors[name] = DeferredTensor(tensor.shape, torch.float32, partial(_finite_floats, name, tensor.detach()))
        else:
            tensors[name] = tensor.detach()
    size = total_bytes(tensors.values())
    check_free_disk(directory.parent, size)
    config: Any = model.config
    header = {
        "format": "headway-quantized",
        "version": VERSION,
        "weights": formats if isinstance(formats, str) else _MIXED,
        "group": str(GROUP),
        "numbers": str(_parameter_count(model)),
        "config": json.dumps(to_dict(config)),
    }
    write_tensors(directory / QUANTISED, tensors, header)
    return size


def _pack_parts(matrix: Tensor, dtype: Format, name: str) -> tuple[Tensor, Tensor]:
    packed = pack(matrix, dtype, name)
    assert packed.scales is not None
    return packed.weights, packed.scales


def load_quantised(directory: Path, wanted: Format | None = None) -> nn.Module:
    """The model in `directory`, in evaluation mode. Raises UserError for a file that is damaged, of another version, or
    not in the `wanted` format.
    """
    path = Path(directory) / QUANTISED
    tensors, header = read_tensors(path, "quantize the model again")
    if header.get("format") != "headway-quantized":
        raise UserError(
            f"{path} has format {header.get('format')!r}, not 'headway-quantized'; quantize the model again"
        )
    if header.get("version") != VERSION or header.get("group") != str(GROUP):
        raise UserError(
            f"{path} has version {header.get('version')} with groups of {header.get('group')}, but this headway reads "
            f"{VERSION} with {GROUP}; quantize the model again"
        )
    dtype: Any = header.get("weights")
    if dtype not in (*get_args(Format), _MIXED) or dtype == "fp32":
        raise UserError(f"{path} has weights in {dtype!r}, not in int8 or int4; quantize the model again")
    if wanted not in (None, dtype):
        raise UserError(f"{path} has weights in {dtype}, not {wanted}; quantize the original model to {wanted}")
    model = uninitialized_model(config_of(header, path, len(tensors)), path.stat().st_size, str(path))
    if header.get("numbers") != str(_parameter_count(model)):  # tiles are padded, so their shapes do not show it
        raise UserError(
            f"{path} has {header.get('numbers')} parameters, but its configuration needs {_parameter_count(model)}; "
            "quantize the model again"
        )
    expected = dict(named_tensors(model))
    loaded: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        if name + _CODES in tensors:
            codes, scales = tensors.pop(name + _CODES), tensors.pop(name + _SCALES, None)
            kind: Format = dtype if dtype != _MIXED else "int4" if codes.dtype == torch.uint8 else "int8"
            loaded[name] = _packed(kind, name, codes, scales, tensor.shape, path)
        elif name in tensors:
            loaded[name] = tensors.pop(name)
            check_finite(f"{path}: {name!r}", loaded[name])
    check_tensors(expected, {**loaded, **tensors}, path)
    # Set each tensor wherever the model has its counterpart, so that ties are kept.
    parameters = {id(expected[name]): parameter_of(tensor) for name, tensor in loaded.items()}
    replace_parameters(model, parameters)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) in parameters:
                setattr(module, name, parameters[id(buffer)].data)
    return model.eval().requires_grad_(False)


def _parameter_count(model: nn.Module) -> int:
    """The number of a model's parameters, tied ones once, as if none were packed."""
    return sum(tensor.numel() for _, tensor in named_tensors(model))


def _packed(
    dtype: Format, name: str, codes: Tensor, scales: Tensor | None, shape: torch.Size, path: Path
) -> PackedTensor:
    """Raises UserError for codes or scales that do not match this shape."""
    if len(shape) != 2:
        raise UserError(
            f"{path}: {name!r} has codes, but its shape is {tuple(shape)} and only matrices are quantized; "
            "quantize the model again"
        )
    rows, columns = shape
    parts = zip((codes, scales), _unset_parts(shape, dtype, "meta"))
    if not all(part is not None and (part.shape, part.dtype) == (like.shape, like.dtype) for part, like in parts):
        raise UserError(
            f"{path}: {name!r} has codes of {codes.dtype} {tuple(codes.shape)}, which do not match {dtype} weights of "
            f"{rows} x {columns} and their scales; quantize the model again"
        )
    assert scales is not None
    if not bool(torch.isfinite(scales).all()):
        raise UserError(f"{path}: {name!r} has a scale that is NaN or infinite; quantize the model again")
    return PackedTensor(PackedMatrix(CODES[dtype], codes, scales, rows, columns))
