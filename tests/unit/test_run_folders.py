"""Where commands write: a run stays in its folder, and no command replaces what is not its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import cut_back, play_file, publish, train
from tiny_task import counting_recipe
from tiny_task import train as count

import headway as hw
from headway.app.cli.main import USER_ERROR, main
from headway.app.conversion import import_model
from headway.errors import ConfigError, UserError
from headway.formats.open import open_model
from headway.io.durable import atomic_write, remove
from headway.io.outputs import open_run_file
from headway.learn import read_recipe
from headway.learn.run import RunDirectory


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after four of eight steps, as a stranger may send it."""
    folder = tmp_path_factory.mktemp("received")
    recipe = counting_recipe(steps=8, evaluate_every=2, keep=9)
    count(folder / "run", recipe)
    return cut_back(folder / "run", folder / "copy", 4)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume(run: Path) -> None:
    count(run, counting_recipe(steps=8, evaluate_every=2, keep=9), resume=True)


def lock_link(run: Path, precious: Path) -> None:
    (run / ".lock").symlink_to(precious / "notes.txt")


def lock_link_to_nothing(run: Path, precious: Path) -> None:
    (run / ".lock").symlink_to(precious / "new.txt")


def lock_hard_link(run: Path, precious: Path) -> None:
    os.link(precious / "notes.txt", run / ".lock")


def lock_pipe(run: Path, precious: Path) -> None:
    os.mkfifo(run / ".lock")


def lock_device(run: Path, precious: Path) -> None:
    (run / ".lock").symlink_to("/dev/zero")


def lock_folder(run: Path, precious: Path) -> None:
    (run / ".lock").mkdir()


def lease_link(run: Path, precious: Path) -> None:
    (run / ".lease").symlink_to(precious / "notes.txt")


def lease_hard_link(run: Path, precious: Path) -> None:
    os.link(precious / "notes.txt", run / ".lease")


def lease_pipe(run: Path, precious: Path) -> None:
    os.mkfifo(run / ".lease")


def checkpoints_link(run: Path, precious: Path) -> None:
    shutil.copytree(run / "checkpoints", precious, dirs_exist_ok=True)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(precious)


def trunk_link(run: Path, precious: Path) -> None:
    (run / "trunk").symlink_to(precious)


def data_link(run: Path, precious: Path) -> None:
    (run / "data").symlink_to(precious, target_is_directory=True)


def base_link(run: Path, precious: Path) -> None:
    (run / "base").symlink_to(precious)


def checkpoint_link(run: Path, precious: Path) -> None:
    (run / "checkpoints" / "step-00000001").symlink_to(precious)


def nested_link(run: Path, precious: Path) -> None:
    (run / "checkpoints" / "step-00000004" / "more").mkdir()
    (run / "checkpoints" / "step-00000004" / "more" / "link").symlink_to(precious / "notes.txt")


