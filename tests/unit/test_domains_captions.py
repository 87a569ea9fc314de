"""Captions: scenes whose truth is known, emoji, the user's own files; training, the command line, the page."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headway as hw
from headway.app.cli import main as cli
from headway.config import override
from headway.domains import recipe as find_recipe
from headway.domains.image_text import scenes
from headway.domains.image_text.captioning import CaptionDataset, CaptionGeneration, shift_images
from headway.domains.image_text.emoji import read_emoji
from headway.domains.image_text.recipes import captioner
from headway.errors import ConfigError, UserError
from headway.formats import native
from headway.learn import Recipe, Run
from headway.learn.examples import RngKey
from headway.learn.objectives.sequences import teacher_forcing
from headway.learn.recipe import open_task
from headway.nn.models import Captioner

Image = pytest.importorskip("PIL.Image")
TINY = {
    "train.steps": 4,
    "train.batch_size": 8,
    "train.precision": "fp32",
    "train.evaluate_every": 4,
    "task.beam": 2,
    "task.train": 40,
    "task.validation": 6,
    "task.test": 6,
}


def tiny(name: str = "scenes") -> Recipe:
    return replace(find_recipe(name), model=captioner(16, (1, 1), 2, 64, 16, 24))


def settings(name: str) -> dict[str, Any]:
    if name == "scenes":
        return TINY
    own = ("task.train", "task.validation", "task.test")
    shares = {"task.split.validation": 0.2, "task.split.test": 0.2}
    return {**{key: value for key, value in TINY.items() if key not in own}, **shares}


def train(name: str, folder: Path, set: dict[str, Any] | None = None, samples: int = 0, **given: Any) -> Run:
    wanted = {**settings(name), **(set or {})}
    return hw.train(tiny(name), set=wanted, run=folder, progress=False, samples=samples, device="cpu", **given)


def examples_of(task: Any) -> CaptionDataset:
    assert isinstance(task.examples, CaptionDataset)
    return task.examples


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on scenes, which knows little."""
    return train("scenes", tmp_path_factory.mktemp("runs") / "scenes", samples=3).directory


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A table of drawn scenes with two captions each."""
    rows = []
    for number in range(40):
        scene = scenes.scene(3, number)
        picture = Image.fromarray(scenes.render(scene))
        picture.resize((50 + number, 70)).save(tmp_path / f"{number}.png")
        rows += [(f"{number}.png", scene.caption), (f"{number}.png", f"this is {scene.caption}")]
    return table(tmp_path / "captions.csv", rows)


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    return path


# Scenes


def parsed(caption: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The things that a caption names, and the relations between them."""
    words = re.split(r" (left of|right of|above|below) ", caption)
    things = [re.fullmatch(r"an? (\w+) (\w+)", words[i]).groups() for i in range(0, len(words), 2)]  # type: ignore[union-attr]
    return things, words[1::2]  # type: ignore[return-value]


AXES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@pytest.mark.parametrize("novel", [False, True])
def test_captions_say_what_the_picture_shows(novel: bool) -> None:
    """Each caption is read back and held to the pixels: colours, sizes that fall, sides that are right."""
    for number in range(150):
        scene = scenes.scene(7, number, novel)
        picture, (things, relations) = scenes.render(scene).astype(int), parsed(scene.caption)
        assert scene.novel == novel
        assert [(thing.colour, thing.shape) for thing in scene.shapes] == things
        masses = []
        for colour, _ in things:
            distance = abs(picture - np.array(scenes.COLOURS[colour])).sum(-1)
            masses.append(np.argwhere(distance < 30))
        if len(set(things)) == len({colour for colour, _ in things}):  # else pixels of a colour are those of two shapes
            sizes = [np.ptp(mass, axis=0).max() for mass in masses]
            assert sizes == sorted(sizes, reverse=True)
            middles = [mass.mean(0)[::-1] for mass in masses]
            for one, other, name in zip(middles, middles[1:], relations):
                along, across = np.array(AXES[name]), np.array(AXES[name])[::-1]
                assert (one - other) @ along > 1.5 * abs((one - other) @ across)


def test_scenes_are_functions_of_seed_and_number() -> None:
    first = scenes.scene(1, 5)
    assert scenes.scene(1, 5) == first
    assert len({scenes.scene(seed, number) for seed in (1, 2) for number in range(20)}) == 40
    assert np.array_equal(scenes.render(first), scenes.render(first))
    named = [pair for number in range(300) for pair in parsed(scenes.scene(1, number).caption)[0]]
    assert not scenes.NOVEL & set(named)
    assert len(set(named)) == len(scenes.COLOURS) * len(scenes.SHAPES) - len(scenes.NOVEL)


