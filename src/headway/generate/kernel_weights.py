"""Weights in int8 and int4 that torch's own kernels multiply with vectors in bf16, on a GPU or a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headway.engine.packed_weights import PackedMatrix, PackedTensor, pack, unpack
from headway.engine.tiles import FP32, GROUP, INT4, INT8
from headway.formats.deferred import computed
from headway.formats.native import Weights, parameter_of, replace_parameters
from headway.generate.torch_weights import matrices_of_layers, store_in_bf16
from headway.nn.models.embeds import TokenEmbed

_ATEN = torch.ops.aten
_ROWS = 16  # the kernels for int4 multiply this many rows at a time


class KernelWeight(Tensor):
    """A matrix [E, D] stored in few bits that looks like one in bf16. Linear layers, and embeddings in int8, use it
    directly; any other operation restores its values first. Those of N experts are also stored as one [N, E, D], which
    `product` multiplies with x [N, R, D], and of which an index selects some.
    """

    codes: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, shape: torch.Size) -> Any:
        tensor: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16, device=codes.device)  # type: ignore[attr-defined]
        tensor.codes, tensor.scales = codes, scales
        return tensor

    def __init__(self, *_: Any) -> None:
        return None

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}({tuple(self.shape)}, {self.codes.nbytes + self.scales.nbytes} bytes)"

    def product(self, x: Float[Tensor, "*N R D"]) -> Float[Tensor, "*N R E"]:
        """`x @ self.mT` in bf16, with sums in fp32."""
        if len(self.shape) == 2:
            return self._multiply(x)
        return torch.stack([self._select(n)._multiply(rows.contiguous()) for n, rows in enumerate(x)])

    def values(self) -> Float[Tensor, "*N E D"]:
        """The weights in bf16."""
        identity = torch.eye(self.shape[-1], dtype=torch.bfloat16, device=self.device)
        return self.product(identity.expand(*self.shape[:-2], -1, -1)).mT.contiguous()

    def _multiply(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R E"]:
        """`product` by a kernel for one matrix."""
        raise NotImplementedError

    def _select(self, index: Any) -> Self:
        """The matrices at an index among N."""
        codes = self.codes[index]
        shape = torch.Size((*codes.shape[: codes.dim() - self.codes.dim() + 1], *self.shape[1:]))
        return type(self)(codes, self.scales[index], shape)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], KernelWeight):
            x, weight, *bias = args
            y = weight.product(x.reshape(-1, x.shape[-1]).contiguous()).view(*x.shape[:-1], -1)
            return y + bias[0] if bias and bias[0] is not None else y
        if func is F.embedding and isinstance(args[1], Int8Weight):
            ids, table = args[0], args[1]  # the other arguments are for training
            codes, scales = (part.index_select(0, ids.reshape(-1)) for part in (table.codes, table.scales))
            return (codes * scales[:, None]).view(*ids.shape, -1)
        if func is torch.stack and len({type(part) for part in args[0]}) == 1:
            codes, scales = (torch.stack(parts) for parts in zip(*((part.codes, part.scales) for part in args[0])))
            return type(args[0][0])(codes, scales, torch.Size((len(args[0]), *args[0][0].shape)))
        if func is Tensor.__getitem__ and isinstance(args[0], KernelWeight) and len(args[0].shape) == 3:
            return args[0]._select(args[1])
        if func is Tensor.detach:
            return type(args[0])(args[0].codes, args[0].scales, args[0].shape)
        if func is Tensor.to:
            return args[0]  # it is made on its device
        if func.__name__ not in ("__get__", "__set__", "requires_grad_", "dim", "size", "numel"):
            args, kwargs = tree_map(_values, args), tree_map(_values, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(_values, args), **tree_map(_values, kwargs or {}))


def _values(item: Any) -> Any:
    return item.values() if isinstance(item, KernelWeight) else item


class Int8Weight(KernelWeight):
    """A scale per row: codes Int8[*N, E, D], scales BF16[*N, E]."""

    @staticmethod
    def of(matrix: Float[Tensor, "E D"], device: torch.device) -> Int8Weight:
        values = matrix.float()
        scales = (values.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
        codes = (values / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return Int8Weight(codes.to(device), scales.to(device), matrix.shape)

    def _multiply(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R E"]:
        return _ATEN._weight_int8pack_mm(x, self.codes, self.scales)

    def values(self) -> Float[Tensor, "*N E D"]:
        return (self.codes * self.scales.float()[..., None]).bfloat16()


class Int4Weight(KernelWeight):
    """A scale per 64 columns: codes in the layout of the device's kernel, scales and offsets BF16[*N, D / 64, E, 2].

    A weight is (code - 8) x scale, with the codes of the engine and its scales rounded to bf16; the offsets are 0.
    """

    @staticmethod
    def of(packed: PackedMatrix, device: torch.device) -> Int4Weight:
        assert packed.scales is not None
        scales = packed.scales.transpose(1, 2).flatten(0, 1)[: packed.rows]
        groups = unpack(packed).unflatten(1, (-1, GROUP))
        steps = torch.where(scales[..., None] == 0, 0.0, groups / scales[..., None])
        codes = steps.round().add(8).flatten(1).int()
        pairs = torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).contiguous().bfloat16()
        if device.type == "cpu":
            laid_out = _ATEN._convert_weight_to_int4pack_for_cpu(codes, 1)
        else:
            halves = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
            laid_out = _ATEN._convert_weight_to_int4pack(halves.to(device), GROUP // _ROWS)
        return Int4Weight(laid_out, pairs.to(device), torch.Size((packed.rows, packed.columns)))

    def _multiply(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R E"]:
        kernel: Callable[..., Tensor] = _ATEN._weight_int4pack_mm
        if x.device.type == "cpu":
            kernel = _ATEN._weight_int4pack_mm_for_cpu
        return kernel(x, self.codes, GROUP, self.scales)


@torch.no_grad()
def store_for_kernels(model: nn.Module, dtype: Weights | None, device: torch.device) -> None:
    """Move a model to a device, its matrices in int8 or int4 for torch's kernels, for inference; None for `dtype`: each
    in the format in which the engine packed it.

    Token tables are in int8, also those that a head shares. Matrices whose shape no kernel has stay in bf16. Matrices
    that the engine packed in int4 keep their codes.
    """
    tables = {id(module.table) for module in model.modules() if isinstance(module, TokenEmbed)}
    stored: dict[int, Tensor] = {}
    for key, matrix in matrices_of_layers(model).items():
        if key not in tables and (matrix.shape[0] % _ROWS or matrix.shape[1] % GROUP):
            continue
        packed = matrix.packed if isinstance(matrix, PackedTensor) else None
        kind = INT4 if dtype == "int4" else INT8 if dtype == "int8" else packed.kind if packed else FP32
        if kind == INT4 and key not in tables:
            stored[key] = parameter_of(Int4Weight.of(packed or pack(matrix, "int4"), device))
        elif kind != FP32:
            stored[key] = parameter_of(Int8Weight.of(computed(matrix.detach()), device))
    replace_parameters(model, stored)
    store_in_bf16(model)
    others = [parameter for parameter in model.parameters() if not isinstance(parameter, KernelWeight)]
    replace_parameters(model, {id(part): parameter_of(computed(part.detach()).to(device)) for part in others})
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
