"""Quantised weights as tensors, which modules use as they are in products and look-ups, and never hold whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headway.engine.packing import Format, Packed, pack, unpack
from headway.engine.pool import pool
from headway.engine.products import ROOM, packed_product, unpack_rows
from headway.engine.tiles import GROUP
from headway.errors import UserError
from headway.models.embeds import TokenEmbed
from headway.parts.projection import Projection


class PackedTensor(torch.Tensor):
    """A matrix [R, C] that is held in 8 or 4 bits and looks like one in fp32. Linear layers and look-ups read it as it
    is; for any other operation it is unpacked, which is slow and right.
    """

    packed: Packed

    @staticmethod
    def __new__(cls, packed: Packed) -> PackedTensor:
        made = torch.Tensor._make_wrapper_subclass(cls, (packed.rows, packed.columns), dtype=torch.float32)
        made.packed = packed
        return made

    def __init__(self, packed: Packed) -> None:
        return None

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PackedTensor({self.packed.rows} x {self.packed.columns}, {self.packed.bytes} bytes)"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], PackedTensor):
            return _linear(*args, **kwargs)
        if func is F.embedding and isinstance(args[1], PackedTensor):
            return look_up(args[1].packed, args[0])  # its other arguments are for training
        if torch.is_inference_mode_enabled() and func.__name__ not in ("__get__", "detach"):
            # Parts of a tensor that came from outside of this mode cannot be made below.
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
    """The model with the matrices of its linear layers, embedding and heads in `form`, in place; tied ones once.

    Positions, norms, biases and what recurrences multiply their state by stay as they are. The model is for use, not
    for training, afterwards.
    """
    if form == "fp32":
        return model
    made: dict[int, nn.Parameter] = {}
    for module, name, weight in list(_matrices(model)):
        if id(weight) not in made:
            with torch.no_grad():
                made[id(weight)] = parameter_of(PackedTensor(pack(weight, form)))
        setattr(module, name, made[id(weight)])
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, PackedTensor):
            check_numbers(name, parameter)
            parameter.data = parameter.data.float()  # weights of a file in fp16 that are not packed
    return model


def check_numbers(name: str, tensor: Tensor) -> None:
    """UserError for a tensor that holds what is no number, from which rounded products could make one."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{name} holds a NaN or an infinity; use a checkpoint with sound weights")


def parameter_of(tensor: Tensor) -> nn.Parameter:
    """For use alone. In inference mode a tensor of a class of its own makes no parameter."""
    with torch.inference_mode(False):
        return nn.Parameter(tensor, requires_grad=False)


def _matrices(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    tables = {id(m.table) for m in model.modules() if isinstance(m, TokenEmbed)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if (isinstance(module, Projection) and name == "weight") or id(parameter) in tables:
                yield module, name, parameter


def look_up(packed: Packed, ids: Int[Tensor, "..."]) -> Float[Tensor, "... C"]:
    """Rows of a packed matrix."""
    rows = ids.reshape(-1).long().contiguous()
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= packed.rows):
        raise IndexError(f"index out of range: a table has rows 0 to {packed.rows - 1}")
    out = torch.empty(rows.numel(), packed.columns)
    _unpack(packed, rows, out)
    return out.view(*ids.shape, packed.columns)


def _unpack(packed: Packed, rows: Tensor, out: Tensor) -> None:
    fields = (packed.kind, *packed.addresses, rows.data_ptr(), rows.numel(), packed.columns)
    threads = _threads(rows.numel() * packed.columns)
    threads.run(lambda thread: unpack_rows(*fields, out.data_ptr(), thread, threads.threads))


def _linear(x: Tensor, weight: PackedTensor, bias: Tensor | None = None) -> Tensor:
    packed, rows = weight.packed, x.reshape(-1, x.shape[-1]).float().contiguous()
    return _product(packed, rows, bias).view(*x.shape[:-1], packed.rows)


def _product(packed: Packed, x: Float[Tensor, "B C"], bias: Tensor | None) -> Float[Tensor, "B R"]:
    """With numbers rounded to 8 bits, from the packed weights."""
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
    """One thread for what is done before a second would wake."""
    return pool(torch.get_num_threads() if work > 1 << 16 else 1)