def test_shapes_are_what_they_are_called() -> None:
    """The share of its box that a shape fills tells it from the others."""
    shares = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 1 - 4 * 0.34**2}
    for shape, share in shares.items():
        thing = scenes.SceneShape("red", shape, 32.0, 32.0, 14.0)
        inside = (scenes.render(scenes.Scene((thing,), 255)) == scenes.COLOURS["red"]).all(-1)
        box = np.ptp(np.argwhere(inside), axis=0) + 1
        assert inside.sum() / box.prod() == pytest.approx(share, abs=0.06)


def test_splits_of_scenes_share_nothing() -> None:
    examples = examples_of(open_task(override(tiny(), settings("scenes")), Path()))
    sides = {name: set(rows.tolist()) for name, rows in examples.splits.indices.items()}
    assert {name: len(rows) for name, rows in sides.items()} == {"train": 40, "validation": 6, "test": 6, "novel": 6}
    assert len(set.union(*sides.values())) == 58
    for row in sides["novel"]:
        assert scenes.NOVEL & set(parsed(examples.captions[row])[0])


def test_tuning_leaves_the_pairs_of_the_test_unseen() -> None:
    examples = examples_of(open_task(override(tiny(), {**settings("scenes"), "task.tuning": True}), Path()))
    for name, rows in examples.splits.indices.items():
        for row in rows.tolist():
            things = set(parsed(examples.captions[row])[0])
            assert not scenes.NOVEL & things
            assert bool(scenes.TUNING & things) == (name == "novel")


# Emoji


