"""Conversion layer by layer: the files that a model in memory gives, in a small part of its memory, checked before they
are put in place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from format_models import GPT2, LLAMA, drawn, published_config
from safetensors.torch import load_file, save_file

import headway as hw
from headway.app.cli import main as cli
from headway.app.conversion import export_model
from headway.engine import quantise, save_quantised
from headway.formats import peft, published
from headway.formats.deferred import DeferredTensor, deferred_weights
from headway.formats.export_check import check_export
from headway.formats.open import open_model
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.learn.adapters import LoRAConfig, adapters, with_adapter
from headway.nn.models.presets import vit
from processes import Program

NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 48,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": published_config(LLAMA),
    "tied": published_config(LLAMA, tie_word_embeddings=True),
    "gpt2": published_config(GPT2),
    "neox": published_config(NEOX),
    "vit": vit(16, 2, 2, 4, classes=3, size=8),
}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}


def folder_of(name: str, place: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A published folder, in one of its dtypes."""
    save_published(drawn(MODELS[name]), MODELS[name], place, Usage(processor=PROCESSOR if name == "vit" else {}))
    if dtype != torch.float32:
        file = place / "model.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    return place


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_files_are_those_of_a_model_in_memory(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path / "model", dtype)
    hw.export(folder, tmp_path / "streamed")
    card = (tmp_path / "streamed" / "README.md").read_text(encoding="utf-8")
    export_model(open_model(folder), tmp_path / "whole", card=card)
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "whole")
    for form in ("int8", "int4"):
        hw.quantize(folder, tmp_path / form, form)
        (tmp_path / "whole" / form).mkdir()
        save_quantised(quantise(open_model(folder, None).model, form), form, tmp_path / "whole" / form)  # type: ignore[arg-type]
        file = "quantized.safetensors"
        assert (tmp_path / form / file).read_bytes() == (tmp_path / "whole" / form / file).read_bytes()


