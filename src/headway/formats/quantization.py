"""Folders whose weights other programs have quantised (quantization_config): each matrix is stored in several tensors
with codes, scales and zero points, and is read exactly, as 32-bit floats.

Every scheme is a table: the endings of a matrix's tensors, and the function that decodes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.errors import UserError
from headway.formats.settings import Settings
from headway.formats.weights import Weights
from headway.io.json_files import parse_json

QUANTIZATION = ("quantization_config", "compression_config", "quantization")  # keys of config.json; the last is MLX's
_DAMAGE = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
)  # of parts that do not fit together
_MAX_STATE = 1 << 16  # bytes of the JSON that describes a matrix of bitsandbytes


@dataclass(frozen=True)
class Scheme:
    """How a matrix is stored: `codes` is the ending of the tensor that a quantised matrix always has, `others` are
    endings of further tensors, and `decode` returns the matrix from its tensors by their endings. `mark` separates them
    from the name of the matrix, which ends in `weight`.
    """

    codes: str
    others: tuple[str, ...]
    decode: Callable[[Mapping[str, Tensor]], Tensor]
    ignored: tuple[str, ...] = ()
    mark: str = "."
    weight: str = ".weight"


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Split 32-bit words into their codes, lowest bits first: (..., n) becomes (..., n * 32 / bits)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (words.view(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)


def _by_group(scales: Tensor, size: int) -> Tensor:
    """Repeat the last dimension so that it has `size` entries: one scale for each group of neighbours."""
    groups = scales.shape[-1]
    if size % groups:
        raise ValueError(f"{groups} groups for {size} inputs")
    return scales[..., torch.arange(size) // (size // groups)]


def awq(bits: int) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Lin et al. 2023, packed by AutoAWQ's GEMM kernel, whose words interleave their columns. Codes (in, out)."""
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])

    def columns(words: Tensor) -> Tensor:
        return unpacked(words, bits).unflatten(-1, (-1, len(order)))[..., order].flatten(-2)

    def decode(parts: Mapping[str, Tensor]) -> Tensor:
        codes, zeros, scales = columns(parts["qweight"]), columns(parts["qzeros"]), parts["scales"].float()
        size = codes.shape[0]
        return ((codes - _by_group(zeros.t(), size).t()) * _by_group(scales.t(), size).t()).t()

    return decode


