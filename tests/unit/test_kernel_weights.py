"""int8 and int4 weights by torch's own kernels: the products, and models on a simulated GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import headway as hw
from gpu_generation import greedy_tokens
from headway.app.loading import open_in_format
from headway.engine.packed_weights import PackedTensor, pack, unpack
from headway.errors import UserError
from headway.formats.native import named_tensors, save_model
from headway.generate.kernel_weights import Int4Weight, Int8Weight, KernelWeight, store_for_kernels
from headway.generate.prompts import pad
from headway.generate.torch_weights import join_experts
from headway.layout import Layout, to_device
from headway.nn.kernels import deterministic
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, Prompt, StackConfig, TransformerConfig
from headway.nn.models.presets import decoder
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import FeedForwardConfig, GatedConfig, MLPConfig
from simulated_gpu import Waits, device

CPU = torch.device("cpu")
BITS: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")


def model_of() -> Any:
    model: Any = decoder(128, 2, 4, 2, 256, 500, 64).build(0).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2)
    return model


def mixture_of(expert: FeedForwardConfig) -> Any:
    blocks = (BlockConfig(AttentionConfig(2), feed_forward=ExpertsConfig(6, expert=expert)),) * 2
    model: Any = TransformerConfig(128, 500, 128, StackConfig(blocks)).build(0).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2)
    return model


EXPERTS: tuple[FeedForwardConfig, ...] = (GatedConfig(64), MLPConfig(128))


@torch.no_grad()
def decoded(model: Any, place: torch.device = CPU) -> Tensor:
    logits, decoding = model.start(Prompt(*pad([[3, 4, 5, 6, 7], [9, 8]], place)), 12)
    outputs = [logits]
    for token in range(3):
        logits, decoding = model.step(torch.tensor([token + 5, 6], device=place), decoding)
        outputs.append(logits)
    return torch.stack(outputs)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_products_and_rows_of_kernel_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, x = torch.randn(48, 128, generator=generator), torch.randn(2, 3, 128, generator=generator).bfloat16()
    matrix[5] = 0
    packed = pack(matrix, "int4")
    for weight, error in ((Int8Weight.of(matrix, CPU), 0.01), (Int4Weight.of(packed, CPU), 0.11)):
        values = weight.values().float()
        assert relative(values, matrix) < error
        assert relative(F.linear(x, weight).float(), F.linear(x.float(), values)) < 0.005
        assert (weight.shape, weight.dtype, weight.device) == (matrix.shape, torch.bfloat16, CPU)
        assert torch.equal(weight.float(), values)  # any other operation restores the values
        assert weight.to("cpu") is weight
    ids = torch.tensor([[1, 47], [5, 0]])
    table = Int8Weight.of(matrix, CPU)
    assert torch.equal(F.embedding(ids, table), (table.codes * table.scales[:, None])[ids])
    # int4 has the engine's codes: its values, but for scales that are rounded to bf16
    assert torch.allclose(Int4Weight.of(packed, CPU).values().float(), unpack(packed), rtol=2**-7)


@pytest.mark.parametrize("bits", BITS)
def test_logits_are_those_of_the_restored_weights(bits: Literal["int8", "int4"]) -> None:
    model, restored, exact = model_of(), model_of(), decoded(model_of())
    store_for_kernels(model, bits, CPU)
    stored = dict(named_tensors(model))
    kinds = {type(tensor).__name__ for tensor in stored.values()}
    assert kinds == {"Int8Weight", "Parameter"} | ({"Int4Weight"} if bits == "int4" else set())
    for name, parameter in named_tensors(restored):
        tensor = stored[name]
        parameter.data = (tensor.values() if isinstance(tensor, KernelWeight) else tensor.detach()).float()
    assert relative(decoded(model), decoded(restored)) < 0.01
    assert relative(decoded(model), exact) < {"int8": 0.02, "int4": 0.25}[bits]
    with deterministic():
        assert relative(decoded(model), decoded(restored)) < 0.01


@pytest.mark.parametrize("bits", BITS)
def test_generation_in_few_bits_waits_once_per_step(bits: Literal["int8", "int4"], tmp_path: Path) -> None:
    """The tokens of the GPU are those of the CPU's kernels, from the original and from a quantised folder."""
    original, expected = model_of(), model_of()
    save_model(original, original.config, tmp_path / "model")
    hw.quantize(tmp_path / "model", tmp_path / bits, bits)
    store_for_kernels(expected, bits, CPU)

    with Waits() as waits:
        folders: dict[str, Literal["int8", "int4"] | None] = {"model": bits, bits: None}
        for folder, weights in folders.items():
            model: Any = open_in_format(tmp_path / folder, weights, device(), use_engine=True).model
            model = model.to(device())
            assert {parameter.device for parameter in model.parameters()} == {device()}
            if folder == "model" or bits == "int4":
                assert greedy_tokens(model, 5, waits) == greedy_tokens(expected, 5, None)


