"""Low-rank adapters: what they compute and train, what a run keeps of them, and PEFT's layout both ways."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import cut_back, play_file, publish, small, train, weights
from torch import Tensor, nn

from headway.config import override, to_dict
from headway.domains.text.recipes import modern_decoder
from headway.errors import ConfigError, UserError
from headway.formats import native
from headway.formats.open import open_model
from headway.formats.peft import merge_adapter
from headway.learn import Recipe, read_recipe
from headway.learn.adapters import AdapterConfig, LoRAConfig, adapters, merged, target_projections, with_adapter
from headway.learn.optim import Optimizer, trainable
from headway.learn.parallel.processes import Processes
from headway.learn.plan.budget import measure_speed
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, StackConfig, TransformerConfig, VocabularyHead, build
from headway.nn.parts.feedforward import GatedConfig


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture
def play(data_dir: Path, tmp_path: Path) -> Path:
    return play_file(data_dir, tmp_path)


@pytest.fixture(scope="module")
def first(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    return train(folder / "first", play_file(data_dir, folder), small()).directory


def gated() -> TransformerConfig:
    """Grouped heads and a gate: fused maps of unequal and of equal slices."""
    block = BlockConfig(AttentionConfig(4, kv_heads=2, qkv_bias=(True, False, True)), None, GatedConfig(hidden=24))
    return TransformerConfig(32, 50, 16, StackConfig((block, block)))


def learned(model: nn.Module) -> None:
    """Adapters as training leaves them: B is not zero any more."""
    generator = torch.Generator().manual_seed(5)
    for lora in adapters(model).values():
        lora.b.data.normal_(0.0, 0.1, generator=generator)


IDS = torch.arange(24).view(2, 12)
TARGETS = [("all",), ("q", "v"), ("k", "gate"), ("attention",), ("up", "o"), ("feed_forward", "q")]


@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
@pytest.mark.parametrize("rslora", [False, True])
def test_it_changes_nothing_at_first_and_merged_is_as_adapted(targets: tuple[str, ...], rslora: bool) -> None:
    plain = build(gated(), 1).double().eval()
    before = plain.logits(IDS)  # type: ignore[operator]
    config = LoRAConfig(rank=3, alpha=5.0, targets=targets, rslora=rslora)
    model = with_adapter(plain, config, (), seed=2)
    assert torch.equal(model.logits(IDS), before)  # type: ignore[operator]
    learned(model)
    after = model.logits(IDS)  # type: ignore[operator]
    assert not torch.allclose(after, before, atol=1e-3)
    other = build(gated(), None).double().eval()
    native.load_tensors(other, merged(model), Path("merged"))
    torch.testing.assert_close(other.logits(IDS), after, rtol=0, atol=1e-12)  # type: ignore[operator]


def test_it_is_the_equation_of_the_paper() -> None:
    model = with_adapter(build(gated(), 1).double(), LoRAConfig(rank=3, alpha=6.0, targets=("v",)), (), seed=2)
    learned(model)
    place = next(each for each in target_projections(model) if each.path == "stack.blocks.0.mixer.qkv")
    lora = adapters(model)[place.path]
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = place.projection.weight
    bias = torch.cat([place.projection.bias[:32], torch.zeros(16), place.projection.bias[32:]])  # type: ignore[index]
    expected = x @ weight.T + bias
    expected[..., 48:] += 6.0 / 3 * (x @ lora.a.T @ lora.b.T)
    torch.testing.assert_close(place.projection(x), expected)
    assert lora.a.shape == (3, 32)
    assert lora.b.shape == (16, 3)


def test_only_the_adapters_and_fresh_heads_are_trained() -> None:
    model = with_adapter(build(gated(), 1), LoRAConfig(targets=("q",)), ("stack.norm.weight",), seed=2)
    names = set(trainable(model))
    assert names == {"stack.norm.weight", *(f"stack.blocks.{i}.mixer.qkv.lora.{p}" for i in (0, 1) for p in "ab")}
    head = model.get_submodule("heads.vocabulary")
    assert isinstance(head, VocabularyHead)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    head.loss(model(IDS).x, IDS).total.backward()
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in trainable(model).values())


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_every_optimiser_moves_every_slice(kind: str) -> None:
    model = with_adapter(build(gated(), 1), LoRAConfig(rank=2), (), seed=2)
    recipe = override(small(), {"optim": kind})
    optimizer = Optimizer(recipe.optim, model)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    for _ in range(2):  # A has a gradient once B is not zero
        optimizer.flat.zero_grads()
        model.heads["vocabulary"].loss(model(IDS).x, IDS).total.backward()  # type: ignore[union-attr,operator]
        before = {name: p.clone() for name, p in trainable(model).items()}
        optimizer.step(1.0)
    moved = {name: (p != before[name]).any(1) for name, p in trainable(model).items()}
    assert all(bool(rows.all()) for rows in moved.values())
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_a_run_keeps_the_merged_model_and_goes_on_bit_for_bit(first: Path, play: Path, tmp_path: Path) -> None:
    first = shutil.copytree(first, tmp_path / "first")  # which goes before the end
    settings = {"adapter.alpha": 32, "adapter.dropout": 0.1, "adapter.targets": "q,v,up", "train.ema": 0.5}
    settings |= {"optim.lr": 0.05, "optim.adam_lr": 0.01, "train.accumulate": 2}
    run = train(tmp_path / "run", play, start=first, lora=4, set=settings)
    recipe = read_recipe(run.directory / "recipe.json")
    assert recipe.adapter == LoRAConfig(4, 32.0, ("q", "v", "up"), 0.1)
    before, after = weights(first), weights(run.directory)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"stack.blocks.{i}.{part}.weight" for i in (0, 1) for part in ("mixer.qkv", "feed_forward.up")}
    qkv = "stack.blocks.0.mixer.qkv.weight"
    assert torch.equal(before[qkv][32:64], after[qkv][32:64])  # the keys
    kept = run.directory / "checkpoints" / "step-00000006" / "model.safetensors"
    assert kept.stat().st_size < (run.directory / "model.safetensors").stat().st_size / 2
    stopped = cut_back(run.directory, tmp_path / "stopped", step=3)
    shutil.rmtree(first)
    train(stopped, play, start=first, lora=4, resume=True, set=settings)
    for name in (
        "model.safetensors",
        "checkpoints/step-00000006/model.safetensors",
        "adapter/adapter_model.safetensors",
    ):
        assert (stopped / name).read_bytes() == (run.directory / name).read_bytes()
    with pytest.raises(UserError, match=r"another recipe: adapter.rank is 4, not 8"):
        train(stopped, play, lora=8, resume=True, set=settings)


def test_rough_products_train_it_and_its_speed_is_measured(first: Path, play: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", play, start=first, lora=4, set={"train.precision": "bf16", "train.steps": 2})
    assert run.task is not None
    speed = measure_speed(run.recipe, (), run.task, Processes(torch.device("cpu")), "bf16", 0.5, evaluate_final=False)
    assert 0 < speed.step < 5


def test_an_adapter_without_a_family_has_our_own_names(first: Path, play: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", play, start=first, lora=2, set={"optim.lr": 0.05})
    tensors = load_file(run.directory / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.stack.blocks.0.mixer.qkv.k.lora_B.weight"].shape == (32, 2)
    base = open_model(first).model
    assert merge_adapter(base, run.directory / "adapter") == 2 * 6
    torch.testing.assert_close(dict(base.named_parameters()), weights(run.directory), check_device=False)


FAMILIES = [("gpt2", {}), ("llama-135m", {"heads": 4})]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("name", "sizes"), FAMILIES)
@pytest.mark.parametrize("targets", [("all",), ("q", "v", "down"), ("o",)], ids=",".join)
def test_peft_puts_it_on_the_published_model(
    play: Path, tmp_path: Path, name: str, sizes: dict[str, Any], targets: tuple[str, ...]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    folder = publish(play, tmp_path / "base", name, **sizes)
    config = LoRAConfig(4, 8.0, targets, rslora=targets == ("all",))
    ours = with_adapter(open_model(folder).model, config, (), 3)
    plain = ours.logits(IDS)  # type: ignore[operator]
    learned(ours)
    config.save(ours, str(folder), tmp_path / "adapter", "")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = ours.logits(IDS)  # type: ignore[operator]
        torch.testing.assert_close(theirs(IDS).logits, expected, rtol=0, atol=1e-4)
    assert (expected - plain).abs().max() > 0.01
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["task_type"] == "CAUSAL_LM"
    if targets == ("o",):  # GPT-2 has another c_proj
        assert said["target_modules"] == (["attn.c_proj"] if name == "gpt2" else ["self_attn.o_proj"])
    back = open_model(folder).model
    merge_adapter(back, tmp_path / "adapter")
    torch.testing.assert_close(back.logits(IDS), expected, rtol=0, atol=1e-4)  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*invalid shape")
@pytest.mark.parametrize(("name", "sizes"), FAMILIES)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_what_peft_saves_is_merged(play: Path, tmp_path: Path, name: str, sizes: dict[str, Any], dora: bool) -> None:
    """Also with lengths of rows (DoRA), biases of B where the maps have one, and as a file of torch.save."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    folder = publish(play, tmp_path / "base", name, **sizes)
    targets = ["c_attn", "c_fc"] if name == "gpt2" else ["q_proj", "gate_proj", "down_proj"]
    last = targets[-1]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=targets,
        init_lora_weights=False,
        rank_pattern={last: 2},
        alpha_pattern={last: 3},
        fan_in_fan_out=name == "gpt2",
        use_dora=dora,
        lora_bias=name == "gpt2" and not dora,
    )
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), config).eval()
    for key, parameter in theirs.named_parameters():
        if "lora_magnitude_vector" in key:
            parameter.data *= torch.linspace(0.5, 1.5, parameter.numel()).view(parameter.shape)
        if key.endswith("lora_B.default.bias"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    theirs.save_pretrained(tmp_path / "adapter")
    if dora:
        stored = tmp_path / "adapter" / "adapter_model.safetensors"
        torch.save(load_file(stored), stored.with_suffix(".bin"))
        stored.unlink()
    model = open_model(folder).model
    merge_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model.logits(IDS), theirs(IDS).logits, rtol=0, atol=1e-4)  # type: ignore[operator]


