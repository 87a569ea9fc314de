"""What lies beyond what a model met in training is said, once, and never where nothing does."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import headway as hw
from headway.checkpoints.alike import Alike, look, looks
from headway.checkpoints.familiar import Familiar, read_familiar
from headway.cli import main as cli
from headway.codecs.images import write_image
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.vision.recipes import small_vit


def test_unseen_symbols_and_longer_texts() -> None:
    met = Familiar.of(np.array([0, 1, 2, 2]), 8, longest=3, marks=(7, None))
    assert met.unseen == (3, 4, 5, 6)
    assert met.beyond(["a", "b"], [[0, 1, 7], [2, 2, 1]]) == []
    long, strange = met.beyond(["a", "b b b b", "c"], [[0, 1], [2, 2, 2, 2], [3, 0, 1]])
    assert long.startswith("longer than any text in training: 1 of 3, of 4 tokens at most")
    assert "1 of 3, such as 'c'" in strange
    assert met.beyond(["six"], [[3, *[0] * 2]])  # a third of them
    assert Familiar(None, (3,)).beyond(["rare"], [[3, *[0] * 9]]) == []  # a tenth: one rare word
    assert Familiar().beyond(["any"], [[1] * 1000]) == []


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    words = ["one", "two", "three", "four", "five"]
    lines = [f"{a} {b}\t{b} {a}" for a in words for b in words]
    (folder / "pairs.tsv").write_text("\n".join(lines * 4) + "\n")
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 2}
    hw.train("translation", data=folder / "pairs.tsv", set=settings, run=folder / "run", samples=0, progress=False)
    return folder / "run"


def test_a_translator_says_so_once(
    translator: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_familiar(translator).longest
    ask = ["translate", str(translator), "--beam", "1", "--json"]
    monkeypatch.setattr("sys.stdin", StringIO("one two\nthree one\n"))
    assert cli.main(ask) == cli.DONE
    told = capsys.readouterr()
    assert json.loads(told.out)["beyond"] == []
    monkeypatch.setattr("sys.stdin", StringIO(""))
    assert cli.main(ask) == cli.USER_ERROR
    assert "there is no line to translate; give some" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", StringIO("Привет мир\n" + "one two three " * 5 + "\n"))
    assert cli.main(ask) == cli.DONE
    told = capsys.readouterr()
    assert len(json.loads(told.out)["beyond"]) == 2


def test_a_language_model_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{number} birds sang in the trees.\n" for number in range(300)))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 2}
    hw.train("text", data=book, set=settings, run=tmp_path / "run", samples=0, progress=False)
    model = hw.load(tmp_path / "run", backend="torch")
    model.generate("12 birds sang", max_new_tokens=1)
    assert not model.beyond
    model.generate("世界你好", max_new_tokens=1)
    model.generate("世界你好", max_new_tokens=1)
    assert len(model.beyond) == 1
    assert sum("no text in training had" in record.message for record in caplog.records) == 1


def texture(rng: np.random.Generator, size: int = 12) -> np.ndarray:
    """A bright spot at any place of a dark image, with a little noise."""
    y, x = np.mgrid[:size, :size]
    at = rng.uniform(4, size - 4, 2)
    spot = 200 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / rng.uniform(4, 9))
    return (spot + rng.uniform(0, 20, (size, size))).clip(0, 255).astype(np.uint8)[:, :, None]


def test_what_looks_like_no_training_image_is_told() -> None:
    rng = np.random.default_rng(0)
    alike = Alike.of(looks(texture(rng) for _ in range(600)))
    assert alike is not None
    assert alike.beyond(looks(texture(rng) for _ in range(1000))).mean() < 0.01
    noise = rng.integers(0, 256, (20, 12, 12, 1), dtype=np.uint8)
    blank = [np.full((12, 12, 1), level, np.uint8) for level in (0, 10, 128, 255)]
    inverted = [255 - texture(rng) for _ in range(20)]
    for strange in (noise, blank, inverted):
        assert alike.beyond(looks(strange)).all()
    assert Alike.of(np.stack([look(texture(rng))] * 99)) is None
    met = Familiar(alike=alike)
    assert met.strange(["a"], looks([texture(rng)])) == []
    assert met.strange(["a", "b"], looks([texture(rng), noise[0]]))[0].startswith(
        "unlike the images in training: 1 of 2, such as b"
    )


def test_a_classifier_of_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, data = np.random.default_rng(1), tmp_path / "data"
    for number in range(150):
        place = data / ("train" if number < 130 else "test") / ("light" if number % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        write_image(np.repeat(texture(rng) // (1 + number % 2), 3, axis=2), place / f"{number}.png")
    settings = {"train.steps": 1, "train.batch_size": 8, "train.precision": "fp32"}
    model = small_vit(width=16, depth=1, heads=2, patch=4, size=12)
    recipe = override(replace(find_recipe("vision"), model=model), settings)
    hw.train(recipe, data=data, run=tmp_path / "run", samples=0, progress=False)
    write_image(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), tmp_path / "noise.png")
    ask = ["classify", "--json", str(tmp_path / "run")]
    assert cli.main([*ask, str(data / "test")]) == cli.DONE
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["beyond"] == []
    assert cli.main([*ask, str(tmp_path / "noise.png")]) == cli.DONE
    (line,) = json.loads(capsys.readouterr().out.splitlines()[-1])["beyond"]
    assert line.startswith("unlike the images in training: 1 of 1")
    assert "noise.png" in line

    judge = ["evaluate", str(tmp_path / "run"), "--json", "--data"]
    assert cli.main([*judge, str(data)]) == cli.DONE
    told = capsys.readouterr()
    scores = json.loads(told.out.splitlines()[-1])
    assert (scores["split"], scores["samples"]) == ("test", 20)
    assert f"evaluated on the test part of {data}; --split all takes all" in told.err
    (data / "test").rename(data / "val")
    judged = [
        (data, [], ("validation", 20)),
        (data / "val", [], ("all", 20)),
        (data, ["--split", "all"], ("all", 150)),
    ]
    for folder, more, found in judged:
        assert cli.main([*judge, str(folder), *more]) == cli.DONE
        scores = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (scores["split"], scores["samples"]) == found


def test_a_classifier_of_texts_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{number} birds sang,sound" for number in range(60)] + [
        f"{number} trees stood,sight" for number in range(60)
    ]
    (tmp_path / "texts.csv").write_text("text,label\n" + "\n".join(rows))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 1}
    hw.train("classification", tmp_path / "texts.csv", settings, run=tmp_path / "run", samples=0, progress=False)
    model = hw.load(tmp_path / "run")
    model.classify("birds sang birds sang birds sang birds sang birds sang birds sang")
    assert not model.beyond  # a longer text is nothing strange
    model.classify(["3 birds", "世界你好"])
    model.classify("世界你好")
    assert [line[:45] for line in model.beyond] == ["in symbols that no text in training had: 1 of"]
    assert sum("no text in training had" in record.message for record in caplog.records) == 1


def test_an_empty_text_has_no_attention(translator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "book.txt").write_text("".join(f"{number} birds sang in the trees.\n" for number in range(300)))
    settings = {"model.width": 16, "model.depth": 1, "model.heads": 2, "task.size": 300, "train.steps": 1}
    hw.train("text", data=tmp_path / "book.txt", set=settings, run=tmp_path / "run", samples=0, progress=False)
    capsys.readouterr()
    for run in (translator, tmp_path / "run"):
        assert cli.main(["attention", str(run), str(tmp_path / "a.png"), "--text", " "]) == cli.USER_ERROR
        assert (
            capsys.readouterr().err.strip() == "headway: an empty text has no attention; give one with at least a word"
        )