def metrics_link(run: Path, precious: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(precious / "notes.txt")


def status_pipe(run: Path, precious: Path) -> None:
    os.mkfifo(run / "report.html")


TRAPS = (
    lock_link,
    lock_link_to_nothing,
    lock_hard_link,
    lock_pipe,
    lock_device,
    lock_folder,
    lease_link,
    lease_hard_link,
    lease_pipe,
    checkpoints_link,
    trunk_link,
    data_link,
    base_link,
    checkpoint_link,
    nested_link,
    metrics_link,
    status_pipe,
)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_run_of_a_stranger_changes_nothing_elsewhere(
    trap: Callable[[Path, Path], None], received: Path, tmp_path: Path
) -> None:
    run, precious = shutil.copytree(received, tmp_path / "run"), tmp_path / "precious"
    precious.mkdir()
    (precious / "notes.txt").write_text("123")
    (run / ".lock").unlink(missing_ok=True)
    trap(run, precious)
    before = files(precious)
    with pytest.raises(UserError, match=r"(is a link to|is a pipe|is a folder|hard link).*; "):
        resume(run)
    assert files(precious) == before


def test_links_are_noticed_without_the_check_of_the_whole_run(
    received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a link is put there after the check."""
    monkeypatch.setattr("headway.learn.run.check_tree", lambda folder: None)
    for trap in (lock_link, lock_link_to_nothing, lock_hard_link, lock_pipe, lease_link, lease_pipe, checkpoints_link):
        run, precious = shutil.copytree(received, tmp_path / trap.__name__ / "run"), tmp_path / trap.__name__ / "other"
        precious.mkdir()
        (precious / "notes.txt").write_text("123")
        (run / ".lock").unlink(missing_ok=True)
        trap(run, precious)
        before = files(precious)
        with pytest.raises(UserError):
            resume(run)
        assert files(precious) == before


def test_a_link_that_takes_the_place_of_a_file_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    opening = os.open

    def swapped(path: Any, *given: Any) -> int:
        Path(path).symlink_to(tmp_path / "notes.txt")
        return opening(path, *given)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(UserError, match="is a link"):
        open_run_file(tmp_path / ".lock", update=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_may_lie_where_the_user_has_put_a_link(received: Path, tmp_path: Path) -> None:
    shutil.copytree(received, tmp_path / "disk")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "wandb").mkdir()
    (tmp_path / "disk" / "wandb" / "latest-run").symlink_to("run-1")  # as wandb has it
    resume(tmp_path / "run")
    assert json.loads((tmp_path / "disk" / "run.json").read_text())["status"] == "finished"


def test_of_a_link_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    (tmp_path / "link").symlink_to("folder")
    remove(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


BAD_NAMES = ("", ".", "..", "../../x", "/x/y", "a/b", "a\\b", "C:x", "a\0b", "a\nb", ".hidden", "a.", " a", "a" * 129)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_the_name_of_a_recipe_is_no_path(name: str, received: Path, tmp_path: Path) -> None:
    recipe = {**json.loads((received / "recipe.json").read_text()), "name": name}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ConfigError, match=r"recipe's name is .*; use letters"):
        read_recipe(tmp_path / "recipe.json")
    with pytest.raises(ConfigError):
        hw.train(tmp_path / "recipe.json", progress=False)


def test_names_in_any_script_are_names(received: Path, tmp_path: Path) -> None:
    for name in ("tiny", "größe 2", "日本語", "a.b-c_d,e=f", "x" * 128):
        recipe = {**json.loads((received / "recipe.json").read_text()), "name": name}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        assert read_recipe(tmp_path / "recipe.json").name == name


def test_the_variants_of_a_comparison_stay_in_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "scenes", "--set", "task.goal=..,loss"]) == USER_ERROR
    assert "a variant would be named '..'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return publish(play_file(data_dir, folder), folder / "model", "gpt2")


@pytest.mark.parametrize("spelling", ["{0}", "{0}/.", "{0}/../model", "{1}/link", "."])
def test_no_run_begins_in_a_folder_that_holds_something_else(
    spelling: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(model)
    monkeypatch.chdir(model)
    place, before = spelling.format(model, tmp_path), files(model)
    play = str(model.parent / "play.txt")
    for more in ([], ["--from", str(model)], ["--resume"], ["--from", place, "--resume"]):
        assert main(["train", "text", "--data", play, "--run", place, *more]) == USER_ERROR
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "is not empty and does not contain a run (config.json, model.safetensors, tokenizer.json, ...)" in told
    assert files(model) == before


def test_a_run_that_was_killed_at_its_start_begins_again(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / ".lock").write_text("123")
    (place / "tokenizer.json").write_text("{}")
    (place / "recipe.json").write_text("{}")
    assert count(place, counting_recipe(steps=2)).summary["status"] == "finished"


def test_a_folder_with_weights_is_no_run_that_was_killed_at_its_start(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("mine")
    with pytest.raises(UserError, match="is not empty and does not contain a run"):
        count(tmp_path, counting_recipe(steps=2))
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    (tmp_path / "report.html").write_text("mine")
    for other in ("", "made by another program"):
        (tmp_path / ".lock").write_text(other)
        with pytest.raises(UserError, match="is not empty and does not contain a run"):
            count(tmp_path, counting_recipe(steps=2))


def test_a_folder_of_the_users_is_left_as_it_was_where_no_run_begins(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        with pytest.raises(UserError, match="nowhere"):
            hw.train("text", tmp_path / "nowhere.txt", run=tmp_path / name, progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    with suppress(UserError), RunDirectory(tmp_path / "empty").locked():
        (tmp_path / "empty" / "tokenizer.json").write_text("{}")
        raise UserError("wrong")
    assert (tmp_path / "empty" / ".lock").is_file()  # so that the run can begin here


def test_what_is_written_meanwhile_is_not_replaced(model: Path, tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "out", new=True) as draft:
            draft.mkdir()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("mine")

    with pytest.raises(UserError, match=r"out was written by another program in the meantime"):
        write()
    assert files(tmp_path) == {"out/file": b"mine"}
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    import_model(open_model(model), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_quantised_run_holds_no_copies_of_files_elsewhere(data_dir: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", play_file(data_dir, tmp_path), set={"train.steps": 1})
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "run" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"notes\.txt is a link to"):
        hw.quantize(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_output_replaces_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("sales.csv", "photo.png", "game.pgn", "data/part.csv"):
        (tmp_path / name).write_text("mine")
    os.link("sales.csv", "same.csv")
    (tmp_path / "link.csv").symlink_to("sales.csv")
    for words in (
        "forecast run --data sales.csv --out sales.csv",
        "forecast run --data sales.csv --out ./data/../sales.csv",
        "forecast run --data sales.csv --out same.csv",
        "forecast run --data link.csv --picture sales.csv",
        "forecast run --data data --out data/part.csv",
        "classify run photo.png --attention photo.png",
        "data label game.pgn --out game.pgn --resume",
        "chess match run --openings game.pgn --pgn game.pgn",
    ):
        assert main(words.split()) == USER_ERROR
        assert "would overwrite the input" in capsys.readouterr().err, words
    assert set(files(tmp_path).values()) == {b"mine"}


def test_a_tokenizer_replaces_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "tokenizer_config.json").write_text("mine")
    words = ["tokenizer", "train", "--kind", "byte", "--size", "257", "--data", str(tmp_path / "a.txt"), "--out"]
    assert main([*words, str(tmp_path / "tokenizer.json")]) == USER_ERROR
    assert "tokenizer_config.json already exists" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "new" / "tokenizer.json")]) == 0
    assert main([*words, str(tmp_path / "new" / "tokenizer.json")]) == USER_ERROR


def test_transcripts_replace_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talk.wav").write_text("sound")
    (tmp_path / "talk.txt").write_text("mine")
    assert main(["transcribe", "model", str(tmp_path / "talk.wav"), "--out", str(tmp_path)]) == USER_ERROR
    assert "talk.txt already exists" in capsys.readouterr().err
    assert (tmp_path / "talk.txt").read_text() == "mine"
