"""Weights in which torch generates: matrices in bf16 while all vectors are in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import headway as hw
from gpu_generation import greedy_tokens
from headway.app.loading import open_in_format
from headway.errors import UserError
from headway.formats.native import LoadedWeights, save_model
from headway.generate.prompts import pad
from headway.generate.torch_weights import store_in_bf16
from headway.layout import Layout
from headway.nn.kernels import deterministic
from headway.nn.mixers import AttentionConfig, LSTMConfig
from headway.nn.models import BlockConfig, Prompt, StackConfig, Transformer, TransformerConfig
from headway.nn.models.presets import marian
from headway.nn.models.score_biases import AlibiConfig
from headway.nn.models.stack import BiasConfig
from headway.nn.parts.positions import RotaryConfig
from simulated_gpu import Waits, device

BOUND = 0.012  # relative error of logits, as for 8 bits of mantissa after a few layers

MIXERS = {
    "grouped heads": AttentionConfig(4, 2, rotary=RotaryConfig()),
    "plain": AttentionConfig(2, qkv_bias=False),
    "bias": AttentionConfig(2, bias="alibi"),
    "capped": AttentionConfig(2, soft_cap=5.0),
    "sinks": AttentionConfig(2, sinks=True),
    "lstm": LSTMConfig(),
}


def model_of(name: str) -> Transformer:
    biases: dict[str, BiasConfig] = {"alibi": AlibiConfig(2)} if name == "bias" else {}
    config = TransformerConfig(32, 23, None, StackConfig((BlockConfig(MIXERS[name]),) * 2, biases=biases))
    model = config.build(1)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model.eval()


@torch.no_grad()
def decoded(model: Any, steps: int = 3) -> Tensor:
    """Logits after two prompts of different lengths, and after each of some tokens."""
    logits, decoding = model.start(Prompt(*pad([[3, 4, 5, 6, 7], [9, 8]], torch.device("cpu"))), 12)
    outputs = [logits]
    for token in range(steps):
        logits, decoding = model.step(torch.tensor([token + 5, 6]), decoding)
        outputs.append(logits)
    return torch.stack(outputs)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_bf16_weights_cost_little(name: str, is_deterministic: bool) -> None:
    with deterministic(is_deterministic):
        exact, model = decoded(model_of(name)), model_of(name)
        store_in_bf16(model)
        rounded = decoded(model)
    assert rounded.dtype == torch.float32
    assert 0 < relative(rounded, exact) < BOUND
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}  # biases, norms, and all of an LSTM's matrices
    rows = Layout.full(2, 5)
    with torch.no_grad():  # whole documents
        ids = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 3, 2, 1]])
        assert relative(model.logits(ids, rows), model_of(name).logits(ids, rows)) < BOUND


def test_the_cache_of_bf16_weights_is_in_bf16() -> None:
    model: Any = model_of("grouped heads")
    store_in_bf16(model)
    state = model.stack.blocks[0].mixer.initial_state(1, 8, like=torch.zeros(1))
    assert state.keys.dtype == state.values.dtype == torch.bfloat16
    assert model.embed.table.dtype == torch.bfloat16
    assert model.embed.table is model.heads["vocabulary"].weight  # tied


def test_a_translation_model_in_bf16() -> None:
    model: Any = marian(32, 2, 2, 64, 50).build(0).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    device = torch.device("cpu")
    prompt = Prompt(*pad([[3, 4], [9]], device), *pad([[5, 6, 7], [8, 9]], device))
    with torch.no_grad():
        exact, _ = model.start(prompt, 12)
        store_in_bf16(model)
        rounded, decoding = model.start(prompt, 12)
        logits, _ = model.step(torch.tensor([3, 4]), decoding)
    assert relative(rounded, exact) < BOUND
    assert logits.dtype == torch.float32
    assert decoding.memories[0].keys.dtype == torch.bfloat16


def test_a_decoding_step_in_bf16_waits_once() -> None:
    """Its logits are sums in fp32, which are not rounded."""

    def stored() -> Transformer:
        model = model_of("grouped heads")
        store_in_bf16(model)
        return model

    expected = greedy_tokens(stored(), 6, None)
    with Waits() as waits:
        assert greedy_tokens(stored().to(device()), 6, waits) == expected


def test_a_real_model_in_bf16_continues_as_in_fp32(data_dir: Path) -> None:
    """stories260K: the same 40 most probable tokens, and logits within 0.1, where they range over 30."""
    path = data_dir / "weights" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    prompt = "Once upon a time, there was a little girl"
    models = [hw.load(path, backend="torch", weights=weights) for weights in ("fp32", "bf16")]
    exact, rounded = (model.generate(prompt, max_new_tokens=40, temperature=0) for model in models)
    assert rounded == exact
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        before, after = (model.module.logits(ids) for model in models)
    assert float((after - before).abs().max()) < 0.1
    assert float(before.max() - before.min()) > 20


def test_bf16_is_the_default_on_a_gpu_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("plain")
    save_model(model, model.config, tmp_path)
    gpu = torch.device("cuda", 0)
    choices: list[tuple[LoadedWeights | None, torch.device]] = [(None, gpu), ("fp32", gpu), (None, torch.device("cpu"))]
    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=supported: answer)
        dtypes = [
            open_in_format(tmp_path, weights, place, use_engine=False).model.get_parameter("embed.table").dtype
            for weights, place in choices
        ]
        assert dtypes == [torch.bfloat16 if supported else torch.float32, torch.float32, torch.float32]
    config = replace(model.config, heads={}, tie="none")  # it does not generate
    save_model(config.build(1), config, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert (
        open_in_format(tmp_path, None, gpu, use_engine=False).model.get_parameter("embed.table").dtype == torch.float32
    )


def test_bf16_is_refused_where_it_cannot_be_used(tmp_path: Path) -> None:
    model = model_of("plain")
    save_model(model, model.config, tmp_path / "model")
    with pytest.raises(UserError, match="bf16 weights need torch on a CPU"):
        hw.load(tmp_path / "model", "cpu", "bf16")
    hw.quantize(tmp_path / "model", tmp_path / "int8", "int8")
    with pytest.raises(UserError, match="has int8 or int4 weights; load the original"):
        hw.load(tmp_path / "int8", "cpu", "bf16", "torch")
