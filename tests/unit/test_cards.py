"""Model cards: everything in them is the run's own, and what is unknown is stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import SETTINGS, play_file, publish, train

import headway as hw
from headway.app.cli.main import main as cli
from headway.domains import recipe as find_recipe
from headway.learn import Run
from headway.learn.report.charts import format_interval

TEXT = {**SETTINGS, "model.width": 32, "model.depth": 1, "model.heads": 2, "task.size": 300}


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory, brief_samples: None) -> Run:
    folder = tmp_path_factory.mktemp("cards")
    (folder / "my | <b>`notes`.txt").write_text(play_file(data_dir, folder).read_text())
    return train(folder / "mine", folder / "my | <b>`notes`.txt", "text", set=TEXT)


def card_of(folder: Path) -> tuple[dict[str, object], str]:
    """The header and the text of a card."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_a_card_is_the_runs_own(run: Run, tmp_path: Path) -> None:
    hw.export(run.directory, tmp_path / "out")
    header, text = card_of(tmp_path / "out")
    assert header == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["headway", "text"],
    }
    assert f"{run.summary['parameters']:,} parameters" in text
    assert r"- my \| \<b\>\`notes\`.txt: a local file or folder. Licence and source: unknown." in text
    for name, value in run.summary["data"].items():
        if name != "version":
            assert (f"{value:,} {name}" if isinstance(value, int) else f"{name} {value}") in text
    scores = run.summary["scores"]
    assert f"| perplexity | {scores['perplexity']:.4g} |" in text
    assert f"Trained for 6 steps ({run.summary['tokens']:,} tokens" in text
    assert "It was tested on the test split of the data above, and on nothing else." in text
    assert "at most 16 tokens at once" in text
    assert f"| torch | {run.summary['packages']['torch']} |" in text
    assert 'headway generate out --prompt "Some text"' in text
    assert str(run.directory.parent) not in text
    recipe = json.loads(text.split("```json\n")[1].split("```")[0])
    assert recipe["data"] == ["my | <b>`notes`.txt"]
    assert recipe["train"]["steps"] == 6
    assert cli(["verify", str(tmp_path / "out")]) == 0


def test_figures_have_their_intervals(run: Run, tmp_path: Path) -> None:
    status = json.loads((run.directory / "run.json").read_text())
    status["scores"] |= {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "judged": 3, "judged_of": 9}
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.directory.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "run.json").write_text(json.dumps(status))
    (copy / "digests.json").unlink()
    hw.export(copy, tmp_path / "out")
    _, text = card_of(tmp_path / "out")
    assert f"| accuracy | 50.0 % | {format_interval(0.4, 0.6, share=True)} |" in text
    assert "The test scores are from 3 of 9 samples because time was limited" in text
    del status["scores"], status["best"]
    (copy / "run.json").write_text(json.dumps(status))
    hw.export(copy, tmp_path / "unknown")
    _, text = card_of(tmp_path / "unknown")
    assert "It was not evaluated, so its figures are unknown." in text
    assert "What it was tested on is unknown." in text


def test_known_sets_have_their_licence_and_source(data_dir: Path, tmp_path: Path, brief_samples: None) -> None:
    (tmp_path / "lm").mkdir()
    play = play_file(data_dir, tmp_path).rename(tmp_path / "lm/tinyshakespeare.txt")  # known by the end of its path
    run = train(tmp_path / "run", play, "text", set=TEXT)
    hw.export(run.directory, tmp_path / "out")
    _, text = card_of(tmp_path / "out")
    assert "- tinyshakespeare: Shakespeare's plays in one file; 1,115,394 characters. Licence: public domain. " in text
    assert "Source: https://github.com/karpathy/char-rnn" in text
    assert str(tmp_path) not in text


def test_a_published_card_is_kept(run: Run, data_dir: Path, tmp_path: Path) -> None:
    folder = publish(play_file(data_dir, tmp_path), tmp_path / "theirs", "gpt2")
    hw.export(folder, tmp_path / "without")
    header, text = card_of(tmp_path / "without")
    assert header["pipeline_tag"] == "text-generation"
    for unknown in ("The training data and their licence are unknown.", "How it was trained is unknown."):
        assert unknown in text
    (folder / "README.md").write_text("# Theirs\n", encoding="utf-8")
    hw.export(folder, tmp_path / "with")
    assert (tmp_path / "with/README.md").read_text() == "# Theirs\n"
    (tmp_path / "private").write_text("secret", encoding="utf-8")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "private")
    hw.export(folder, tmp_path / "link")
    assert "secret" not in card_of(tmp_path / "link")[1]
    start = hw.train(
        find_recipe("text"),
        data=tmp_path / "play.txt",
        from_=folder,
        set={"train.steps": 2, "train.batch_tokens": 64, "task.context": 16, "task.tokenizer": str(folder)},
        run=tmp_path / "tuned",
        progress=False,
        samples=0,
    )
    hw.export(start.directory, tmp_path / "tuned-out")
    header, text = card_of(tmp_path / "tuned-out")
    assert header["base_model"] == "theirs"
    assert str(tmp_path) not in text


def test_a_card_next_to_a_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'headway[gguf]'")
    (tmp_path / "a").mkdir()
    assert cli(["export", str(run.directory), str(tmp_path / "a/mine.gguf"), "--card"]) == 0
    header, text = card_of(tmp_path / "a")
    assert header["library_name"] == "gguf"
    assert "headway generate mine.gguf" in text
    assert cli(["export", str(run.directory), str(tmp_path / "a/again.gguf"), "--card"]) == 2
    assert "README.md already exists; choose a folder without it" in capsys.readouterr().err
    assert not (tmp_path / "a/again.gguf").exists()
    assert cli(["export", str(run.directory), str(tmp_path / "a/again.gguf")]) == 0
