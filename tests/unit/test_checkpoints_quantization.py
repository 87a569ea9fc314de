"""Folders that other programs have quantised: every scheme is decoded exactly, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headway.app.cli import main as cli
from headway.errors import UserError
from headway.formats.published import load_published, published_config, save_published
from headway.nn.models import build
from headway.nn.models.presets import decoder

LLAMA = decoder(64, 1, 4, 2, 128, 32, tie=False)
GROUP = 32
Parts = tuple[Tensor, dict[str, Tensor]]  # the matrix that the parts stand for, and the parts by their endings
Make = Callable[[int, int, torch.Generator], Parts]


def codes_of(shape: tuple[int, ...], bits: int, draws: torch.Generator) -> Tensor:
    return torch.randint(0, 1 << bits, shape, generator=draws, dtype=torch.int64)


def words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack the last dimension into 32-bit words, one code after the other, the first in the lowest bits."""
    count = 32 // bits
    packed = torch.zeros(*codes.shape[:-1], codes.shape[-1] // count, dtype=torch.int64)
    for word in range(packed.shape[-1]):
        for place in range(count):
            column = word * count + (order[place] if order else place)
            packed[..., word] |= codes[..., column] << (bits * place)
    return (packed - ((packed >> 31) << 32)).to(torch.int32)  # as signed numbers


def scales_of(shape: tuple[int, ...], draws: torch.Generator, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(shape, generator=draws) * 0.1 + 0.01).to(dtype)


def awq(rows: int, columns: int, draws: torch.Generator) -> Parts:
    groups = columns // GROUP
    codes, zeros = codes_of((columns, rows), 4, draws), codes_of((groups, rows), 4, draws)
    scales = scales_of((groups, rows), draws)
    matrix = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            group = column // GROUP
            matrix[row, column] = float(codes[column, row] - zeros[group, row]) * float(scales[group, row])
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return matrix, {"qweight": words(codes, 4, order), "qzeros": words(zeros, 4, order), "scales": scales}


def gptq(bits: int, act_order: bool, version: str) -> Make:
    def made(rows: int, columns: int, draws: torch.Generator) -> Parts:
        groups = columns // GROUP
        codes, zeros = codes_of((columns, rows), bits, draws), codes_of((groups, rows), bits, draws)
        scales, group = scales_of((groups, rows), draws), torch.arange(columns) // GROUP
        if act_order:
            group = group[torch.randperm(columns, generator=draws)]
        matrix = ((codes - zeros[group]) * scales.float()[group]).T
        stored = zeros if version == "gptq_v2" else (zeros - 1) % (1 << bits)
        parts = {"qweight": words(codes.T, bits).T.contiguous(), "qzeros": words(stored, bits), "scales": scales}
        return matrix, parts | ({"g_idx": group.to(torch.int32)} if act_order else {})

    return made


def fp8(ending: str, block: tuple[int, int]) -> Make:
    def made(rows: int, columns: int, draws: torch.Generator) -> Parts:
        high, wide = min(block[0], rows), min(block[1], columns)
        codes = torch.randn(rows, columns, generator=draws).to(torch.float8_e4m3fn)
        scales = scales_of((-(-rows // high), -(-columns // wide)), draws, torch.float32)
        matrix = torch.empty(rows, columns)
        for row in range(rows):
            for column in range(columns):
                matrix[row, column] = codes[row, column].float() * scales[row // high, column // wide]
        return matrix, {"weight": codes, ending: scales}

    return made


def packed(bits: int, symmetric: bool, order: str = "") -> Make:
    def made(rows: int, columns: int, draws: torch.Generator) -> Parts:
        groups, group = columns // GROUP, torch.arange(columns) // GROUP
        if order == "by activation":
            group = group[torch.randperm(columns, generator=draws)]
        codes, scales = codes_of((rows, columns), bits, draws), scales_of((rows, groups), draws, torch.bfloat16)
        zeros = torch.full((rows, groups), 1 << (bits - 1)) if symmetric else codes_of((rows, groups), bits, draws)
        parts = {"weight_packed": words(codes, bits), "weight_scale": scales}
        parts["weight_shape"] = torch.tensor([rows, columns])
        if order:  # an index that was never set contains -1
            parts["weight_g_idx"] = (group if order == "by activation" else torch.full_like(group, -1)).to(torch.int32)
        if not symmetric:
            parts["weight_zero_point"] = words(zeros.T, bits).T.contiguous()
        return (codes - zeros[:, group]) * scales.float()[:, group], parts

    return made


def int8(ending: str, divisor: float) -> Make:
    def made(rows: int, columns: int, draws: torch.Generator) -> Parts:
        codes = torch.randint(-127, 128, (rows, columns), generator=draws, dtype=torch.int8)
        scales = scales_of((rows, 1), draws, torch.float32)
        parts = {"weight": codes, ending: scales if divisor == 1 else scales[:, 0].contiguous()}
        return codes.float() * (scales / divisor), parts

    return made


def nf4(nested: bool) -> Make:
    def made(rows: int, columns: int, draws: torch.Generator) -> Parts:
        count = rows * columns
        codes, table = codes_of((count,), 4, draws), torch.linspace(-1, 1, 16)
        scales = scales_of((count // 64,), draws, torch.float32)
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
        parts: dict[str, Tensor] = {"weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]}
        parts |= {"weight.quant_map": table, "weight.absmax": scales}
        if nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
            parts["weight.absmax"] = torch.randint(0, 256, scales.shape, generator=draws, dtype=torch.uint8)
            parts["weight.nested_quant_map"] = torch.linspace(-1, 1, 256)
            parts["weight.nested_absmax"] = scales_of((-(-len(scales) // 256),), draws, torch.float32)
            outer = parts["weight.nested_absmax"][torch.arange(len(scales)) // 256]
            scales = parts["weight.nested_quant_map"][parts["weight.absmax"].long()] * outer + 0.05
        text = list(json.dumps(state).encode())
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(text, dtype=torch.uint8)
        return (table[codes] * scales[torch.arange(count) // 64]).view(rows, columns), parts

    return made


def mlx(bits: int) -> Make:
    def made(rows: int, columns: int, draws: torch.Generator) -> Parts:
        groups, group = columns // GROUP, torch.arange(columns) // GROUP
        codes, scales = codes_of((rows, columns), bits, draws), scales_of((rows, groups), draws)
        biases = -scales * 3
        matrix = codes * scales.float()[:, group] + biases.float()[:, group]
        return matrix, {"weight": words(codes, bits).view(torch.uint32), "scales": scales, "biases": biases}

    return made


def compressed(kind: str, bits: int, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", **weights}}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups}


GPTQ = {"quant_method": "gptq", "group_size": GROUP, "desc_act": False, "sym": False}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
WHOLE = 1 << 20  # a block as large as any matrix
SCHEMES: dict[str, tuple[dict[str, Any], Make]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, awq),
    **{f"gptq {bits}": ({**GPTQ, "bits": bits}, gptq(bits, False, "gptq")) for bits in (2, 4, 8)},
    "gptq act order": ({**GPTQ, "bits": 4, "desc_act": True}, gptq(4, True, "gptq")),
    "gptq v2": ({**GPTQ, "bits": 4, "checkpoint_format": "gptq_v2"}, gptq(4, False, "gptq_v2")),
    "fp8 by block": ({"quant_method": "fp8", "weight_block_size": [24, 40]}, fp8("weight_scale_inv", (24, 40))),
    "fp8 by row": ({"quant_method": "fbgemm_fp8"}, fp8("weight_scale", (1, WHOLE))),
    "fp8 by matrix": (compressed("float-quantized", 8, type="float"), fp8("weight_scale", (WHOLE, WHOLE))),
    "compressed 4": (compressed("pack-quantized", 4, group_size=GROUP), packed(4, True)),
    "compressed 8": (compressed("pack-quantized", 8, group_size=GROUP), packed(8, True)),
    "compressed asymmetric": (compressed("pack-quantized", 4, group_size=GROUP, symmetric=False), packed(4, False)),
    "compressed act order": (compressed("pack-quantized", 4, actorder="group"), packed(4, False, "by activation")),
    "compressed unset order": (compressed("pack-quantized", 4, actorder=None), packed(4, False, "unset")),
    "compressed int8": (compressed("int-quantized", 8, strategy="channel"), int8("weight_scale", 1)),
    "llm.int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8("SCB", 127)),
    "nf4": (NF4, nf4(False)),
    "nf4 nested": ({**NF4, "bnb_4bit_use_double_quant": True}, nf4(True)),
    **{f"mlx {bits}": ({"group_size": GROUP, "bits": bits}, mlx(bits)) for bits in (2, 4, 8)},
}


def set_quantization(folder: Path, settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


def quantised(name: str, folder: Path) -> dict[str, Tensor]:
    """Write a folder whose matrices are quantised, and return the tensors that it stands for."""
    settings, made = SCHEMES[name]
    save_published(build(LLAMA), LLAMA, folder)
    tensors, draws = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    stored = dict(tensors)
    for key, tensor in tensors.items():
        if key.endswith("_proj.weight"):
            matrix, parts = made(tensor.shape[0], tensor.shape[1], draws)
            tensors[key] = matrix.contiguous()
            del stored[key]
            stored |= {f"{key.removesuffix('weight')}{end}": part for end, part in parts.items()}
    save_file(stored, folder / "model.safetensors")
    set_quantization(folder, settings)
    return tensors


@pytest.mark.parametrize("name", SCHEMES)
def test_matrices_are_decoded_exactly(name: str, tmp_path: Path) -> None:
    folder, plain = tmp_path / "quantised", tmp_path / "plain"
    folder.mkdir()
    plain.mkdir()
    tensors = quantised(name, folder)
    save_published(build(LLAMA), LLAMA, plain)
    save_file(tensors, plain / "model.safetensors")
    expected = load_published(plain)
    model, usage = load_published(folder)
    for key, tensor in expected.model.state_dict().items():
        assert torch.allclose(model.state_dict()[key], tensor, rtol=1e-6, atol=0), key
    assert published_config(folder) == published_config(plain)
    assert "quantization_config" not in usage.settings
    assert cli.main(["export", str(folder), str(tmp_path / "out")]) == 0
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(load_file(tmp_path / "out/model.safetensors")[key], tensors[key], rtol=1e-6, atol=0)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_published(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    save_published(build(LLAMA), LLAMA, tmp_path)
    settings: Any
    for settings, message in (
        ({"quant_method": "aqlm"}, "weights quantised by 'aqlm' are not supported (known: awq, gptq, "),
        ({"some": 1}, "weights quantised by '' are not supported"),
        ({**GPTQ, "bits": 3}, "bits is 3; supported are 2, 4, 8"),
        ({**GPTQ, "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; gptq and gptq_v2"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'; AWQ models of version gemm"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size is [128]; use two sizes above 0"),
        (compressed("marlin-24", 4), "format 'marlin-24' with [4] bits is not supported"),
        (compressed("pack-quantized", 3), "format 'pack-quantized' with [3] bits is not supported"),
        ({"group_size": "x"}, "group_size is 'x'"),
        ([1], "quantization_config is [1]"),
        ({"quant_method": "fp8"}, "has no quantised weights, although its config.json describes them"),
    ):
        set_quantization(tmp_path, settings)
        assert message in refused(tmp_path), settings


@pytest.mark.parametrize("name", SCHEMES)
def test_parts_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    quantised(name, tmp_path)
    path = tmp_path / "model.safetensors"
    whole, base = load_file(path), "model.layers.0.mlp.down_proj."
    for key in [key for key in whole if key.startswith(base)]:
        tensor = whole[key]
        save_file({name: part for name, part in whole.items() if name != key}, path)
        if not key.endswith(("g_idx", "weight_zero_point")):
            assert refused(tmp_path), key
        if tensor.shape[0] > 1:
            save_file({**whole, key: tensor[:-1].clone()}, path)
            assert refused(tmp_path), key
        if key.endswith("g_idx"):
            for group in (-1 if tensor.max() > 0 else 0, -2, 1 << 20):
                save_file({**whole, key: torch.cat([torch.tensor([group], dtype=tensor.dtype), tensor[1:]])}, path)
                assert "do not fit together" in refused(tmp_path), (key, group)
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32):
            save_file({**whole, key: torch.full_like(tensor, float("nan"))}, path)
            assert "has scales that are not finite" in refused(tmp_path), key


def test_parts_with_more_dimensions_are_refused_without_a_warning(tmp_path: Path) -> None:
    quantised("gptq 4", tmp_path)
    path = tmp_path / "model.safetensors"
    whole, key = load_file(path), "model.layers.0.mlp.down_proj.qweight"
    save_file({**whole, key: whole[key][None]}, path)
    assert "the parts of model.layers.0.mlp.down_proj.weight do not fit together" in refused(tmp_path)