def test_targets_and_numbers_are_checked(play: Path, tmp_path: Path, first: Path) -> None:
    model = build(modern_decoder(32, 1, 2, 16, 50))
    with pytest.raises(ConfigError, match=r"adapter.targets: the model has no projection 'gate'; "):
        with_adapter(model, LoRAConfig(targets=("q", "gate")), (), 1)
    for settings, message in (
        ({"rank": 0}, "adapter.rank is 0; use 1 or more"),
        ({"alpha": -1.0}, "adapter.alpha is -1.0; use a number above 0"),
        ({"alpha": math.nan}, "adapter.alpha is nan; use a number above 0"),
        ({"dropout": 1.5}, "adapter.dropout is 1.5; use a probability of at least 0 and below 1"),
        ({"dropout": math.nan}, "adapter.dropout is nan; use a probability"),
        ({"targets": ()}, "adapter.targets is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            LoRAConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="adapter needs a pretrained model; choose one with --from"):
        train(tmp_path / "run", play, lora=4)
    with pytest.raises(ConfigError, match=r"adapter.targets: the model has no projection 'w'"):
        train(tmp_path / "other", play, start=first, lora=4, set={"adapter.targets": "q,w"})
    assert not (tmp_path / "run").exists()


def broken(folder: Path, tmp_path: Path, **said: Any) -> Path:
    copy = tmp_path / f"broken-{len(list(tmp_path.glob('broken-*')))}"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, **said}))
    return copy


