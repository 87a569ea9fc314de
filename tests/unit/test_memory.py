"""What does not fit into memory is refused with its size before it is allocated."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import play_file, publish

import headway as hw
from headway.app.cli.main import main
from headway.app.recipes import find_model_config
from headway.config import override
from headway.domains import recipe
from headway.errors import UserError
from headway.io import machine_memory
from headway.io.hub import find_folder, named_folder
from headway.learn.memory import training_bytes
from headway.nn.models import outline
from headway.nn.models.presets import preset

CPU = torch.device("cpu")
GIB = 2**30


def have(patch: pytest.MonkeyPatch, size: int) -> None:
    patch.setattr(machine_memory, "free_bytes", lambda device: size)


@pytest.fixture
def published(data_dir: Path, tmp_path: Path) -> Path:
    return publish(play_file(data_dir, tmp_path), tmp_path / "model", "llama-135m", width=24, heads=3)


@pytest.mark.parametrize(
    ("optim", "each", "average"), [("sgd", 0, None), ("adamw", 2, None), ("adamw", 2, 0.99), ("muon", None, None)]
)
def test_what_the_lstm_of_2014_takes_is_known_without_it(optim: str, each: int | None, average: float | None) -> None:
    whole = replace(recipe("multi30k-en-de"), model=preset("seq2seq-lstm-2014"))
    parts = training_bytes(override(whole, {"optim": optim, "train.ema": average}), outline(whole.model))
    weights = 4 * 384_112_000
    assert parts["weights"] == weights
    assert parts["gradients"] == pytest.approx(weights, rel=1e-6)
    assert parts["moving average"] == (weights if average else 0)
    matrices = 4 * 64_000_000  # have one buffer with Muon, all else two
    assert parts["optimiser"] == (2 * weights - matrices if each is None else each * weights)


def test_a_run_that_does_not_fit_is_refused_before_it_begins(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have(monkeypatch, GIB // 2)
    lines = (data_dir / "lm/tinyshakespeare.txt").read_text()[:4000].replace("\n\n", "\n").splitlines()
    for language in ("en", "de"):
        (tmp_path / f"pairs.{language}").write_text("\n".join(line for line in lines if line) + "\n")
    data = [str(tmp_path / f"pairs.{language}") for language in ("en", "de")]
    command = ["train", "multi30k-en-de", "--data", *data, "--run", str(tmp_path / "run"), "--device", "cpu"]
    split = 'task.split={"validation": 0.2, "test": 0.2}'
    assert main([*command, "--set", "model=seq2seq-lstm-2014", "task.size=280", split]) == 2
    said = capsys.readouterr().err
    assert "needs " in said
    assert "weights 247." in said
    assert "cpu has 536,870,912 bytes (512.0 MiB) free" in said
    assert "model.width" in said
    assert "optim=sgd" in said
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_is_not_loaded_but_shown(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = 4 * sum(parameter.numel() for parameter in hw.load(published).module.parameters())
    have(monkeypatch, size - 1)
    with pytest.raises(UserError, match=f"needs {size:,} bytes .* cpu has {size - 1:,} bytes .* torch.bfloat16"):
        hw.load(published, device="cpu")
    have(monkeypatch, 0)
    for name in (str(published), "gpt3-175b", "seq2seq-lstm-2014"):
        assert main(["show", name]) == 0
    assert "384,112,000" in capsys.readouterr().out


def test_all_forms_of_a_model_are_told_without_their_weights(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["import", str(published), str(tmp_path / "own")]) == 0
    (published / "tokenizer.json").unlink()  # GGUF has no name for its kind
    assert main(["export", str(published), str(tmp_path / "model.gguf"), "--format", "gguf"]) == 0
    expected = hw.load(published).module.config
    have(monkeypatch, 0)
    found = [find_model_config(str(path)) for path in (published, tmp_path / "model.gguf", tmp_path / "own")]
    assert [each.width for each in found] == [expected.width] * 3  # type: ignore[attr-defined]
    assert found[0] == found[2] == expected
    with pytest.raises(UserError, match="has no model"):
        find_model_config(str(tmp_path))


def test_a_model_of_the_hub_is_told_by_its_name(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = SimpleNamespace(snapshot_download=lambda name, **_: {"owner/name": str(published)}[name])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert find_model_config("hf:owner/name") == hw.load(published).module.config
    with pytest.raises(UserError, match="the hub failed"):
        find_model_config("hf:owner/other")


def test_a_mistyped_path_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def download(name: str, local_files_only: bool, **_: Any) -> str:
        asked.append((name, local_files_only))
        if local_files_only:
            raise OSError("not in the cache")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    monkeypatch.chdir(tmp_path)
    for path in ("runs/typo", "./runs/typo", "runs/typo/deep"):
        with pytest.raises(UserError, match=r"there is no file or folder runs/typo|runs/typo(/deep)? does not exist"):
            hw.load(path)
    with pytest.raises(UserError, match=r"check the path, or write hf:runs/typo for the model with that name on the H"):
        hw.train("shakespeare", start="runs/typo")
    with pytest.raises(UserError, match=r"a recipe names hf:a/b, which was not downloaded before; set HEADWAY_HUB=1"):
        named_folder("hf:a/b")
    assert asked == [("a/b", True)]
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setenv("HEADWAY_HUB", "1")
    assert find_folder("a/b") == named_folder("a/b") == named_folder("hf:a/b") == tmp_path
    assert asked[1:] == [("a/b", False)] * 3


def test_places_at_which_no_model_can_lie(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    for path, told in ((tmp_path / "a.gguf", "is a pipe or a device"), ("x" * 5000, "File name too long")):
        with pytest.raises(UserError, match=told) as caught:
            hw.load(path)
        assert len(str(caught.value)) < 300


def test_control_groups_bound_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (("_MACHINE", "meminfo"), ("_MEMBERSHIP", "cgroup"), ("_GROUPS", "groups")):
        monkeypatch.setattr(machine_memory, name, tmp_path / path)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {8 * 2**20} kB\n")
    assert machine_memory.free_bytes(CPU) == 8 * GIB
    (tmp_path / "cgroup").write_text("4:cpu,memory:/a/b\n1:cpu:/\n0::/c/d\n")
    assert machine_memory.free_bytes(CPU) == 8 * GIB
    new, old = tmp_path / "groups", tmp_path / "groups/memory"
    for folder in (new / "c/d", old / "a"):
        folder.mkdir(parents=True)
    (new / "c/d/memory.max").write_text("max\n")
    (new / "c/d/memory.current").write_text(f"{GIB}\n")
    assert machine_memory.free_bytes(CPU) == 8 * GIB
    (new / "c/memory.max").write_text(f"{6 * GIB}\n")
    (new / "c/memory.current").write_text(f"{2 * GIB}\n")
    assert machine_memory.free_bytes(CPU) == 4 * GIB
    (new / "c/memory.stat").write_text(f"anon 5\ninactive_file {GIB}\nactive_file 10\n")
    assert machine_memory.free_bytes(CPU) == 5 * GIB + 10
    (old / "a/memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (old / "a/memory.usage_in_bytes").write_text(f"{GIB}\n")
    assert machine_memory.free_bytes(CPU) == GIB
    (old / "a/memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    assert machine_memory.free_bytes(CPU) == 0


def test_what_fits_or_is_not_known_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, 8)
    machine_memory.check_free_memory("a model", {"weights": 5, "gradients": 3}, CPU, "leave it")
    monkeypatch.setattr(machine_memory, "free_bytes", lambda device: None)
    machine_memory.check_free_memory("a model", {"weights": 1 << 60}, CPU, "leave it")
    monkeypatch.undo()
    assert machine_memory.free_bytes(torch.device("meta")) is None
    assert (machine_memory.free_bytes(CPU) or 1 << 20) > 1 << 19
