"""What quantising costs on given texts, and formats that are chosen for each layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from format_models import LLAMA, drawn, published_config

import headway as hw
from headway.app.cli import main as cli
from headway.app.quantization import FormatSizes, LayerCost, layers_of, quantised_matrices, weight_errors
from headway.codecs import train_codec
from headway.engine import Engine, PackedTensor
from headway.formats.published import save_published
from headway.generate import strided_nats
from headway.layout import Layout
from headway.nn.models import Prompt
from headway.nn.models.presets import bert, vit

TEXT = "The cat sat on the mat, and the dog sat on the log. " * 30
CONFIG = published_config(LLAMA, hidden_size=64, vocab_size=100, tie_word_embeddings=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published Llama of characters."""
    save_published(drawn(CONFIG), CONFIG, tmp_path / "model")
    train_codec("char", iter([TEXT])).save(tmp_path / "model")
    (tmp_path / "texts.txt").write_text(TEXT)
    return tmp_path / "model"


def test_the_costs_are_those_of_the_models(folder: Path) -> None:
    texts, place = folder.with_name("texts.txt"), folder.with_name("out")
    found = hw.quantize(folder, place, "int4", report=texts)
    assert found.report is not None
    original, int8, int4 = found.report.formats
    assert [cost.weights for cost in found.report.formats] == ["fp32", "int8", "int4"]
    assert original.divergence == 0 < int8.divergence < int4.divergence
    assert (int8.bits_per_weight, int4.bits_per_weight) == pytest.approx((9, 4.75), abs=0.75)
    loaded, plain = hw.load(place), hw.load(folder)
    ids = torch.tensor(plain.prompt_ids(TEXT))[:64]
    with torch.no_grad():
        first, rounded = (model.module.logits(ids[None])[0].log_softmax(-1) for model in (plain, loaded))
        divergence = float((first.exp() * (first - rounded)).sum(-1).mean())
    assert int4.divergence == pytest.approx(divergence, rel=0.5)
    nats = strided_nats(plain.module, plain.prompt_ids(TEXT)[: found.report.tokens], stride=63)
    assert original.loss == pytest.approx(nats.total / nats.tokens, rel=0.05)
    assert original.perplexity == pytest.approx(torch.tensor(original.loss).exp().item())
    layers = found.report.layers
    assert [cost.layer for cost in layers] == list(found.layers)
    assert [cost.layer for cost in layers] == ["embed", "stack.blocks.0", "stack.blocks.1", "heads.vocabulary.project"]
    assert all(0 < cost.divergence["int8"] < cost.divergence["int4"] for cost in layers)
    assert sum(cost.divergence["int4"] for cost in layers) == pytest.approx(int4.divergence, rel=0.7)


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize("bits", [6.0, 7.0, 20.0])
def test_chosen_formats_keep_to_the_bits_and_run_on_the_engine(folder: Path, bits: float, texts: bool) -> None:
    report = folder.with_name("texts.txt") if texts else None
    results = [
        hw.quantize(folder, folder.with_name(name), bits_per_weight=bits, report=report) for name in ("out", "again")
    ]
    assert results[0].layers == results[1].layers
    first, second = (result.directory / "quantized.safetensors" for result in results)
    assert first.read_bytes() == second.read_bytes()
    formats: Any = results[0].layers
    model = drawn(CONFIG)
    assert FormatSizes(layers_of(model)).bits(formats) <= bits
    assert len(set(formats.values())) > 1
    compiled, module = hw.load(first.parent, cache="fp32"), hw.load(first.parent, backend="torch")
    assert isinstance(compiled.generator, Engine)
    for name, parameter in compiled.module.named_parameters():
        dtype = next((formats[layer] for layer, names in layers_of(model).items() if name in names), "fp32")
        assert isinstance(parameter, PackedTensor) == (dtype != "fp32")
    ids = torch.tensor([[3, 4, 5, 6]])
    logits = [model.generator.start(Prompt(ids, Layout.full(1, 4)), 8)[0] for model in (compiled, module)]
    assert (logits[0] - logits[1]).norm() < 0.02 * logits[1].norm()  # as in test_engine.py


def test_show_names_the_formats_of_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.with_name("out")
    assert cli.main(["quantize", str(folder), str(out), "--bits-per-weight", "7"]) == cli.DONE
    assert "written as" in capsys.readouterr().out
    assert cli.main(["show", str(out), "--json"]) == cli.DONE
    formats = json.loads(capsys.readouterr().out)["weights"]
    assert list(formats) == list(layers_of(drawn(CONFIG)))
    assert set(formats.values()) >= {"int4", "int8"}
    assert cli.main(["show", str(out)]) == cli.DONE
    assert "  weights: int" in capsys.readouterr().out