def test_emoji_are_split_by_variants(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATA", str(data_dir))
    examples = examples_of(open_task(find_recipe("emoji-caption"), Path()))
    sides = examples.splits.indices
    found = read_emoji([data_dir / "emoji/captions.json", data_dir / "emoji/noto-emoji-64px.zip"])
    assert len(examples.captions) == len(found.images) == 1546  # a row is an emoji, in the order of the file
    keys = {side: {found.groups[row] for row in rows.tolist()} for side, rows in sides.items()}  # type: ignore[index]
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert 0.08 < len(sides["test"]) / 1546 < 0.12
    czech = override(find_recipe("emoji-caption"), {"task.language": "cs", "task.size": 500})
    again = examples_of(open_task(czech, Path()))
    assert all(np.array_equal(sides[side], again.splits.indices[side]) for side in sides)
    assert again.captions[0] == "mřížka"


# Batches


def test_texts_in_batches() -> None:
    ids, layout, labels = teacher_forcing([[5, 6], [], [7]], [(1,)] * 3, eos=2)
    assert ids.tolist() == [[1, 5, 6], [1, 0, 0], [1, 7, 0]]
    assert labels.tolist() == [[5, 6, 2], [2, -100, -100], [7, 2, -100]]
    assert layout.positions.tolist() == [[0, 1, 2], [0, -1, -1], [0, 1, -1]]
    ids, _, labels = teacher_forcing([[5], [6]], [(1,), (1, 3)], eos=2)
    assert (ids.tolist(), labels.tolist()) == ([[1, 5, 0], [1, 3, 6]], [[5, 2, -100], [-100, 6, 2]])


def test_training_shifts_images_by_their_place_in_the_stream() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    shown = shift_images(images, 2, 1, np.array([4, 5, 6]))
    assert np.array_equal(shown[1:], shift_images(images[1:], 2, 1, np.array([5, 6])))
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for image, whole in zip(shown, wide):
        assert any(np.array_equal(image, whole[y : y + 6, x : x + 6]) for y in range(5) for x in range(5))
    assert np.array_equal(shift_images(images, 0, 1, np.array([4, 5, 6])), images)


def test_noise_swaps_input_tokens_in_training_only() -> None:
    examples = examples_of(open_task(override(tiny(), {**settings("scenes"), "task.noise": 0.5}), Path()))
    rows, key = np.arange(40), RngKey(0, np.arange(40))
    (_, noisy, layout), labels = examples.take(rows, key)[:2]
    (_, plain, _), plain_labels = examples.take(rows)[:2]
    assert torch.equal(labels, plain_labels)
    assert torch.equal(noisy, examples.take(rows, key).inputs[1])
    assert 0.2 < (noisy != plain)[layout.mask].float().mean() < 0.5  # other captions often have the same word there
    for column, mask, plain_column in zip(noisy.T, layout.mask.T, plain.T):
        assert set(column[mask].tolist()) <= set(plain_column[mask].tolist())
    with pytest.raises(ConfigError, match=r"task\.noise is 1\.0; choose a share of at least 0 and below 1"):
        override(tiny(), {"task.noise": 1.0})


def test_it_learns_a_batch_by_heart(tmp_path: Path) -> None:
    few = {"task.train": 4, "train.batch_size": 4, "train.steps": 150, "train.evaluate_every": 150, "model.width": 32}
    few |= {"optim.lr": 0.02, "optim.adam_lr": 0.004}
    done = train("scenes", tmp_path / "run", few)
    examples, objective = examples_of(done.task), done.task.objective  # type: ignore[union-attr]
    assert isinstance(objective, CaptionGeneration)
    sources = examples.sources("train")
    written = objective.generate(done.model, examples, sources, objective.search)
    assert [[text] for text in examples.decode_all(written)] == sources.references
    assert done.metrics[-1]["split"] == "validation"


# Runs


def test_a_run_is_judged_and_shown(run: Path) -> None:
    status = json.loads((run / "run.json").read_text(encoding="utf-8"))
    scores = status["scores"]
    assert scores["split"] == "test"
    assert {"loss", "exact_match", "exact_match_interval", "chrf", "bleu", "exact_match_novel"} <= scores.keys()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 6 + 2
    assert "for held-out images" in page
    assert "exact match, novel pairs" in page
    model = hw.load(run)
    assert model.evaluate(split="novel", limit=3)["samples"] == 3
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        model.evaluate(split="tset")


def test_the_command_line_writes_captions(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(scenes.render(scenes.scene(9, i))).resize((90, 80)).save(file)
    assert cli.main(["caption", str(run), *files, "--beam", "2", "--n-best", "2", "--json"]) == cli.DONE
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    assert [each["image"] for each in found["captions"]] == files
    assert all(len(each["captions"]) == 2 and each["caption"] == each["captions"][0] for each in found["captions"])
    model = hw.load(run, "cpu")
    assert model.caption(files, beam=2) == [each["caption"] for each in found["captions"]]
    pixels = [np.asarray(Image.open(file)) for file in files]
    assert model.caption(pixels, beam=2) == model.caption(files, beam=2)
    assert model.caption(files[0], beam=2) == model.caption(files[:1], beam=2)[0]
    assert model.caption([]) == []
    assert cli.main(["show", str(run)]) == cli.DONE
    shown = capsys.readouterr().out
    assert "captioner, 16 image tokens before the text" in shown
    assert "torch: the engine has no instruction for an image before the text" in shown
    with pytest.raises(UserError, match="no instruction for an image before the text; use --backend torch"):
        hw.load(run, "cpu", backend="cpu").caption(files)


def test_bad_images_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, cut = tmp_path / "good.png", tmp_path / "cut.png"
    Image.fromarray(scenes.render(scenes.scene(9, 1))).save(good)
    cut.write_bytes(good.read_bytes()[:80])
    for name, message in (
        (cut, "truncated or corrupt"),
        (tmp_path / "none.png", "is not a file; pass paths"),
    ):
        assert cli.main(["caption", str(run), str(good), str(name)]) == cli.USER_ERROR
        err = capsys.readouterr().err
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_what_a_captioner_cannot_do_is_said(run: Path) -> None:
    model = hw.load(run)
    for ask, message in (
        (lambda: model.generate("a"), "an image captioning model, which cannot continue a prompt; use caption"),
        (lambda: model.score(["a"]), "use caption"),
        (lambda: model.translate(["a"]), "use caption"),
        (lambda: model.logits([[1]]), "use caption"),
        (lambda: model.attention("a"), "use caption"),
        (lambda: model.fill("a [MASK]"), "cannot fill in masks; use caption"),
        (lambda: model.classify(["a"]), "use caption"),
        (lambda: model.embed(["a"]), "use caption"),
    ):
        with pytest.raises(UserError, match=message):
            ask()


def test_a_text_model_writes_no_captions(data_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import play_file
    from tiny_runs import train as train_text

    text = train_text(tmp_path / "text", play_file(data_dir, tmp_path)).directory
    with pytest.raises(UserError, match="cannot write captions"):
        hw.load(text).caption([str(tmp_path)])
    with pytest.raises(UserError, match="does not take images; use an image model or run"):
        train("scenes", tmp_path / "run", {"task.tower": str(text)})
    assert not (tmp_path / "run").exists()


# Own files


def test_own_files(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two captions of an image are on one side, and both are right."""
    done = train("caption", tmp_path / "run", data=photos)
    examples = examples_of(done.task)
    assert examples.final_split == "test"
    sides, images = examples.splits.indices, examples.samples.images
    for rows in sides.values():
        assert all((images[rows] == image).sum() == 2 for image in np.unique(images[rows]))
    assert done.summary["scores"]["samples"] == len(sides["test"]) / 2
    assert hw.load(done.directory).evaluate(data=photos, limit=10)["split"] == "all"
    lines = [json.dumps({"path": f"{n}.png", "caption": f"scene {n}"}) for n in range(40)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    second = train("caption", tmp_path / "second", data=[tmp_path / "more.jsonl"])
    assert len(examples_of(second.task).captions) == 40


def test_bad_files_are_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    def refused(message: str, path: Path = photos, **changes: Any) -> None:
        with pytest.raises((UserError, ConfigError), match=message):
            train(
                "caption",
                tmp_path / "run",
                {key.replace("__", "."): value for key, value in changes.items()},
                data=path,
            )
        assert not (tmp_path / "run").exists()

    refused("line 2: a caption of .* tokens exceeds task.max_length of 3; .* task.drop_long=true", task__max_length=3)
    refused("the train split of 0 captions is empty; add a file named train", task__max_length=1, task__drop_long=True)
    refused("this task counts samples per batch; set only train.batch_size", train__batch_tokens=9)
    refused("no column 'text'", task__caption="text")
    refused("there is no image 'gone.png'", table(tmp_path / "gone.csv", [("gone.png", "a cat")]))
    refused("is empty; fill it in", table(tmp_path / "empty.csv", [("1.png", " ")]))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:70])
    refused("3.png is truncated or corrupt")


def test_corrupt_images_are_counted_where_that_is_asked(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")  # the first, before any size is known
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:70])
    for _ in range(2):  # decoded, and from the cache
        caplog.clear()
        skipping = override(tiny("caption"), {"task.skip_bad": True})
        examples = examples_of(open_task(skipping, tmp_path / "run", photos))
        assert len(examples.captions) == 76
        assert "skipped 2 of 40 images that cannot be read" in caplog.text
    assert not any(examples.describe_row(row) == "0.png" for row in range(76))
    only = table(tmp_path / "only.csv", [("0.png", "a cat")])
    with pytest.raises(UserError, match="none of 1 captions has a valid image"):
        open_task(override(tiny("caption"), {"task.skip_bad": True}), tmp_path / "run", only)


def test_scenes_take_no_data(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scenes are generated"):
        train("scenes", tmp_path / "run", data=photos)


# Stages


def test_stages(run: Path, photos: Path, tmp_path: Path) -> None:
    """A captioner of a tower and a decoder that lie elsewhere: first the projector alone learns, then all of it."""
    parts = {"task.tower": str(run), "task.decoder": str(run), "train.frozen": "tower,decoder"}
    first = train("caption", tmp_path / "first", parts, data=photos)
    before, after = (native.read_model(folder / native.FILE)[0] for folder in (run, first.directory))
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.startswith("projector."), name
    assert (first.directory / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    second = train("caption", tmp_path / "second", {"train.frozen": []}, data=photos, start=first.directory)
    assert isinstance(second.model, Captioner)
    changed = native.read_model(second.directory / native.FILE)[0]
    moved = {name.split(".")[0] for name, tensor in changed.items() if not torch.equal(tensor, after[name])}
    assert moved == {"tower", "projector", "decoder"}


def test_a_tower_brings_its_images_and_a_decoder_its_tokenizer(tmp_path: Path, photos: Path) -> None:
    from headway.codecs import train_codec
    from headway.formats.published import save_published
    from headway.formats.usage import Usage
    from headway.nn.models import build
    from headway.nn.models.presets import gpt, vit

    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "resample": 2}
    config = vit(16, 2, 2, 4, classes=3, size=8)
    save_published(
        build(config), config, tmp_path / "vit", Usage(processor={**processor, "image_mean": [0.1, 0.2, 0.3]})
    )
    codec = train_codec("bpe", iter(["a red circle above a blue square"] * 9), 300, fewer=True)
    words = gpt(16, 2, 2, vocab_size=codec.vocab_size + 3, context=80)
    save_published(build(words), words, tmp_path / "gpt")
    codec.save(tmp_path / "gpt")
    parts = {"task.tower": str(tmp_path / "vit"), "task.decoder": str(tmp_path / "gpt"), "train.steps": 1}
    done = train("caption", tmp_path / "run", {**parts, "task.shift": 0}, data=photos)
    model: Any = done.model
    assert model.config.vocab_size == codec.vocab_size + 3
    assert model.config.images.size == (8, 8)
    assert hw.load(done.directory).usage.processor["image_mean"] == [0.1, 0.2, 0.3]
    assert len(hw.load(done.directory).caption([str(tmp_path / "1.png")])) == 1
