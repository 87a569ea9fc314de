"""Adapters on weights in 8 and 4 bits: products and gradients, what a run keeps, and what it refuses."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_data import chats, choices, write
from chat_data import small as small_chat
from chat_data import train as train_chat
from tiny_runs import cut_back, play_file, small, train, weights

from headway.config import override
from headway.domains.chat.recipes import instruct, preference
from headway.engine import frozen_weights
from headway.engine.frozen_weights import FrozenTensor
from headway.engine.packed_weights import PackedTensor, pack, parameter_of, unpack
from headway.errors import ConfigError
from headway.formats import native
from headway.formats.native import named_tensors
from headway.formats.open import open_model
from headway.formats.peft import merge_adapter
from headway.learn.adapters import LoRAConfig, adapters, frozen_formats, target_projections, with_adapter
from headway.learn.fine_tuning import initial_model, reference_model
from headway.learn.frozen_base import quantise_matrices
from headway.learn.learner import Learner
from headway.learn.memory import check_memory, training_bytes
from headway.learn.parallel.processes import Processes
from headway.learn.plan.budget import measure_speed
from headway.nn.kernels.linear import linear, products
from headway.nn.mixers import AttentionConfig, LSTMConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig, build, outline
from headway.nn.parts.experts import ExpertsConfig
from headway.nn.parts.feedforward import GatedConfig


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture(scope="module")
def first(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return train(folder / "first", play_file(data_dir, folder), small()).directory


@pytest.fixture
def play(data_dir: Path, tmp_path: Path) -> Path:
    return play_file(data_dir, tmp_path)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_products_and_gradients_are_those_of_the_unpacked_matrix(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks, the last of which are smaller, of a matrix that does not fill its tiles."""
    monkeypatch.setattr(frozen_weights, "_BLOCK", 6000)
    generator = torch.Generator().manual_seed(1)
    weight = parameter_of(FrozenTensor(pack(torch.randn(75, 150, generator=generator), dtype)))
    dense = unpack(weight.packed).requires_grad_()  # type: ignore[attr-defined]
    x = torch.randn(2, 40, 150, generator=generator, requires_grad=True)
    bias, gradient = torch.randn(75, generator=generator), torch.randn(2, 40, 75, generator=generator)
    for kind, tolerance in (("fp32", 1e-4), ("bf16", 0.0)):
        with products(kind):  # type: ignore[arg-type]
            y, wanted = linear(x, weight), linear(x, dense)
            torch.testing.assert_close(y, wanted, rtol=0, atol=tolerance)
            found = torch.autograd.grad(y, x, gradient)[0]
            torch.testing.assert_close(found, torch.autograd.grad(wanted, x, gradient)[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(linear(x, weight, bias), linear(x, weight) + bias)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_run_keeps_quantised_weights_and_goes_on_bit_for_bit(
    dtype: str, first: Path, play: Path, tmp_path: Path
) -> None:
    """Its model is the unpacked base with the adapter, which PEFT's folder has, too."""
    settings = {"adapter.base": dtype, "optim.lr": 0.05, "train.accumulate": 2}
    start = shutil.copytree(first, tmp_path / "start")
    run = train(tmp_path / "run", play, start=start, lora=4, set=settings)
    assert [file.name for file in (run.directory / "base").iterdir()] == ["quantized.safetensors"]
    base, after = open_model(start).model, weights(run.directory)
    before = weights(start)
    formats = frozen_formats(base, LoRAConfig(base=dtype))  # type: ignore[arg-type]
    assert {name for name in after if not torch.equal(before[name], after[name])} == formats.keys()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name in formats:
                parameter.copy_(unpack(pack(before[name], dtype)))  # type: ignore[arg-type]
    assert merge_adapter(base, run.directory / "adapter") == 2 * 6
    torch.testing.assert_close(dict(base.named_parameters()), after, check_device=False)
    assert run.task is not None
    assert run.task.evaluate(run.model, "validation")["loss"] == pytest.approx(run.summary["best"]["loss"], rel=1e-5)
    stopped = cut_back(run.directory, tmp_path / "stopped", step=3)
    shutil.rmtree(start)
    train(stopped, play, start=start, lora=4, resume=True, set=settings)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (stopped / name).read_bytes() == (run.directory / name).read_bytes()


def test_the_estimate_is_what_a_run_holds(first: Path, play: Path, tmp_path: Path) -> None:
    set_ = {"adapter.base": "int8", "train.steps": 1}
    run = train(tmp_path / "run", play, start=first, lora=4, set=set_)
    recipe, task = run.recipe, run.task
    assert task is not None
    model = initial_model(recipe, (), tmp_path / "none", started=False, saves_base=False)
    packed = {name: p for name, p in model.named_parameters() if isinstance(p, PackedTensor)}
    assert packed.keys() == frozen_formats(outline(recipe.model), recipe.adapter).keys()
    learner = Learner(model, recipe, task, Processes(torch.device("cpu")))
    held = sum(p.packed.bytes if isinstance(p, PackedTensor) else p.nbytes for p in model.parameters())
    parts, plain = (
        training_bytes(each, outline(recipe.model)) for each in (recipe, override(recipe, {"adapter.base": "fp32"}))
    )
    frozen = held - sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert parts["weights"] == frozen + learner.flat.data.nbytes
    assert parts["weights"] < 0.6 * plain["weights"]  # embeddings stay in fp32
    speed = measure_speed(recipe, (), task, Processes(torch.device("cpu")), "bf16", 0.1, evaluate_final=False)
    assert 0 < speed.step < 5


def test_the_reference_of_preferences_is_the_quantised_model(data_dir: Path, tmp_path: Path) -> None:
    """So the untrained adapter prefers nothing: the loss is log 2."""
    told, chosen = write(tmp_path / "chats.jsonl", chats(data_dir)), write(tmp_path / "pairs.jsonl", choices(data_dir))
    taught = train_chat(tmp_path / "taught", told, small_chat(instruct()))
    settings = {"adapter.base": "int4", "train.steps": 1, "optim.lr": 1e-9}
    run = train_chat(tmp_path / "run", chosen, small_chat(preference()), start=taught.directory, lora=2, set=settings)
    assert run.summary["best"]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_reference_has_all_ids_of_its_start_and_new_layers_of_the_run(first: Path) -> None:
    """A published table has more rows than there are tokens; a layer that the start does not have is sampled."""
    model = open_model(first).model.config
    recipe = replace(small(), model=override(model, {"depth": len(model.stack.blocks) + 1}), start=str(first))
    recipe = override(recipe, {"adapter": "lora", "adapter.base": "int4"})
    reference = reference_model(recipe, override(recipe.model, {"vocab_size": recipe.model.vocab_size - 8}))
    fresh = [name for name, _ in named_tensors(reference) if f"blocks.{len(model.stack.blocks)}." in name]
    run = initial_model(recipe, fresh, first / "none", started=False, saves_base=False)
    expected = dict(named_tensors(run))
    assert fresh
    assert all(torch.equal(unpacked(tensor), unpacked(expected[name])) for name, tensor in named_tensors(reference))


def unpacked(tensor: torch.Tensor) -> torch.Tensor:
    return unpack(tensor.packed) if isinstance(tensor, PackedTensor) else tensor.detach()


def test_a_new_head_has_the_values_of_other_runs(first: Path, tmp_path: Path) -> None:
    """It is sampled after the matrices whose values are not needed."""
    recipe = replace(small(), model=override(open_model(first).model.config, {"tie": "none"}), start=str(first))
    name = "heads.vocabulary.project.weight"
    plain, quantised = (
        initial_model(override(recipe, {"adapter": "lora", "adapter.base": dtype}), (name,), tmp_path, False, False)
        for dtype in ("fp32", "int8")
    )
    assert torch.equal(plain.get_parameter(name), quantised.get_parameter(name))
    assert quantised.get_parameter(name).requires_grad
    assert isinstance(quantised.get_parameter("stack.blocks.0.mixer.qkv.weight"), FrozenTensor)


def test_routers_and_matrices_from_state_to_state_stay_in_fp32() -> None:
    experts = BlockConfig(AttentionConfig(2), None, ExpertsConfig(4, expert=GatedConfig(hidden=24)))
    config = TransformerConfig(32, 50, 16, StackConfig((experts, BlockConfig(LSTMConfig(), None, None))))
    model, adapter = build(config, 1), LoRAConfig(rank=2, base="int8")
    formats = frozen_formats(model, adapter)
    left = {path.rpartition(".")[2] for path, *_ in target_projections(model) if f"{path}.weight" not in formats}
    assert left == {"router", "hidden"}
    ids = torch.arange(24).view(2, 12)
    dense = dict(named_tensors(model))
    quantise_matrices(model, {name: (dense[name], dtype) for name, dtype in formats.items()})
    with_adapter(model, adapter, (), 1)
    found = model.logits(ids)  # type: ignore[operator]
    for name in formats:
        dense[name].data = unpack(model.get_parameter(name).packed)  # type: ignore[attr-defined]
    other = build(config, None)
    native.load_tensors(other, dense, Path("dense"))
    torch.testing.assert_close(found, other.logits(ids), rtol=0, atol=1e-5)  # type: ignore[operator]
    found.sum().backward()
    assert all(lora.b.grad is not None for lora in adapters(model).values())


def test_what_cannot_be_quantised_is_refused() -> None:
    recipe = override(small(), {"adapter": "lora", "adapter.base": "int8"})
    model = outline(recipe.model)
    for device, shards, compiles, message in (
        ("cuda", 1, False, "adapter.base=int8 is computed on a CPU, not on cuda; use device=cpu or fp32"),
        ("cpu", 2, False, "adapter.base=int8 cannot be split over 2 processes; set parallel.shard=1"),
        ("cpu", 1, True, "adapter.base=int8 cannot be compiled by torch; set train.compile=false"),
    ):
        changed = override(recipe, {"train.compile": compiles})
        with pytest.raises(ConfigError, match=message):
            check_memory(changed, model, (), torch.device(device), shards)
