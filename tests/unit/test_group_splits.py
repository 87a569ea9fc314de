"""Samples of one speaker, camera or customer are in one split, and the report names the groups that are held out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from headway.app.cli import main as cli
from headway.config import override
from headway.data.labelled_files import file_groups, read_labelled_files
from headway.data.splits import SplitConfig, assign_groups, split_by_text
from headway.domains import recipe as find_recipe
from headway.domains.audio.sound_files import read_transcripts
from headway.errors import ConfigError, UserError
from headway.learn.examples import split_notes
from headway.learn.recipe import open_task

TENTHS = SplitConfig(validation=0.1, test=0.1)
NAMELESS = np.zeros(200, np.uint8)
TEXTS = [f"text {number}" for number in range(200)]
SMALL = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "train.batch_tokens": 64,
    "train.steps": 4,
    "train.precision": "fp32",
    "task.split.stratify": False,
}


def groups_of(groups: list[str], config: SplitConfig = TENTHS, labels: list[str] | None = None) -> dict[str, set[str]]:
    splits = split_by_text(TEXTS[: len(groups)], NAMELESS[: len(groups)], config, labels, groups)
    found = {split: {groups[row] for row in rows} for split, rows in splits.items()}
    assert {split: set(names) for split, names in splits.groups.items()} == found
    assert sum(map(len, splits.values())) == len(groups)
    assert not found["train"] & found["validation"]
    assert not (found["train"] | found["validation"]) & found["test"]
    return found


def test_each_group_is_in_one_split_near_the_shares() -> None:
    groups = [f"speaker {number % 40}" for number in range(200)]
    found = groups_of(groups)
    assert [len(found[split]) for split in ("train", "validation", "test")] == [32, 4, 4]
    assert groups_of(groups) == found
    assert groups_of(groups, SplitConfig(validation=0.1, test=0.1, seed=1)) != found
    assert not groups_of(groups, SplitConfig(validation=0.1, test=0.0))["test"]


def test_of_few_groups_each_split_gets_one_and_training_keeps_one() -> None:
    assert [len(names) for names in groups_of([str(number % 6) for number in range(180)]).values()] == [4, 1, 1]
    assert [len(names) for names in groups_of([str(number % 2) for number in range(180)]).values()] == [1, 1, 0]
    assert [len(names) for names in groups_of(["one"] * 180).values()] == [1, 0, 0]
    assert groups_of(["small"] * 50 + ["large"] * 150)["validation"] == {"small"}


def test_spellings_of_a_group_are_in_one_split() -> None:
    groups = [name for number in range(40) for name in (f"{number}", f"{number}.0", f" {number}")]
    names, texts = np.zeros(120, np.uint8), [f"text {number}" for number in range(120)]
    for rows in split_by_text(texts, names, TENTHS, None, groups).values():
        assert all(3 * (row // 3) + other in rows for row in rows for other in range(3))


def test_a_class_of_one_group_is_trained_on() -> None:
    groups = [f"patient {number // 10}" for number in range(200)]
    labels = ["rare" if group == "patient 3" else "common" for group in groups]
    for seed in range(8):
        assert "patient 3" in groups_of(groups, SplitConfig(validation=0.3, test=0.3, seed=seed), labels)["train"]


def test_groups_and_equal_samples_of_held_out_files_are_not_trained_on() -> None:
    groups = ["a", "a", "b", "c", "d", "a"]
    named = np.array([0, 0, 0, 0, 0, 3], np.uint8)
    splits = split_by_text(["1", "2", "3", "4", "6", "6"], named, SplitConfig(0.3, 0.3), groups=groups)
    assert splits["test"].tolist() == [5]  # files name a test part, so no group is drawn for it
    assert splits.removed == 2 + (4 not in splits["validation"])  # sample 4 equals the test's
    assert not {0, 1} & set(splits["train"].tolist())
    codes, names = assign_groups(groups, named, SplitConfig(0.0, 0.0))
    assert codes.tolist() == [0, 0, 1, 1, 1, 3]
    assert names == {"train": ("b", "c", "d"), "validation": (), "test": ("a",)}


def test_groups_in_file_names_and_paths() -> None:
    files = [Path("/data/yes/anna/7_jackson_3.wav"), Path("/data/no/bert/8_theo_1.wav")]
    places = ["first", "second"]
    assert file_groups(files, "_(.*)_", places) == ["jackson", "theo"]
    assert file_groups(files, r"([^/]+)/[^/]+$", places) == ["anna", "bert"]
    with pytest.raises(UserError, match=r"second: task\.group='_\(j\.\*\)_' does not match '8_theo_1\.wav'; correct"):
        file_groups(files, "_(j.*)_", places)
    with pytest.raises(ConfigError, match=r"has 2 groups in parentheses; use one"):
        file_groups(files, "(.)_(.)", places)
    with pytest.raises(ConfigError, match="is not a regular expression"):
        file_groups(files, "(", places)


def test_groups_of_folders_and_tables(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"home{number}_{label}.png").write_bytes(b"x")
    labelled = read_labelled_files([tmp_path], {".png"}, "image", group=r"^(home\d)")
    assert labelled.groups == ["home0", "home1", "home2"] * 2
    assert labelled.select(np.array([4, 0])).groups == ["home1", "home0"]
    with pytest.raises(UserError, match=r"is a folder, without a column 'home'; set task\.group to a regular"):
        read_labelled_files([tmp_path], {".png"}, "image", group="home")
    table = tmp_path / "images.csv"
    table.write_text("path,label,home\ncat/home0_cat.png,cat,a\ndog/home1_dog.png,dog,b\n")
    assert read_labelled_files([table], {".png"}, "image", group="home").groups == ["a", "b"]
    assert read_labelled_files([table], {".png"}, "image", group="(home.)").groups == ["home0", "home1"]
    assert read_labelled_files([table], {".png"}, "image").groups is None
    with pytest.raises(UserError, match=r"no column 'house' .*; name the columns path, label and house"):
        read_labelled_files([table], {".png"}, "image", group="house")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [(f"text {n} is {'good' if n % 2 else 'bad'}", ("bad", "good")[n % 2], f"c{n // 6}") for n in range(60)]
        csv.writer(file).writerows([("text", "label", "customer"), *rows])
    return path


def test_texts_of_a_customer_and_the_sentence_of_the_report(reviews: Path, tmp_path: Path) -> None:
    recipe = override(find_recipe("classification"), {**SMALL, "task.group": "customer"})
    examples = open_task(recipe, tmp_path / "nowhere", reviews).examples
    splits = examples.splits  # type: ignore[attr-defined]
    assert [len(names) for names in splits.groups.values()] == [8, 1, 1]
    (held_out,), (tested,) = splits.groups["validation"], splits.groups["test"]
    note = f"Each group is in one split: 8 in training; validation: {held_out}; test: {tested}."
    assert note in examples.remarks
    assert split_notes(splits) == (note,)
    pattern = override(recipe, {"task.group": "(c.)"})
    with pytest.raises(ConfigError, match=r"'\(c\.\)' is a regular expression for file names; name a column"):
        open_task(pattern, tmp_path / "nowhere", reviews)
    single = override(recipe, {"task.group": "customer"})
    reviews.write_text("text,label,customer\n" + "".join(f"text {n},{n % 2},me\n" for n in range(20)))
    with pytest.raises(UserError, match=r"the validation split of 20 samples is empty; .*change task\.group so that"):
        open_task(single, tmp_path / "nowhere", reviews).examples.adapt(single.model)


def test_a_run_by_groups_is_reported_and_evaluates_data_without_them(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"{name}={json.dumps(value)}" for name, value in {**SMALL, "task.group": "customer"}.items()]
    run = tmp_path / "run"
    assert cli.main(["train", "classification", "--data", str(reviews), "--run", str(run), "--set", *settings]) == 0
    assert "Each group is in one split: 8 in training" in (run / "report.html").read_text()
    assert cli.main(["evaluate", str(run)]) == 0
    other = tmp_path / "other.csv"
    other.write_text("text,label\ntext is good,good\ntext is bad,bad\n")
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--data", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_related_texts_of_a_customer(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("text,text2,customer\n" + "".join(f"text {n},answer {n},c{n // 6}\n" for n in range(60)))
    settings = {"task.group": "customer", "train.batch_size": 4}
    examples = open_task(override(find_recipe("embedding"), settings), tmp_path / "nowhere", table).examples
    splits = examples.splits  # type: ignore[attr-defined]
    assert [len(names) for names in splits.groups.values()] == [8, 1, 1]
    assert all({f"c{row // 6}" for row in splits.rows(split)} == set(names) for split, names in splits.groups.items())
    assert any("Each group is in one split" in remark for remark in examples.remarks)


@pytest.mark.parametrize("setting", ["speaker", "_(.*)_"])
def test_transcripts_of_a_speaker(tmp_path: Path, setting: str) -> None:
    names = [f"{n}_s{n // 6}_0.wav" for n in range(60)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    table = tmp_path / "all.csv"
    table.write_text("path,text,speaker\n" + "".join(f"{name},text,s{n // 6}\n" for n, name in enumerate(names)))
    assert read_transcripts([table]).groups is None
    transcripts = read_transcripts([table], group=setting)
    assert transcripts.groups == [f"s{n // 6}" for n in range(60)]
    assert transcripts.select(np.array([59, 0])).groups == ["s9", "s0"]


def test_images_of_one_file_have_no_groups(tmp_path: Path) -> None:
    table = tmp_path / "digits.csv"
    table.write_text("".join(f"{','.join(['3'] * 16)},{number % 2}\n" for number in range(20)))
    recipe = override(find_recipe("vision"), {"task.group": "(.)"})
    with pytest.raises(UserError, match=r"needs a file per image, but .*digits\.csv, line 1 is one of many"):
        open_task(recipe, tmp_path / "nowhere", table)