def test_the_report_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(folder), str(folder.with_name("out")), "--report", str(folder.with_name("texts.txt"))]
    assert cli.main([*words, "--bits-per-weight", "6", "--json"]) == cli.DONE
    result = json.loads(capsys.readouterr().out)
    assert result["weights"] == "mixed"
    assert [row["weights"] for row in result["report"]["formats"]] == ["fp32", "int8", "int4"]
    assert list(result["layers"]) == [row["layer"] for row in result["report"]["layers"]]
    words[2] += "2"
    assert cli.main([*words, "--weights", "int8"]) == cli.DONE
    out = capsys.readouterr().out
    assert "KL divergence of the predicted tokens" in out
    assert "divergence if only this layer is quantised" in out


def test_the_step_with_most_divergence_per_byte_comes_first() -> None:
    """Of two equal layers the one that loses more gets more bits; without a gain nothing grows."""
    layers = {name: {f"{name}.weight": torch.zeros(64, 64)} for name in ("first", "second")}
    sizes = FormatSizes(layers)
    costs = [
        LayerCost("first", 4096, {"int8": 0.001, "int4": 0.1}),
        LayerCost("second", 4096, {"int8": 0.002, "int4": 0.3}),
    ]
    assert sizes.choose(costs, 4.5) == {"first": "int4", "second": "int4"}
    assert sizes.choose(costs, 6.5) == {"first": "int4", "second": "int8"}
    assert sizes.choose(costs, 8.5) == {"first": "int8", "second": "int8"}
    assert sizes.choose(costs, 20.25) == {"first": "int8", "second": "fp32"}
    assert sizes.choose(costs, 32) == {"first": "fp32", "second": "fp32"}
    same = [LayerCost(name, 4096, {"int8": 0.0, "int4": 0.0}) for name in layers]
    assert sizes.choose(same, 32) == {"first": "int4", "second": "int4"}


def test_matrices_are_quantised_only_in_the_context() -> None:
    model = drawn(CONFIG)
    before = dict(model.named_parameters())
    with quantised_matrices(model, {"embed.table": "int4"}):
        assert isinstance(model.embed.table, PackedTensor)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    errors = weight_errors(layers_of(model))
    assert all(0 < cost.divergence["int8"] < cost.divergence["int4"] / 50 for cost in errors)


def test_encoders_compare_their_vectors(tmp_path: Path) -> None:
    config = replace(bert(32, 2, 2, 100), heads={})
    save_published(drawn(config), config, tmp_path / "model")
    train_codec("char", iter([TEXT])).save(tmp_path / "model")
    (tmp_path / "texts.txt").write_text(TEXT)
    report = hw.quantize(tmp_path / "model", tmp_path / "out", "int8", report=tmp_path / "texts.txt").report
    assert report is not None
    assert report.measure.startswith("squared difference of the vectors")
    assert [cost.loss for cost in report.formats] == [None] * 3
    assert 0 < report.formats[1].divergence < report.formats[2].divergence < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits-per-weight", "1"], "1 bits per weight are not possible: this model has 4."),
        (["--bits-per-weight", "40"], "32 with all in fp32; choose a number between them"),
        (["--bits-per-weight", "5", "--weights", "int8"], "not allowed with"),
        ([], "one of the arguments --weights --bits-per-weight is required"),
        (["--weights", "int8", "--report", "{empty}"], "is empty"),
        (["--weights", "int8", "--report", "{blank}"], "has no text of two tokens"),
        (["--weights", "int8", "--report", "{missing}"], "missing.txt"),
    ],
)
def test_bad_requests_write_nothing(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: folder.with_name(f"{name}.txt") for name in ("empty", "blank", "missing")}
    places["empty"].write_text("")
    places["blank"].write_text(" \n")
    given = [word.format(**places) for word in words]
    assert cli.main(["quantize", str(folder), str(folder.with_name("out")), *given]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not folder.with_name("out").exists()


def test_a_report_needs_a_model_that_reads_texts(tmp_path: Path) -> None:
    config = vit(16, 2, 2, 4, classes=3, size=8)
    save_published(drawn(config), config, tmp_path / "vit")
    (tmp_path / "texts.txt").write_text(TEXT)
    with pytest.raises(hw.UserError, match=r"is an image model .*, which does not read texts in one stack"):
        hw.quantize(tmp_path / "vit", tmp_path / "out", "int8", report=tmp_path / "texts.txt")
    assert not (tmp_path / "out").exists()
