"""Models between formats: what an export says beside the weights, and the options of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from format_models import LLAMA, drawn, published_config
from tiny_runs import play_file, train

import headway as hw
from headway.app.cli import main as cli
from headway.app.conversion import export_model
from headway.codecs import train_codec
from headway.config import override
from headway.domains import recipe
from headway.formats.gguf import GgufFile
from headway.formats.open import OpenedModel, open_model
from headway.formats.published import nearest_family, save_published
from headway.formats.usage import Usage
from headway.nn.models import build
from processes import Program

TINY = {"model": "gpt2", "model.width": 32, "model.depth": 1, "model.heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published Llama without a tokenizer."""
    config = published_config(LLAMA)
    save_published(drawn(config), config, tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("usage", [Usage(), Usage(ends=(7,))])
def test_an_export_says_what_ends_a_text(folder: Path, usage: Usage) -> None:
    """The model's own ends, and where nobody named any those of its tokenizer."""
    codec = train_codec("char", iter(["abc"]))
    assert codec.eos_id not in (None, 7)
    export_model(OpenedModel(open_model(folder).model, usage, codec), folder / "out")
    said, wanted = json.loads((folder / "out/config.json").read_text()), usage.ends or (codec.eos_id,)
    assert (said["bos_token_id"], said["eos_token_id"]) == (codec.bos_id, wanted[0])
    assert open_model(folder / "out").usage.ends == wanted


@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_prompts_of_an_export_begin_as_those_of_the_run(packing: str, data_dir: Path, tmp_path: Path) -> None:
    """Whole documents were learnt from after a begin symbol."""
    play, run, place = play_file(data_dir, tmp_path), tmp_path / "run", tmp_path / "out"
    train(
        run,
        play,
        "text",
        set={"task.packing": packing, "task.codec": "byte", "task.size": 257, "train.steps": 1, **TINY},
    )
    assert cli.main(["export", str(run), str(place)]) == cli.DONE
    ids = hw.load(run).prompt_ids("To be")
    assert hw.load(place).prompt_ids("To be") == ids
    assert len(ids) == 5 + (packing == "documents")


def test_numbers_of_a_gguf_file_are_of_no_other_format(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
    assert cli.main(["export", "nowhere", str(tmp_path / "out"), "--dtype", "f16"]) == cli.USER_ERROR
    assert "--dtype f16 applies to gguf files only, but the format is hf; add --format gguf" in capsys.readouterr().err
    for given, kind in ((), "F32"), (("--dtype", "f16"), "F16"), (("--dtype", "Q4_0"), "Q4_0"):
        place = tmp_path / f"{kind}.gguf"
        assert cli.main(["export", str(folder), str(place), "--format", "gguf", *given]) == cli.DONE
        assert GgufFile(place).kind("blk.0.attn_q.weight").name == kind


@pytest.mark.parametrize("words", [("import",), ("export",), ("quantize", "--weights", "int8")])
def test_threads_are_as_many_as_are_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    command, *options = words
    assert cli.main([command, str(folder), str(tmp_path / "out"), *options, "--threads", "1"]) == cli.DONE
    assert asked == [1]


def test_a_preset_is_no_model_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "gpt2", "--prompt", "hi"]) == cli.USER_ERROR
    assert "gpt2 is a preset without weights" in capsys.readouterr().err


def test_what_the_recipe_text_trains_is_exported(tmp_path: Path) -> None:
    """As Qwen3 and, as far back as its windows see, in GGUF."""
    size = {"width": 16, "heads": 2, "depth": 2, "symbols": 20}
    model = build(override(recipe("text").model, size)).eval()
    opened = OpenedModel(model, Usage(), None)
    assert export_model(opened, tmp_path / "hf").family == "qwen3"
    assert export_model(opened, tmp_path / "a.gguf", "gguf").family == "qwen3"
    assert open_model(tmp_path / "a.gguf").model.config.context == 256
    ids = torch.arange(12).reshape(1, 12)
    for path in ("hf", "a.gguf"):
        assert torch.equal(open_model(tmp_path / path).model.logits(ids), model.logits(ids))


def test_what_keeps_a_model_from_a_published_form_is_named() -> None:
    assert nearest_family(recipe("text").model) is None
    plain = override(recipe("text").model, {"stack.norm.weight": False})
    assert "stack.norm.weight" in (nearest_family(plain) or "")
    assert "'mlp'" in (nearest_family(recipe("shakespeare").model) or "")


def test_python_exports_and_rounds_as_the_shell_does(folder: Path, tmp_path: Path) -> None:
    assert hw.export(str(folder), tmp_path / "out") == "llama"
    assert (tmp_path / "out" / "config.json").is_file()
    found = hw.quantize(folder, tmp_path / "small", "int8")
    assert found.bytes < found.bytes_before
    ids = hw.load(tmp_path / "small", backend="torch").generate_ids([1, 2], 3, temperature=0, ignore_end=True)
    assert len(ids) == 3
    for ask, message in (
        (lambda: hw.quantize(folder, tmp_path / "small"), "already exists and is not empty; choose another folder"),
        (
            lambda: hw.quantize(folder, tmp_path / "new", "int3"),
            "unknown number format int3 for quantised weights; use int8 or int4",
        ),  # type: ignore[arg-type]
        (lambda: hw.export(folder, tmp_path / "new", "onyx"), "unknown format 'onyx'"),
        (lambda: hw.export(3, tmp_path / "new"), "model is 3; pass a string or a path"),  # type: ignore[arg-type]
    ):
        with pytest.raises(hw.UserError, match=message):
            ask()
    assert not (tmp_path / "new").exists()


KILLED = """
import os, signal, sys
from headway.app import conversion
from headway.app.cli import main as cli

conversion.seal = lambda draft: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "words", [("import", "{}", "out"), ("export", "{}", "out"), ("quantize", "{}", "out", "--weights", "int8")]
)
def test_what_is_killed_half_way_leaves_nothing_that_loads(words: tuple[str, ...], folder: Path) -> None:
    out = folder.parent / "out"
    given = [word.format(folder) if word != "out" else str(out) for word in words]
    program = Program(folder.parent, KILLED, *given)
    program.wait()
    assert program.returncode == -9
    assert not out.exists()
    assert [path.name.startswith(".out.") for path in folder.parent.glob(".out*")] == [True]
    assert cli.main(given) == cli.DONE
    assert not list(folder.parent.glob(".out*"))
    assert hw.verify(out).damaged == hw.verify(out).unknown == ()


def test_verify_finds_a_changed_byte(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hw.verify(folder) == (0, 0, (), (folder,))
    assert cli.main(["import", str(folder), str(tmp_path / "own")]) == cli.DONE
    found = hw.verify(tmp_path / "own")
    assert found.files == 2
    assert found.bytes == sum((tmp_path / "own" / name).stat().st_size for name in ("model.safetensors", "usage.json"))
    path = tmp_path / "own" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "own" / "usage.json").unlink()
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "own"), "--json"]) == cli.USER_ERROR
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert (said["whole"], said["damaged"]) == (False, [f"{path} has changed", f"{tmp_path}/own/usage.json is missing"])
    assert told.err.startswith(f"headway: {tmp_path}/own is damaged (2 of 2 files, ")
    (tmp_path / "own" / "digests.json").write_text('{"version": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}')
    assert "which is outside the folder" in hw.verify(tmp_path / "own").damaged[0]