@pytest.mark.parametrize("precision", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", ["llama", "tied"])
def test_gguf_files_are_those_of_a_model_in_memory(name: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
    folder = folder_of(name, tmp_path / "model", torch.bfloat16)
    hw.export(folder, tmp_path / "streamed.gguf", dtype=precision)
    export_model(open_model(folder), tmp_path / "whole.gguf", "gguf", precision)
    assert (tmp_path / "streamed.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_opened_weights_are_read_on_use(tmp_path: Path) -> None:
    folder = folder_of("tied", tmp_path / "model", torch.bfloat16)
    with deferred_weights():
        model: Any = open_model(folder).model
    assert all(isinstance(parameter, DeferredTensor) for parameter in model.parameters())
    whole: Any = open_model(folder).model
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(model.logits(ids), whole.logits(ids))
    assert model.embed.table is model.heads["vocabulary"].weight


def test_large_exports_have_shards_that_transformers_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folder_of("llama", tmp_path / "model")
    hw.export(folder, tmp_path / "one")
    monkeypatch.setattr(published, "_SHARD_BYTES", 10_000)
    hw.export(folder, tmp_path / "many")
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    one = load_file(tmp_path / "one/model.safetensors")
    many = {name: tensor for file in shards for name, tensor in load_file(tmp_path / "many" / file).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many").eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, open_model(folder).model.logits(ids), atol=1e-5, rtol=1e-5)


MEASURED = """
import shutil, sys
from pathlib import Path
import headway as hw
from headway.io import machine_memory

def peak(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

machine_memory.free_bytes = lambda device: 1 << 24  # a machine of 16 MB
tiny, large, out = map(Path, sys.argv[1:])
for turn, source in enumerate((tiny, large)):
    for form in ("hf", "gguf", "int8"):
        target = out / f"{turn}-{form}"
        before = peak(reset=True)
        if form == "int8":
            hw.quantize(source, target, form)
        else:
            hw.export(source, target, form)
        print(form, peak() - before)
        shutil.rmtree(target) if target.is_dir() else target.unlink()
"""


def test_conversion_needs_the_memory_of_some_layers(tmp_path: Path) -> None:
    """300 MB in three shards, drawn layer by layer."""
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not report the peak of a process's memory")
    tiny, large = folder_of("llama", tmp_path / "tiny"), tmp_path / "large"
    large.mkdir()
    layers, width, inner = 24, 512, 2048
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 2048}
    settings = {**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 8, **sizes}
    (large / "config.json").write_text(json.dumps({**settings, "architectures": ["LlamaForCausalLM"]}))
    generator = torch.Generator().manual_seed(0)
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    files: dict[str, str] = {}
    for part in range(3):
        tensors: dict[str, torch.Tensor] = {}
        for layer in range(part * layers // 3, (part + 1) * layers // 3):
            stem = f"model.layers.{layer}"
            for name, shape in shapes.items():
                tensors[f"{stem}.{name}.weight"] = torch.randn(shape, generator=generator) * 0.02
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{stem}.{name}.weight"] = torch.ones(width)
        if part == 0:
            tensors |= {name: torch.randn(2048, width) for name in ("model.embed_tokens.weight", "lm_head.weight")}
            tensors["model.norm.weight"] = torch.ones(width)
        save_file(tensors, large / f"model-{part}.safetensors")
        files |= dict.fromkeys(tensors, f"model-{part}.safetensors")
    (large / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    size = sum(path.stat().st_size for path in large.iterdir())
    assert size > 300e6
    out, _ = Program(tmp_path, MEASURED, str(tiny), str(large), str(tmp_path)).wait()
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == ["hf", "gguf", "int8"] * 2
    for form, kilobytes in lines[3:]:
        assert int(kilobytes) * 1024 < 0.2 * size, form
    shutil.rmtree(large)


def test_a_small_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("llama", tmp_path / "model")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    for words in (["export"], ["export", "--format", "gguf"], ["quantize", "--weights", "int8"], ["import"]):
        command, *options = words
        assert cli.main([command, str(folder), str(tmp_path / "out"), *options]) == cli.USER_ERROR
        message = capsys.readouterr().err
        assert "bytes, but the disk of" in message
        assert "has 1,000 bytes free; free space or choose another folder" in message
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_an_export_prints_the_largest_difference(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """test_onnx.py has ONNX, so that one process imports torch's exporter."""
    if format == "gguf":
        pytest.importorskip("gguf")
    folder, out = folder_of("llama", tmp_path / "model"), tmp_path / "out"
    assert cli.main(["export", str(folder), str(out), "--format", format]) == cli.DONE
    assert "largest difference" in capsys.readouterr().out
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert cli.main(["export", str(folder), str(out), "--format", format, "--json"]) == cli.DONE
    check = json.loads(capsys.readouterr().out)["check"]
    assert 0 <= check["difference"] < 1e-4 < check["largest"]


@pytest.mark.parametrize("precision", ["f16", "q8_0"])
def test_rounded_weights_are_explained(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
    folder = folder_of("llama", tmp_path / "model")
    found = export_model(open_model(folder), tmp_path / "a.gguf", "gguf", precision)
    assert 1e-5 < found.check.difference < found.check.largest / 10


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_wrong_export_is_not_put_in_place(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("llama", tmp_path / "model")
    module: Any = published
    if format == "gguf":
        module = pytest.importorskip("headway.formats.gguf.model")
        pytest.importorskip("gguf")
    real = module.published_tensors
    changed = "model.layers.1.self_attn.o_proj.weight" if format == "hf" else "blk.1.attn_output.weight"

    def wrong(model: Any, rules: Any) -> dict[str, torch.Tensor]:
        tensors = real(model, rules)
        return {**tensors, changed: torch.as_tensor(tensors[changed]).clone().mul_(1.5)}

    monkeypatch.setattr(module, "published_tensors", wrong)
    for precision in (None,) if format == "hf" else (None, "q8_0"):
        with pytest.raises(hw.UserError, match="which the number format does not explain, so nothing was written"):
            hw.export(folder, tmp_path / "out", format, precision)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_settings_are_found_too() -> None:
    """With the same weights, and rounded ones."""
    model, other = drawn(MODELS["llama"]), drawn(published_config(LLAMA, rope_theta=100.0))
    for step in (0.0, 0.1):
        with pytest.raises(hw.UserError, match="the written model differs from its source"):
            check_export(model, other, step)
        assert check_export(model, drawn(MODELS["llama"]), step).difference == 0


@pytest.mark.parametrize("defect", ["shard", "shape", "nan"])
def test_damaged_folders_leave_nothing(defect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of("llama", tmp_path / "model")
    file = folder / "model.safetensors"
    tensors, name = load_file(file), "model.layers.1.mlp.up_proj.weight"
    if defect == "shard":
        index = {"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), name: "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        file.rename(folder / "a.safetensors")
    else:
        tensors[name] = tensors[name][:-2] if defect == "shape" else tensors[name] * float("nan")
        save_file(tensors, file)
    message = {"shard": "lacks the shard 'b.safetensors'", "shape": "do not fit together", "nan": "NaN"}[defect]
    for words in (["export"], ["quantize", "--weights", "int4"]):
        if (defect, words[0]) != ("nan", "export"):  # an export keeps NaN
            command, *options = words
            assert cli.main([command, str(folder), str(tmp_path / "out"), *options]) == cli.USER_ERROR
            error = capsys.readouterr().err
            assert message in error or "needs" in error
            assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_wrong_adapter_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoRAConfig(rank=2)
    model = with_adapter(drawn(MODELS["llama"]), config, (), seed=2)
    for lora in adapters(model).values():
        lora.b.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(3))
    config.save(model, "base", tmp_path / "right", "llama")
    assert (tmp_path / "right/adapter_config.json").is_file()
    real = peft._published_factors
    monkeypatch.setattr(
        peft, "_published_factors", lambda rule, factors: ((name, a, 2 * b) for name, a, b in real(rule, factors))
    )
    with pytest.raises(hw.UserError, match="the written model differs from its source: changes"):
        config.save(model, "base", tmp_path / "wrong", "llama")
    assert [path.name for path in tmp_path.iterdir()] == ["right"]
