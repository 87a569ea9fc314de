"""ONNX files: onnxruntime and a tokenizer alone say what the model says, at any number and length of texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from format_models import LLAMA, drawn, published_config
from tiny_runs import play_file
from tiny_runs import train as train_texts
from tokenizers import Tokenizer
from understanding_data import small, write_questions, write_sentences
from vision_data import colours, tiny

import headway as hw
from headway.app.cli import main as cli
from headway.codecs.image_processor import ImageProcessor, read_image
from headway.codecs.tokenizer import sequence_template
from headway.config import override
from headway.domains.masked.recipes import masked
from headway.domains.understanding.recipes import classification, embedding, pairs
from headway.domains.understanding.recipes import encoder as small_encoder
from headway.formats import onnx
from headway.formats.published import save_published
from headway.learn import Recipe
from headway.nn.models import Transformer
from headway.nn.models.embeds import TokenInputs

pytest.importorskip("onnxscript", reason="the package onnxscript is not installed: pip install 'headway[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

TEXTS = ["I lost my card", "Why?", "What is the exchange rate for dollars today, and how long does it take?"]


def session(path: Path) -> Any:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def facts(made: Any) -> dict[str, str]:
    return made.get_modelmeta().custom_metadata_map


def exported(run: Path, out: Path) -> Any:
    assert cli.main(["export", str(run), str(out)]) == cli.DONE
    return session(out)


def fed(made: Any, tokenizer: Tokenizer, texts: Any) -> dict[str, np.ndarray]:
    """What a user makes of texts with the package tokenizers alone."""
    read = tokenizer.encode_batch(texts)
    values = {
        "input_ids": [each.ids for each in read],
        "attention_mask": [each.attention_mask for each in read],
        "token_type_ids": [each.type_ids for each in read],
    }
    return {each.name: np.array(values[each.name]) for each in made.get_inputs()}


def trained(recipe: Recipe, data: Path, run: Path, **settings: Any) -> Path:
    """A run whose weights are no longer those of its start, which may be zero."""
    chosen = override(recipe, {"train.steps": 8, "train.precision": "fp32", **settings})
    hw.train(chosen, data=data, run=run, progress=False, samples=0)
    return run


def told(model: hw.Model, text: str | tuple[str, str], head: str) -> np.ndarray:
    """What headway says of one text, without padding."""
    module, codec = cast(Transformer, model.module), model.codec
    first, second = (text, None) if isinstance(text, str) else text
    ids = sequence_template(codec).add_special_tokens(
        codec.encode(first), None if second is None else codec.encode(second)
    )
    start = len(sequence_template(codec).add_special_tokens(codec.encode(first))) if second is not None else len(ids)
    types = torch.tensor([[int(place >= start) for place in range(len(ids))]])
    with torch.inference_mode():
        return module.output(head, TokenInputs(torch.tensor([ids]), types))[0].numpy()


def test_a_classifier_of_texts(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"task.ngrams": True}
    run = trained(small(classification()), write_questions(data_dir, tmp_path), tmp_path / "run", **settings)
    out = tmp_path / "out" / "intents.onnx"
    assert cli.main(["export", str(run), str(out), "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["format"] == "onnx"
    made, model = session(out), hw.load(run)
    labels = json.loads((out.parent / "labels.json").read_text())
    assert facts(made)["kind"] == "text classifier"
    assert json.loads(facts(made)["labels"]) == labels == list(model.usage.labels)
    tokenizer = Tokenizer.from_file(str(out.parent / "tokenizer.json"))
    for texts in (TEXTS[:1], TEXTS, TEXTS * 5):
        logits, vectors = made.run(["logits", "sentence_embedding"], fed(made, tokenizer, texts))
        wanted = np.stack([told(model, text, "classes") for text in texts])
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
        np.testing.assert_allclose(vectors, model.embed(texts).numpy(), atol=1e-4)
        assert [labels[row.argmax()] for row in logits] == [next(iter(said)) for said in model.classify(texts)]


def test_a_classifier_of_pairs_and_a_sentence_encoder(data_dir: Path, tmp_path: Path) -> None:
    sentences = write_sentences(data_dir, tmp_path)
    lines = sentences.read_text().splitlines()
    labelled = [f"{line}\t{'short' if len(line) < 40 else 'long'}" for line in lines[1:]]
    (tmp_path / "pairs.tsv").write_text("\n".join([f"{lines[0]}\tlabel", *labelled]))
    run = trained(small(pairs()), tmp_path / "pairs.tsv", tmp_path / "pairs")
    made, model = exported(run, tmp_path / "a" / "pairs.onnx"), hw.load(run)
    some = [("Tom is here.", "Tom ist hier."), ("Why?", "Warum denn das, und wozu?")]
    logits = made.run(["logits"], fed(made, Tokenizer.from_file(str(tmp_path / "a/tokenizer.json")), some))[0]
    np.testing.assert_allclose(logits, [told(model, pair, "classes") for pair in some], atol=1e-4)

    run = trained(small(embedding()), sentences, tmp_path / "vectors")
    made, model = exported(run, tmp_path / "b" / "vectors.onnx"), hw.load(run)
    assert [each.name for each in made.get_outputs()] == ["sentence_embedding"]
    vectors = made.run(None, fed(made, Tokenizer.from_file(str(tmp_path / "b/tokenizer.json")), TEXTS))[0]
    np.testing.assert_allclose(vectors, model.embed(TEXTS).numpy(), atol=1e-4)


def test_a_published_folder_and_the_check_of_its_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, config = tmp_path / "model", published_config(LLAMA, num_hidden_layers=1)
    save_published(drawn(config), config, folder)
    assert cli.main(["export", str(folder), str(tmp_path / "out.onnx"), "--format", "onnx", "--json"]) == cli.DONE
    check = json.loads(capsys.readouterr().out)["check"]
    assert 0 <= check["difference"] < 1e-4 < check["largest"]


def test_a_masked_model_in_a_folder(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_encoder(width=32, depth=1, heads=2)
    recipe = override(masked(), {"task.size": 300, "train.batch_tokens": 512})
    recipe = override(recipe, {"model.width": model.width, "model.depth": 1, "model.heads": 2})
    run = trained(recipe, play_file(data_dir, tmp_path), tmp_path / "run")
    capsys.readouterr()
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--format", "onnx"]) == cli.DONE
    assert "largest difference" in capsys.readouterr().out
    made, opened = session(tmp_path / "out" / "model.onnx"), hw.load(run)
    assert facts(made)["kind"] == "masked language model"
    logits = made.run(["logits"], fed(made, Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")), TEXTS))[0]
    for row, text in zip(logits, TEXTS):
        wanted = told(opened, text, "vocabulary")
        np.testing.assert_allclose(row[: len(wanted)], wanted, atol=1e-4)


def test_a_language_model(data_dir: Path, tmp_path: Path) -> None:
    """Ids, with the mark before a text, and logits are those of a prompt."""
    run = tmp_path / "run"
    shape = {"model.depth": 1, "task.packing": "documents", "optim.lr": 0.02}
    train_texts(run, play_file(data_dir, tmp_path), set=shape)
    made, model = exported(run, tmp_path / "out" / "lm.onnx"), hw.load(run)
    assert facts(made)["kind"] == "language model"
    inputs = fed(made, Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")), ["To be, or", "Go"])
    assert inputs["input_ids"][0].tolist() == model.prompt_ids("To be, or")
    for rows, length in ((1, 1), (5, 3), (2, 16)):
        ids = np.arange(rows * length).reshape(rows, length) % model.codec.vocab_size
        logits = made.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        np.testing.assert_allclose(logits, model.logits(ids).numpy(), atol=1e-4)


def test_a_classifier_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    folder = colours(tmp_path / "data")
    run = trained(tiny(), folder, tmp_path / "run")
    monkeypatch.setattr(onnx, "_MAX_FILE_BYTES", 0)  # weights in a file of their own, as large ones are
    made, model = exported(run, tmp_path / "out" / "colours.onnx"), hw.load(run)
    assert (tmp_path / "out" / "colours.onnx.data").stat().st_size > 1000
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert json.loads(facts(made)["processor"]) == processor
    read = ImageProcessor.read(processor, "")
    files = sorted(folder.rglob("*.png"))
    for some in (files[:1], files[:5]):
        pixels = np.stack([read(read_image(file)) for file in some])
        logits, vectors = made.run(["logits", "image_embedding"], {"pixel_values": pixels})
        with torch.inference_mode():
            wanted = cast(Transformer, model.module).output("classes", torch.from_numpy(pixels))
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(vectors, model.embed(some).numpy(), atol=1e-4)


def test_what_cannot_be_exported_is_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play, run = play_file(data_dir, tmp_path), tmp_path / "lstm"
    train_texts(run, play, set={"model.mixer": "lstm", "train.steps": 1})
    words = ["one", "two", "three", "four"]
    (tmp_path / "pairs.tsv").write_text("\n".join(f"{a} {b}\t{b} {a}" for a in words for b in words for _ in "123"))
    tiny_pairs = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 1}
    hw.train(
        "translation", data=tmp_path / "pairs.tsv", set=tiny_pairs, run=tmp_path / "pairs", samples=0, progress=False
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "tokenizer.json").write_text("{}")
    train_texts(tmp_path / "lm", play, set={"train.steps": 1})
    capsys.readouterr()
    for asked, message in (
        ([run, "a.onnx"], "layer 1 of .* is a lstm, which processes tokens step by step"),
        ([tmp_path / "pairs", "a.onnx"], "is an encoder-decoder, whose beam search steps through caches"),
        (
            [tmp_path / "lm", tmp_path / "full" / "a.onnx"],
            "full/tokenizer.json already exists; choose an empty folder",
        ),
        ([run, "a.onnx", "--dtype", "f16"], "--dtype f16 applies to gguf files only, but the format is onnx"),
        ([tmp_path / "nothing", "a.onnx"], "nothing does not exist"),
    ):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["export", *map(str, asked)]) == cli.USER_ERROR
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1
        assert re.search(message, told), told
    assert not (tmp_path / "a.onnx").exists()
    monkeypatch.setattr(onnx.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    assert cli.main(["export", str(run), "a.onnx"]) == cli.USER_ERROR
    assert "install headway[onnx]" in capsys.readouterr().err