def test_adapters_that_cannot_be_merged_change_nothing(first: Path, play: Path, tmp_path: Path) -> None:
    folder = train(tmp_path / "run", play, start=first, lora=2).directory / "adapter"
    model = open_model(first).model
    before: dict[str, Tensor] = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="an adapter of kind 'IA3'; use one of kind 'LORA'"):
        merge_adapter(model, broken(folder, tmp_path, peft_type="IA3"))
    with pytest.raises(UserError, match="use_qalora is not supported; merge it with the package peft"):
        merge_adapter(model, broken(folder, tmp_path, use_qalora=True))
    with pytest.raises(UserError, match="bias is not supported"):
        merge_adapter(model, broken(folder, tmp_path, bias="all"))
    lost = broken(folder, tmp_path)
    (lost / "adapter_model.safetensors").rename(lost / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin was not written by torch\.save"):
        merge_adapter(model, lost)
    (lost / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=r"contains neither adapter_model\.safetensors nor adapter_model\.bin"):
        merge_adapter(model, lost)
    cut = broken(folder, tmp_path)
    (cut / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:50])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        merge_adapter(model, cut)
    other = build(modern_decoder(32, 1, 2, 16, 67))
    with pytest.raises(UserError, match=r"adapts 'stack.blocks.1.* which the model lacks; did you mean"):
        merge_adapter(other, folder)
    with pytest.raises(UserError, match=r"has shape \(32, 32\), but the model's is \(64, 64\); use the model"):
        merge_adapter(build(modern_decoder(64, 2, 2, 16, 67)), folder)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_it_is_plain_data() -> None:
    recipe: Recipe = replace(small(), adapter=LoRAConfig(4, targets=("q", "v")))
    assert to_dict(recipe)["adapter"]["kind"] == "lora"
    assert isinstance(recipe.adapter, AdapterConfig)
    assert override(recipe, {"adapter.targets": "all"}).adapter == LoRAConfig(4)
