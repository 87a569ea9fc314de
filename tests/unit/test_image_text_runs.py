"""Runs over images and texts: what they learn, matching, other forms, and published models that are gone on with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_text_data import TINY, draw

import headway as hw
from headway.app.cli import main as cli
from headway.codecs import train_codec
from headway.domains.image_text.task import SPECIAL
from headway.errors import UserError
from headway.formats.published import save_published
from headway.formats.usage import Usage
from headway.nn.models import ProbeHeadConfig, build
from headway.nn.models.presets import siglip

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the coloured pictures, which are judged too, long enough to tell them apart."""
    folder = tmp_path_factory.mktemp("colours")
    draw(folder / "seen", "train.csv")
    draw(folder / "held", "validation.csv")
    for path in (folder / "held").glob("*.png"):  # no equal pixels, or they would not be trained on
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0] += 3
        Image.fromarray(pixels).save(path)
    more = {"train.steps": 60, "train.batch_size": 12, "optim.lr": 3e-3, "optim.weight_decay": 0.0, "task.captions": 2}
    hw.train(
        "image-text",
        [folder / "seen", folder / "held"],
        {**TINY, **more, "task.augment": {}, "task.split.test": 0.0, "train.evaluate_every": 60},
        run=folder / "run",
        progress=False,
    )
    return folder / "run"


def test_a_run_learns_to_find_what_it_saw(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert summary["scores"]["recall_at_1"] > 0.8
    assert summary["scores"]["recall_at_1_xx"] > 0.8
    assert summary["scores"]["loss"] < 2
    assert summary["goal"] == "mean_recall_at_1"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Nearest images for each text" in page
    assert "data:image/png;base64," in page
    assert cli.main(["evaluate", str(run), "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recall_at_1"] == summary["scores"]["recall_at_1"]


def test_match_says_which_text_an_image_shows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(run.parent / "seen" / f"bright-{colour}.png") for colour in ("red", "green")]
    texts = ["a bright green picture", "a bright red picture"]
    assert cli.main(["match", str(run), "--image", *images, "--text", *texts, "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["images"], found["texts"]) == (images, texts)
    probable = np.array(found["probabilities"])
    assert probable.argmax(1).tolist() == [1, 0]
    np.testing.assert_allclose(probable.sum(1), 1, rtol=1e-5)
    assert cli.main(["match", str(run), "--image", images[0], "--text", *texts]) == cli.DONE
    assert capsys.readouterr().out.splitlines()[2].startswith("a bright red picture")
    model = hw.load(run)
    vectors = model.embed([*images, *texts])
    np.testing.assert_allclose((vectors[:2] @ vectors[2:].T).tolist(), found["similarities"], atol=1e-5)
    np.testing.assert_allclose(vectors.norm(dim=1).tolist(), 1, rtol=1e-5)
    torch.testing.assert_close(model.embed(texts[0]), vectors[2], rtol=1e-5, atol=1e-5)
    whole = model.match(images, texts)
    torch.testing.assert_close(model.match(images[0], texts).probabilities, whole.probabilities[0])
    torch.testing.assert_close(model.match(images[0], texts[1]).similarities, whole.similarities[0, 1])


def test_templates_are_averaged(run: Path) -> None:
    model, image = hw.load(run), str(run.parent / "seen" / "bright-red.png")
    forms = ["a bright {} picture", "a pale {} picture"]
    found = model.match([image], ["red", "blue"], forms).similarities[0]
    each = model.embed([form.format(name) for name in ("red", "blue") for form in forms]).unflatten(0, (2, 2)).mean(1)
    wanted = torch.nn.functional.normalize(each, dim=-1) @ model.embed([image])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_model_keeps_what_it_says_in_other_forms(run: Path, tmp_path: Path) -> None:
    """Exported, and imported again."""
    images = [str(run.parent / "seen" / f"bright-{colour}.png") for colour in ("red", "green")]
    texts = ["a bright green picture", "a bright red picture"]
    wanted = hw.load(run).match(images, texts)
    assert cli.main(["export", str(run), str(tmp_path / "clip")]) == cli.DONE
    assert cli.main(["import", str(tmp_path / "clip"), str(tmp_path / "own")]) == cli.DONE
    for place in ("clip", "own"):
        found = hw.load(tmp_path / place).match(images, texts)
        torch.testing.assert_close(found.probabilities, wanted.probabilities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.png", "--text", "a"], "none.png is not a file"),
        (["--image", "IMAGE", "--text", " "], "text 1 of 1 is empty"),
        (["--image", "IMAGE", "--text", "a", "--template", "no place"], "needs exactly one {}"),
        (["--image", "IMAGE", "--text", "a " * 90], "tokens, but the model reads at most 64"),
    ],
)
def test_what_cannot_be_matched_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run.parent / "seen" / "bright-red.png") if word == "IMAGE" else word for word in arguments]
    assert cli.main(["match", str(run), *given]) == cli.USER_ERROR
    assert message in capsys.readouterr().err


def test_a_model_that_matches_refuses_other_uses(run: Path) -> None:
    model = hw.load(run)
    for use in (
        model.generate,
        model.attention,
        lambda text: model.score([text]),
        lambda text: model.translate([text]),
    ):
        with pytest.raises(UserError, match=r"is an image-text embedding model, which cannot .*; use match or embed"):
            use("red")
    with pytest.raises(UserError, match="pass the class names as texts to match"):
        model.classify(["a.png"])


def test_a_published_siglip_fills_its_texts_and_is_judged_on_captions(tmp_path: Path) -> None:
    """Its tokens see the filling, so a text alone and beside longer ones must be the same."""
    codec = train_codec("bpe", ["red green blue white dark pale bright a picture"] * 4, 270, special=SPECIAL)
    config = siglip((16, 1, 2), 8, 16, codec.vocab_size, 20)
    assert isinstance(config.left.heads["embedding"], ProbeHeadConfig)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}}
    save_published(build(config), config, tmp_path / "model", Usage(processor=processor))
    codec.save(tmp_path / "model")
    model, table = hw.load(tmp_path / "model"), draw(tmp_path / "data")
    together = model.embed(["red", "a bright blue"])
    torch.testing.assert_close(model.embed(["red"]), together[:1], rtol=1e-5, atol=1e-6)
    found = model.evaluate(data=table)
    assert found["samples"] == 12
    assert 0 <= found["recall_at_5"] <= 1
    said = model.match([str(tmp_path / "data" / "dark-red.png")], ["red", "blue"]).probabilities
    assert (said > 0).all()
    assert (said < 1).all()


def test_a_run_starts_from_a_published_clip(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported, fine-tuned with its own tokenizer and image size, whole and by an adapter, and embedded from lines."""
    assert cli.main(["export", str(run), str(tmp_path / "clip")]) == cli.DONE
    config = json.loads((tmp_path / "clip" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "clip"
    settings = {"train.steps": 2, "train.batch_size": 4, "train.precision": "fp32", "task.augment": {}}
    table = draw(tmp_path / "data")
    hw.train("image-text", table, settings, run=tmp_path / "tuned", start=tmp_path / "clip", progress=False)
    hw.train("image-text", table, settings, run=tmp_path / "lora", start=tmp_path / "clip", lora=2, progress=False)
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    before, after = hw.load(run), hw.load(tmp_path / "tuned")
    assert before.codec.fingerprint() == after.codec.fingerprint()
    assert after.usage.processor["crop_size"] == {"height": 16, "width": 16}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/data/dark-red.png\na dark red picture\n"))
    assert cli.main(["embed", str(tmp_path / "tuned")]) == cli.DONE
