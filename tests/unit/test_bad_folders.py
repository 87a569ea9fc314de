"""Damaged and contradictory folders of published models: every command refuses them in one line with exit code 2, and
writes nothing.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headway.app.cli import main as cli
from text_models import TEXTS, wordpiece

T = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 150,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
Change = Callable[[Path], None]
UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False}


def settings(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def tensors(**values: Callable[[Tensor], Tensor | None]) -> Change:
    """Replace tensors of all files by a function of them; None removes one."""

    def change(folder: Path) -> None:
        for path in folder.glob("*.safetensors"):
            stored = load_file(path)
            for name in stored.keys() & values.keys():
                new = values[name](stored.pop(name))
                stored |= {} if new is None else {name: new.clone()}
            save_file(stored, path)

    return change


def json_file(name: str, content: Any) -> Change:
    """Write a file: text as it is, other content as JSON."""

    def change(folder: Path) -> None:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return change


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:9000])


def without(name: str) -> Change:
    return lambda folder: next(folder.glob(name)).unlink()


def gptq(folder: Path) -> None:
    """One matrix in GPTQ's parts, one scale of which is NaN."""
    settings(quantization_config=GPTQ)(folder)
    stored = load_file(folder / "model.safetensors")
    rows, columns = stored.pop(UP).shape
    base, scales = UP.removesuffix("weight"), torch.ones(columns // 8, rows)
    scales[0, 3] = float("nan")
    parts = {"qweight": torch.zeros(columns // 8, rows, dtype=torch.int32), "scales": scales}
    parts["qzeros"] = torch.zeros(columns // 8, rows // 8, dtype=torch.int32)
    save_file({**stored, **{base + name: part for name, part in parts.items()}}, folder / "model.safetensors")


DECODER: dict[str, tuple[Change, str]] = {
    **{
        f"{name} is {value}": (settings(**{name: value}), "headway: ")
        for name in sorted(SIZES.keys() - {"pad_token_id"})
        for value in (0, -4, 10**15, "many", None)
        if (name, value) != ("intermediate_size", None)
    },
    "a size that is not that of the weights": (settings(hidden_size=18), "of shape (150, 16) makes (150, 16), but"),
    "more layers than weights": (settings(num_hidden_layers=3), "lacks tensor 'model.layers.2."),
    "fewer layers than weights": (settings(num_hidden_layers=1), "has unknown tensor 'model.layers.1."),
    "another family of decoders": (settings(model_type="gpt2"), "lacks tensor 'transformer.wte.weight'"),
    "a family of images": (settings(model_type="vit"), "lacks tensor 'vit.embeddings.patch_embeddings"),
    "a family of two towers": (settings(model_type="clip", architectures=["CLIPModel"]), "do not match the weights"),
    "a family of translators": (
        settings(model_type="t5", architectures=["T5ForConditionalGeneration"]), "do not match the weights"
    ),
    "an unknown family": (settings(model_type="mamba2"), "unknown family 'mamba2'"),
    "no family": (json_file("config.json", {}), "lacks 'model_type'; get the file again"),
    "no settings": (without("config.json"), "has format 'pt', not 'headway'; add its config.json"),
    "no JSON": (json_file("config.json", "{"), "config.json is not JSON"),
    "no mapping": (json_file("config.json", [1]), "is not a mapping of settings"),
    "unknown rotary positions": (settings(rope_parameters={"rope_type": "magic"}), "rope_type is 'magic'"),
    "no rotary base": (settings(rope_parameters={"rope_type": "default", "rope_theta": 0}), "set a theta above 0"),
    "unknown activation": (settings(hidden_act="swoosh"), "hidden_act is 'swoosh'"),
    "a row too few": (tensors(**{UP: lambda tensor: tensor[1:]}), "makes (47, 16), but the configuration needs (48,"),
    "a vector for a matrix": (tensors(**{UP: Tensor.flatten}), "do not fit together"),
    "a missing tensor": (tensors(**{NORM: lambda tensor: None}), f"lacks tensor '{NORM}'"),
    "integers": (tensors(**{NORM: Tensor.int}), "has dtype int32, which only quantised models have"),
    "an empty file": (json_file("model.safetensors", ""), "too few for a header"),
    "half a file": (cut, "is not a complete safetensors file"),
    "NaN in a scale": (gptq, "has scales that are not finite (scales)"),
}  # fmt: skip
SHARDED: dict[str, tuple[Change, str]] = {
    "a missing shard": (without("model-00002-*"), "lacks the shard 'model-00002-of-"),
    "an index without tensors": (json_file("model.safetensors.index.json", {}), "has no weight_map"),
    "a file outside": (
        json_file("model.safetensors.index.json", {"weight_map": {UP: "../model.safetensors"}}),
        "which is not a file in its folder",
    ),
}
MIXTURE: dict[str, tuple[Change, str]] = {
    "zero experts": (settings(num_local_experts=0), "active is 2 of 0 experts; set it to at least 1 and count"),
    "a negative number of experts": (settings(num_local_experts=-1), "active is 2 of -1 experts"),
    "a billion experts": (settings(num_local_experts=10**9), "too many for the"),
    "fewer experts than weights": (settings(num_local_experts=2), "has unknown tensor"),
    "no expert per token": (settings(num_experts_per_tok=0), "active is 0 of 4 experts; set it from 1 to 4"),
    "more experts per token than there are": (settings(num_experts_per_tok=5), "active is 5 of 4 experts"),
}
ENCODER: dict[str, tuple[Change, str]] = {
    "no hidden size": (settings(hidden_size=0), "the hidden size is 0"),
    "no layers": (settings(num_hidden_layers=0), "num_hidden_layers is 0; it should be at least 1"),
    "no positions": (settings(max_position_embeddings=0), "the context is 0"),
    "another family of encoders": (settings(model_type="distilbert"), "headway: "),
    "a row too few": (tensors(**{QUERY: lambda tensor: tensor[1:]}), "but the configuration needs"),
    "modules that are no list": (json_file("modules.json", {}), "is not a list of modules"),
    "unknown pooling": (json_file("1_Pooling/config.json", {"pooling_mode": "magic"}), "pools by magic"),
    "no pooling": (json_file("1_Pooling/config.json", {}), "pools by nothing"),
    "no folder of a module": (lambda folder: shutil.rmtree(folder / "1_Pooling"), "headway: "),
    "no limit": (json_file("sentence_bert_config.json", {"max_seq_length": 0}), "max_seq_length is 0"),
}
CASES = {
    **{f"decoder: {name}": ("decoder", case) for name, case in DECODER.items()},
    **{f"shards: {name}": ("shards", case) for name, case in SHARDED.items()},
    **{f"mixture: {name}": ("mixture", case) for name, case in MIXTURE.items()},
    **{f"encoder: {name}": ("encoder", case) for name, case in ENCODER.items()},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder of each kind, and a file of texts."""
    place = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    llama = T.LlamaForCausalLM(T.LlamaConfig(**SIZES))
    llama.save_pretrained(place / "decoder")
    llama.save_pretrained(place / "shards", max_shard_size="20KB")
    mixture = T.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
    T.MixtralForCausalLM(mixture).save_pretrained(place / "mixture")
    T.BertModel(T.BertConfig(**SIZES)).save_pretrained(place / "encoder")
    names = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    json_file("modules.json", modules)(place / "encoder")
    (place / "encoder/1_Pooling").mkdir()
    json_file("1_Pooling/config.json", {"pooling_mode": "mean"})(place / "encoder")
    for folder in list(place.iterdir()):
        wordpiece().save_pretrained(folder)
    (place / "texts.txt").write_text("\n\n".join(TEXTS * 5))
    return place


def commands(kind: str, folder: Path, out: Path, texts: Path) -> list[list[str]]:
    use = ["embed"] if kind == "encoder" else ["generate", "--prompt", "pearls", "--backend", "torch"]
    evaluate = [] if kind == "encoder" else [["evaluate", "--data", str(texts)]]
    written = [["quantize", str(out), "--weights", "int8"], ["export", str(out)]]
    return [[name, str(folder), *arguments] for name, *arguments in (["show"], use, *evaluate, *written)]


@pytest.mark.parametrize("kind", ["decoder", "shards", "mixture", "encoder"])
def test_good_folders_are_accepted(
    kind: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands(kind, folders / kind, tmp_path / "out", folders / "texts.txt"):
        monkeypatch.setattr("sys.stdin", io.StringIO("pearls\n"))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert cli.main(command) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", CASES)
def test_bad_folders_are_refused(
    name: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, (change, message) = CASES[name]
    folder = shutil.copytree(folders / kind, tmp_path / "bad")
    change(folder)
    before = sorted(tmp_path.rglob("*"))
    for command in commands(kind, folder, tmp_path / "out", folders / "texts.txt"):
        monkeypatch.setattr("sys.stdin", io.StringIO("pearls\n"))
        capsys.readouterr()
        if (command[0], message) == ("show", "has scales that are not finite (scales)"):
            continue  # values are not read
        assert cli.main(command) == 2, command
        printed = capsys.readouterr()
        assert printed.out == "", command
        assert printed.err.count("\n") == 1, printed.err
        assert message in printed.err, command
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_a_text_that_is_too_long_is_refused_or_truncated(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other lines have their vectors."""
    for options, code in (([], 2), (["--truncate"], 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO("pearls\n" + "pearls " * 130 + "\n"))
        assert cli.main(["embed", str(folders / "encoder"), *options]) == code
        printed = capsys.readouterr()
        short, long = map(json.loads, printed.out.splitlines())
        assert len(short) == 16
        assert (long is None) == (code == 2)
        assert printed.err.count("\n") == (1 if code else 0)
        assert not code or "but the model reads at most 128; shorten it" in printed.err