@pytest.mark.parametrize("expert", EXPERTS, ids=["gated", "mlp"])
@pytest.mark.parametrize("bits", BITS)
def test_experts_in_few_bits(bits: Literal["int8", "int4"], expert: FeedForwardConfig, tmp_path: Path) -> None:
    """Few tokens multiply the chosen experts or all of them, many tokens restore the values of each projection. All
    have the outputs of the restored weights, without a wait, and so has a quantised folder.
    """
    original = mixture_of(expert)
    save_model(original, original.config, tmp_path / "model")
    hw.quantize(tmp_path / "model", tmp_path / bits, bits)
    kind = Int8Weight if bits == "int8" else Int4Weight
    generator = torch.Generator().manual_seed(0)
    with Waits() as waits, torch.no_grad():
        for folder, weights in {"model": bits, bits: None}.items():
            model: Any = open_in_format(tmp_path / folder, weights, device(), use_engine=True).model
            join_experts(model.to(device()))
            experts, restored = model.stack.blocks[0].feed_forward, original.stack.blocks[0].feed_forward
            assert {type(part) for part in experts.experts.parameters() if part.dim() == 2} == {kind}
            for ours, theirs in zip(experts.experts.parameters(), restored.experts.parameters()):
                theirs.data = (ours.values() if isinstance(ours, KernelWeight) else ours).float().cpu()
            for count in (1, 20, 80):
                tokens = torch.randn(count, 128, generator=generator)
                _, shares, ids = restored._route(restored.router(tokens))
                expected = restored._mix(tokens, shares, ids, Layout.full(1, count))
                inputs = to_device((tokens, shares, ids, Layout.full(1, count)), device())
                waits.clear()
                mixed = experts._mix(*inputs)
                assert not waits.counts
                assert relative(mixed.cpu(), expected) < 0.01
            waits.clear()


@pytest.mark.parametrize("bits", BITS)
def test_joined_experts_in_few_bits_are_parts_of_one_tensor(bits: Literal["int8", "int4"]) -> None:
    model = mixture_of(EXPERTS[0])
    store_for_kernels(model, bits, CPU)
    experts, x = model.stack.blocks[0].feed_forward.experts, torch.randn(3, 2, 64).bfloat16()
    before = [expert.down.weight.values() for expert in experts]
    join_experts(model)
    joint, numbers = experts[0].down.joint, torch.tensor([5, 0, 5])
    assert torch.equal(joint.values(), torch.stack(before))
    assert torch.equal(joint[numbers].values(), joint.values()[numbers])
    expected = torch.stack([F.linear(rows, experts[number].down.weight) for rows, number in zip(x, numbers.tolist())])
    assert torch.equal(joint[numbers].product(x), expected)
    codes = {expert.down.weight.codes.untyped_storage().data_ptr() for expert in experts}
    assert codes == {joint.codes.untyped_storage().data_ptr()}


def test_generation_with_experts_in_few_bits_waits_once_per_step() -> None:
    expected = mixture_of(EXPERTS[0])
    store_for_kernels(expected, "int8", CPU)
    with Waits() as waits:
        model = mixture_of(EXPERTS[0])
        store_for_kernels(model, "int8", device())
        join_experts(model)
        assert greedy_tokens(model, 5, waits) == greedy_tokens(expected, 5, None)


def test_a_folder_with_several_formats_keeps_them() -> None:
    model = model_of()
    first, second = model.stack.blocks
    for module, bits in zip((second.mixer.qkv, first.mixer.qkv), BITS):
        module.weight = torch.nn.Parameter(PackedTensor(pack(module.weight, bits)), requires_grad=False)
    store_for_kernels(model, None, CPU)
    assert isinstance(first.mixer.qkv.weight, Int4Weight)
    assert isinstance(second.mixer.qkv.weight, Int8Weight)
    assert type(first.mixer.out.weight) is torch.nn.Parameter
    assert first.mixer.out.weight.dtype == torch.bfloat16


def test_apple_gpus_have_no_kernels_for_few_bits(tmp_path: Path) -> None:
    model = model_of()
    save_model(model, model.config, tmp_path)
    with pytest.raises(UserError, match="int8 and int4 weights need a CPU or a CUDA GPU, not device mps"):
        open_in_format(tmp_path, "int8", torch.device("mps"), use_engine=True)