def gptq(bits: int, version: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Frantar et al. 2022, packed by AutoGPTQ along the inputs. Zero points are stored less one, except in gptq_v2."""

    def decode(parts: Mapping[str, Tensor]) -> Tensor:
        codes = unpacked(parts["qweight"].t(), bits)  # (out, in)
        zeros = unpacked(parts["qzeros"], bits)  # (groups, out)
        if version == "gptq":
            zeros = (zeros + 1) & ((1 << bits) - 1)
        scales, size = parts["scales"].float(), codes.shape[1]
        group = parts["g_idx"].long() if "g_idx" in parts else _by_group(torch.arange(len(scales)), size)
        if group.shape != (size,) or group.min() < 0:
            raise ValueError(f"g_idx has shape {tuple(group.shape)}, but there are {size} inputs")
        return (codes - zeros[group].t()) * scales[group].t()

    return decode


def _scaled(weight: Tensor, scale: Tensor, block: tuple[int, int] | None = None) -> Tensor:
    """Multiply codes by one scale, one per row, one per group of a row, or one per block."""
    rows, columns = weight.shape
    scale = scale.float()
    if scale.numel() > 1:
        if scale.dim() == 1:
            scale = scale[:, None]
        high, wide = block or (rows // scale.shape[0], columns // scale.shape[1])
        if scale.shape != (-(-rows // high), -(-columns // wide)):
            raise ValueError(f"{tuple(scale.shape)} scales for blocks of {high} x {wide} in {rows} x {columns}")
        scale = scale[torch.arange(rows) // high][:, torch.arange(columns) // wide]
    return weight.float() * scale


def _float8(ending: str, block: tuple[int, int] | None = None) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def decode(parts: Mapping[str, Tensor]) -> Tensor:
        return _scaled(parts["weight"], parts[ending], block)

    return decode


def packed(bits: int) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The pack-quantized format of compressed-tensors: signed codes, moved to be positive, along the inputs."""

    def decode(parts: Mapping[str, Tensor]) -> Tensor:
        shape = parts["weight_shape"].tolist()
        if len(shape) != 2 or not 0 <= shape[1] <= parts["weight_packed"].shape[1] * (32 // bits):
            raise ValueError(f"weight_shape is {shape}")
        codes = unpacked(parts["weight_packed"], bits)[:, : shape[1]]
        if codes.shape[0] != shape[0]:
            raise ValueError(f"weight_shape is {shape}, but there are {codes.shape[0]} rows")
        group = parts["weight_g_idx"].long() if "weight_g_idx" in parts else None
        if group is not None and group.shape == (shape[1],) and (group == -1).all():
            group = None  # in the order of the inputs
        if group is not None and (group.shape != (shape[1],) or group.min() < 0):
            raise ValueError(f"weight_g_idx has shape {tuple(group.shape)}, but there are {shape[1]} inputs")
        zeros: Tensor | int = 1 << (bits - 1)
        if "weight_zero_point" in parts:
            by_group = unpacked(parts["weight_zero_point"].t(), bits).t()[: shape[0]]
            zeros = _by_group(by_group, shape[1]) if group is None else by_group[:, group]
        if group is None:
            return _scaled(codes - zeros, parts["weight_scale"])
        return (codes - zeros) * parts["weight_scale"].float()[:, group]

    return decode


def integers(parts: Mapping[str, Tensor]) -> Tensor:
    """8-bit codes with a scale for each row, and perhaps a zero point."""
    codes = parts["weight"].int()
    if "weight_zero_point" in parts:
        codes = codes - parts["weight_zero_point"].int().reshape(-1, 1)
    return _scaled(codes, parts["weight_scale"])


def llm_int8(parts: Mapping[str, Tensor]) -> Tensor:
    """Dettmers et al. 2022 (LLM.int8), as bitsandbytes saves it: the largest magnitude of each row is 127."""
    return parts["weight"].float() * (parts["SCB"].float() / 127)[:, None]


def four_bits(parts: Mapping[str, Tensor]) -> Tensor:
    """Dettmers et al. 2023 (QLoRA): codes of a table of 16 values, a scale for each block, itself perhaps in 8 bits."""
    state_name = next((name for name in parts if name.startswith("weight.quant_state.")), "weight.quant_state")
    if parts[state_name].numel() > _MAX_STATE:
        raise ValueError("the description of its blocks is too long")
    state = parse_json(bytes(parts[state_name].to(torch.uint8).tolist()))
    tables = [parts[name] for name in ("weight.quant_map", "weight.nested_quant_map") if name in parts]
    if [len(table) for table in tables] not in ([16], [16, 256]):
        raise ValueError("its tables should have 16 and 256 values")
    scales = parts["weight.absmax"]
    if "nested_blocksize" in state:
        nested = parts["weight.nested_absmax"].float()
        block = torch.arange(len(scales)) // int(state["nested_blocksize"])
        scales = parts["weight.nested_quant_map"].float()[scales.long()] * nested[block] + float(state["nested_offset"])
    bytes_of_codes = parts["weight"].reshape(-1)
    codes = torch.stack([bytes_of_codes >> 4, bytes_of_codes & 15], 1).reshape(-1).long()
    shape = tuple(map(int, state["shape"]))
    numbers = parts["weight.quant_map"].float()[codes]
    blocks = scales.float()[torch.arange(len(numbers)) // int(state["blocksize"])]
    count = torch.Size(shape).numel()
    if not 0 <= len(numbers) - count <= 1:
        raise ValueError(f"{len(numbers)} codes for shape {shape}")
    return (numbers * blocks)[:count].reshape(shape)


def mlx(group_size: int) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Affine codes along the inputs: scale x code + bias, for each group. The bits follow from the shapes."""

    def decode(parts: Mapping[str, Tensor]) -> Tensor:
        size = parts["scales"].shape[1] * group_size
        bits = parts["weight"].shape[1] * 32 // size
        if bits not in (2, 4, 8) or parts["weight"].shape[1] * 32 != size * bits:
            raise ValueError(f"{bits} bits")
        scales, biases = (_by_group(parts[end].float(), size) for end in ("scales", "biases"))
        return unpacked(parts["weight"], bits) * scales + biases

    return decode


def mxfp4(parts: Mapping[str, Tensor]) -> Tensor:
    """Matrices in blocks of 32 codes of 4 bits, two per byte, with a power of two for each (OCP 2023). Returned as
    (experts, in, out), as gpt-oss multiplies them.
    """
    blocks, scales = parts["blocks"], parts["scales"]
    if blocks.dim() != 4 or blocks.shape[:-1] != scales.shape or blocks.dtype != torch.uint8:
        raise ValueError(f"blocks of shape {tuple(blocks.shape)} with scales of shape {tuple(scales.shape)}")
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).int()
    exponents = scales.int().unsqueeze(-1) - 127
    return torch.ldexp(_FP4[codes], exponents).flatten(-2).transpose(1, 2)


_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_FP4 = torch.cat([_FP4, -_FP4])


class QuantizedWeights:
    """Weights whose quantised matrices are decoded when they are read; other tensors are as stored (Weights)."""

    def __init__(self, weights: Weights, scheme: Scheme) -> None:
        self.source, self._weights, self._scheme = weights.source, weights, scheme
        names = set(weights.names())
        ending = scheme.mark + scheme.codes
        bases = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        self._parts: dict[str, dict[str, str]] = {}
        self._decoded: tuple[str, Tensor] | None = None  # a stack, whose items are read one by one
        for base in bases:
            stored = {end: base + scheme.mark + end for end in (scheme.codes, *scheme.others)}
            parts = {end: name for end, name in stored.items() if name in names}
            states = [name for name in names if name.startswith(f"{base}.weight.quant_state.")] if base else []
            parts |= {name.removeprefix(f"{base}."): name for name in states}
            if len(parts) > 1 or scheme.codes != "weight":
                self._parts[base + scheme.weight] = parts
                names -= {*parts.values(), *(f"{base}.{end}" for end in scheme.ignored)}
        if not self._parts:
            raise UserError(
                f"{self.source} has no quantised weights, although its config.json describes them; remove "
                f"{QUANTIZATION[0]} from config.json, or download the folder again"
            )
        self._plain = names

    def names(self) -> Collection[str]:
        return self._plain | self._parts.keys()

    def get(self, name: str) -> Tensor:
        if name not in self._parts:
            tensor = self._weights.get(name)
            if tensor.dtype.itemsize == 1:
                raise UserError(f"{self.source}: {name} has no scales, but its numbers have 8 bits; download it again")
            return tensor
        if self._decoded is not None and self._decoded[0] == name:
            return self._decoded[1]
        parts = {end: self._weights.get(stored) for end, stored in self._parts[name].items()}
        unusable = [
            end
            for end, part in parts.items()
            if part.dtype in (torch.float16, torch.bfloat16, torch.float32) and not part.isfinite().all()
        ]
        if unusable:
            raise UserError(f"{self.source}: {name} has scales that are not finite ({unusable[0]}); download it again")
        try:
            matrix = self._scheme.decode(parts).float()
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(
                f"{self.source}: the parts of {name} do not fit together ({reason}); download it again"
            ) from None
        self._decoded = (name, matrix) if matrix.dim() == 3 else None
        return matrix

    def done(self, name: str) -> None:
        self._decoded = None
        for stored in self._parts[name].values() if name in self._parts else (name,):
            self._weights.done(stored)


def find_scheme(settings: Settings) -> Scheme | None:
    """The scheme of a config.json; None if its weights are not quantised. UserError for one that is not supported."""
    key = next((name for name in QUANTIZATION if settings.values.get(name)), None)
    if key is None:
        return None
    part = settings.part(key)
    method = part.get("quant_method", str, "mlx" if "group_size" in part.values else "")
    if method not in _METHODS:
        known = ", ".join(_METHODS)
        raise UserError(
            f"{settings.source}: weights quantised by {method[:40]!r} are not supported (known: {known}); "
            "get the model in 16 bits"
        )
    return _METHODS[method](part)


def _bits(settings: Settings, allowed: Collection[int], default: int | None = None) -> int:
    bits = settings.get("bits", int, default)
    if bits not in allowed:
        raise UserError(f"{settings.source}: bits is {bits}; supported are {', '.join(map(str, allowed))}")
    return bits


def _awq(settings: Settings) -> Scheme:
    version = settings.get("version", str, "gemm").lower()
    if version != "gemm":
        raise UserError(f"{settings.source}: version is {version[:40]!r}; AWQ models of version gemm are supported")
    return Scheme("qweight", ("qzeros", "scales"), awq(_bits(settings, (4,))))


def _gptq(settings: Settings) -> Scheme:
    version = settings.get("checkpoint_format", str, "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise UserError(f"{settings.source}: checkpoint_format is {version[:40]!r}; gptq and gptq_v2 are supported")
    return Scheme("qweight", ("qzeros", "scales", "g_idx"), gptq(_bits(settings, (2, 4, 8)), version))


def _fp8(settings: Settings) -> Scheme:
    block = settings.get("weight_block_size", list[int], [])
    if block and (len(block) != 2 or min(block) < 1):
        raise UserError(f"{settings.source}: weight_block_size is {block}; use two sizes above 0")
    return Scheme("weight", ("weight_scale_inv",), _float8("weight_scale_inv", (block[0], block[1]) if block else None))


def _compressed(settings: Settings) -> Scheme:
    kind = settings.get("format", str, "")
    groups = settings.part("config_groups")
    weights = [groups.part(name).part("weights") for name in groups.values]
    bits = {weight.get("num_bits", int, 8) for weight in weights} or {8}
    match kind:
        case "pack-quantized" if bits <= {2, 4, 8} and len(bits) == 1:
            others = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
            return Scheme("weight_packed", others, packed(bits.pop()))
        case "int-quantized" | "float-quantized" | "naive-quantized" if bits == {8}:
            ignored = ("input_scale", "input_zero_point")
            return (
                Scheme("weight", ("weight_scale", "weight_zero_point"), integers, ignored)
                if any(weight.get("type", str, "int") == "int" for weight in weights)
                else Scheme("weight", ("weight_scale",), _float8("weight_scale"), (*ignored, "weight_zero_point"))
            )
    raise UserError(
        f"{settings.source}: format {kind[:40]!r} with {sorted(bits)} bits is not supported; get the model in 16 bits"
    )


def _bitsandbytes(settings: Settings) -> Scheme:
    if settings.get("load_in_4bit", bool, False):
        others = ("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
        return Scheme("weight", others, four_bits)
    return Scheme("weight", ("SCB",), llm_int8, ("weight_format",))


_METHODS: dict[str, Callable[[Settings], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": lambda _: Scheme("weight", ("weight_scale",), _float8("weight_scale"), ("input_scale_ub",)),
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": lambda _: Scheme("blocks", ("scales",), mxfp4, (), "_", ""),
    "mlx": lambda settings: Scheme("weight", ("scales", "biases"), mlx(settings.get("group_size", int))),
}
