"""The native model file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_task import SYMBOLS, counting_recipe

from headway.errors import UserError
from headway.formats import native
from headway.formats.tensorfile import write_tensors
from headway.nn.models import ModelConfig, build


def _config(**settings: object) -> ModelConfig:
    return counting_recipe(**{"model.vocab_size": SYMBOLS, **settings}).model


def test_a_model_comes_back_with_its_configuration(tmp_path: Path) -> None:
    model = build(_config(), seed=1)
    native.save_model(model, _config(), tmp_path)
    loaded = native.load_model(tmp_path)
    assert loaded.config == _config()
    assert not loaded.training
    ids = torch.arange(6).view(2, 3)
    assert torch.equal(loaded.logits(ids), model.eval().logits(ids))  # type: ignore[operator]
    with safe_open(tmp_path / native.FILE, "pt") as file:
        assert file.metadata()["format"] == "headway"
        assert file.metadata()["version"] == "1"


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    native.save_model(build(_config(), seed=1), _config(), tmp_path)
    tensors, _ = native.read_model(tmp_path / native.FILE)
    assert [name for name, tensor in tensors.items() if tensor.shape[0] == SYMBOLS] == ["embed.table"]
    loaded = native.load_model(tmp_path)
    assert loaded.heads["vocabulary"].weight is loaded.embed.table  # type: ignore[index,union-attr]


def test_loaded_weights_can_be_trained_and_leave_the_file_alone(tmp_path: Path) -> None:
    native.save_model(build(_config(), seed=1), _config(), tmp_path)
    before = (tmp_path / native.FILE).read_bytes()
    loaded = native.load_model(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert (tmp_path / native.FILE).read_bytes() == before


def test_disagreements_name_the_tensor(tmp_path: Path) -> None:
    narrow, wide = build(_config(), 1), build(_config(**{"model.width": 32}), 1)
    path = tmp_path / native.FILE
    with pytest.raises(UserError, match=r"'embed.table' has shape \(11, 16\), the model needs \(11, 32\)"):
        native.load_tensors(wide, dict(native.named_tensors(narrow)), path)
    tensors = dict(native.named_tensors(narrow))
    tensors["embed.tabel"] = tensors.pop("embed.table")
    with pytest.raises(UserError, match=r"lacks tensor 'embed.table'; did you mean 'embed.tabel'"):
        native.load_tensors(narrow, tensors, path)
    tensors["embed.table"] = tensors["embed.tabel"]
    with pytest.raises(UserError, match=r"has tensor 'embed.tabel', which the model lacks"):
        native.load_tensors(narrow, tensors, path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / native.FILE
    with pytest.raises(UserError, match="does not exist; pass a run or model folder"):
        native.load_model(tmp_path)
    write_tensors(path, {"x": torch.ones(2)}, {"format": "pt"})
    with pytest.raises(UserError, match="has format 'pt', not 'headway'"):
        native.load_model(tmp_path)
    write_tensors(path, {"x": torch.ones(2)}, {"format": "headway", "version": "2"})
    with pytest.raises(UserError, match="has version 2, but headway reads 1"):
        native.load_model(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        native.load_model(tmp_path)


def test_every_type_of_tensor_is_written_as_the_library_reads_it(tmp_path: Path) -> None:
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in types}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 2), "strided": torch.arange(6).view(2, 3).T}
    write_tensors(tmp_path / "t", tensors, {"b": "1", "a": "ä"})
    with safe_open(tmp_path / "t", "pt") as file:
        assert file.metadata() == {"b": "1", "a": "ä"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype
